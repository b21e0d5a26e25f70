//! Memory and disks.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::stories;
use crate::World;
use crate::world::Container;

stories![
    Core over_its_memory_limit_a_container_is_killed,
    Full under_its_memory_limit_a_container_lives,
    Full a_child_over_the_limit_is_the_shells_to_report,
    Full the_limit_is_kept_in_the_record,
    Full a_disks_rate_is_kept_to_and_changes_while_it_runs,
];

/// Doubles a variable until there is no memory for it.
const HOG: &str = "a=0123456789abcdef; while true; do a=$a$a; done";

fn over_its_memory_limit_a_container_is_killed(world: &World<'_>) -> Result<()> {
    let (container, finished) = world.run_kept(&["-m", "64m"], &["sh", "-c", HOG])?;
    finished.ends_with(137)?.complains_of(&["memory limit"])?;
    container.ended(137, "oom")?;
    Ok(())
}

fn under_its_memory_limit_a_container_lives(world: &World<'_>) -> Result<()> {
    // What it reads and writes fills the page cache, which is no reason to die either.
    let script = "head -c 16777216 /dev/zero > /dev/shm/x && wc -c < /dev/shm/x && rm /dev/shm/x && \
                  head -c 100000000 /dev/zero > /var/file && wc -c < /var/file";
    world.run(&["-m", "64m"], &["sh", "-c", script])?.prints("16777216\n100000000")?;
    Ok(())
}

fn a_child_over_the_limit_is_the_shells_to_report(world: &World<'_>) -> Result<()> {
    let script = format!("sh -c '{HOG}'; echo $?; exit 5");
    let (container, finished) = world.run_kept(&["-m", "64m"], &["sh", "-c", &script])?;
    finished.ends_with(5)?;
    container.run(&["logs"])?.prints("137")?;
    container.ended(5, "exited")?;
    Ok(())
}

fn the_limit_is_kept_in_the_record(world: &World<'_>) -> Result<()> {
    let (container, finished) = world.run_kept(&["-m", "128m"], &["true"])?;
    finished.ends_with(0)?;
    let known = container.inspect()?;
    ensure!(known["memory_bytes"] == 128 << 20, "the record has another limit: {known:#}");
    world.run(&["-m", "much"], &["true"])?.ends_with(125)?;
    Ok(())
}

/// Seconds that 8 MiB take to its disk. Each piece is written through at once: what the kernel writes back on its own,
/// cgroup v1 does not count.
fn writing(container: &Container<'_, '_>) -> Result<f64> {
    let script = "for part in $(seq 0 31); do
        dd if=/dev/zero of=/var/written bs=256k count=1 seek=$part conv=notrunc,fsync 2>/dev/null || exit 1
    done; rm /var/written";
    let began = Instant::now();
    container.exec(&[], &["sh", "-c", script]).finish()?.ends_with(0)?;
    Ok(began.elapsed().as_secs_f64())
}

fn a_disks_rate_is_kept_to_and_changes_while_it_runs(world: &World<'_>) -> Result<()> {
    let script = "echo ready; while true; do sleep 0.2; done";
    let container = world.detach_ready(&["--disk-rate", "2m"], script)?;
    // What an engine gives at once, a second's worth, comes off the four seconds. A busy machine makes it slower.
    let limited = writing(&container)?;
    ensure!((2.5..20.0).contains(&limited), "8 MiB at 2 MiB/s took {limited} s");
    container.run(&["update", "--disk-rate", "0"])?.prints(&container.name)?;
    let free = writing(&container)?;
    ensure!(free < limited - 1.0, "without a limit it took {free} s instead of {limited}");
    container.run(&["update", "--disk-rate", "1m"])?.ends_with(0)?;
    let slower = writing(&container)?;
    ensure!((5.5..40.0).contains(&slower), "8 MiB at 1 MiB/s took {slower} s");
    container.run(&["update", "--disk-rate", "1"])?.ends_with(1)?.complains_of(&["64 KiB"])?;
    Ok(())
}
