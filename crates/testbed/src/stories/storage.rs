//! The writable layer: its limit, where it is kept, what becomes of it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::stories;
use crate::World;
use crate::processes;

stories![
    Core a_full_writable_layer_is_the_containers_own_problem,
    Full a_limited_layer_is_there_again_after_a_restart,
    Full a_layer_in_memory_goes_with_the_container,
    Full what_was_synced_survives_a_kill,
    Full storage_options_are_checked,
];

const LIMIT: &[&str] = &["--storage-opt", "size=48m"];

fn a_full_writable_layer_is_the_containers_own_problem(world: &World<'_>) -> Result<()> {
    let directory = world.directory()?;
    let volume = format!("{}:/data", directory.display());
    let script = "echo before > /kept; sync
        dd if=/dev/zero of=/big bs=1M count=100 2>&1 | grep -c 'No space left on device'
        test $(stat -c %s /big) -lt 50000000 && echo limited
        echo written > /data/file && cat /kept && rm /big && echo after > /again && cat /again";
    let flags = [LIMIT, &["-v", &volume]].concat();
    world.run(&flags, &["sh", "-c", script])?.prints("1\nlimited\nbefore\nafter")?;
    ensure!(std::fs::read_to_string(directory.join("file"))? == "written\n", "the mount was full, too");
    Ok(())
}

fn a_limited_layer_is_there_again_after_a_restart(world: &World<'_>) -> Result<()> {
    let container =
        world.detach_ready(LIMIT, "echo start >> /starts; cat /starts; echo ready; sleep 1000")?;
    let directory = world.directory()?;
    std::fs::write(directory.join("in"), "copied\n")?;
    let (from, into) = (directory.join("in"), format!("{}:/copy", container.name));
    world.worker(&["cp", &from.display().to_string(), &into])?.ends_with(0)?;
    container.run(&["stop", "-t", "0"])?.ends_with(0)?;
    container.run(&["start"])?.ends_with(0)?;
    let deadline = Instant::now() + Duration::from_secs(60);
    let starts = loop {
        let finished = container.exec(&[], &["cat", "/starts", "/copy"]).finish()?;
        if finished.code() == 0 || Instant::now() > deadline {
            break finished;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    starts.prints("start\nstart\ncopied")?;
    let out = directory.join("out");
    let from = format!("{}:/starts", container.name);
    world.worker(&["cp", &from, &out.display().to_string()])?.ends_with(0)?;
    ensure!(std::fs::read_to_string(out)? == "start\nstart\n", "cp brought another file");
    Ok(())
}

fn a_layer_in_memory_goes_with_the_container(world: &World<'_>) -> Result<()> {
    let flags = ["--storage-opt", "medium=memory", "--storage-opt", "size=32m"];
    let script = "ls /mark 2>/dev/null; echo x > /mark
        dd if=/dev/zero of=/big bs=1M count=64 2>&1 | grep -c 'No space left on device'; cat /mark";
    let (container, finished) = world.run_kept(&flags, &["sh", "-c", script])?;
    finished.prints("1\nx")?;
    container.run(&["start", "-a"])?.prints("1\nx")?;
    Ok(())
}

fn what_was_synced_survives_a_kill(world: &World<'_>) -> Result<()> {
    let script = "cat /file 2>/dev/null; echo kept > /file; mkdir -p /many; for i in $(seq 200); do echo $i > /many/$i; done
        sync; echo ready; while true; do echo x >> /growing; done";
    let container = world.detach_ready(LIMIT, script)?;
    // Whatever runs it, in the middle of writing.
    let program = if world.runtime().is_microvm() { "qemu-system firecracker" } else { "" };
    let victims: Vec<_> = processes::of_container(&container.id)?
        .into_iter()
        .filter(|(_, line)| {
            let name = line.split('\0').next().unwrap_or_default();
            program.is_empty() || program.split(' ').any(|program| name.contains(program))
        })
        .map(|(pid, _)| pid)
        .collect();
    ensure!(!victims.is_empty(), "nothing of the container runs");
    for pid in victims {
        // One may have gone with another.
        let _ = processes::kill(pid);
    }
    container.wait()?;
    container.run(&["start"])?.ends_with(0)?;
    container.follow()?.stdout_shows("ready\n")?;
    let look = "cat /file; ls /many | wc -l; cat /many/200";
    container.exec(&[], &["sh", "-c", look]).finish()?.prints("kept\n200\n200").context("after the kill")?;
    Ok(())
}

fn storage_options_are_checked(world: &World<'_>) -> Result<()> {
    for bad in ["size=1m", "size=lots", "medium=tape", "quota=1g"] {
        world.run(&["--storage-opt", bad], &["true"])?.ends_with(125)?.complains_of(&[bad, "size=SIZE"])?;
    }
    Ok(())
}
