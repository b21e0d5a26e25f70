//! docker's options for the process, its limits, its files and its names.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use beta9_types::RuntimeKind;

use super::stories;
use crate::World;

stories![
    Full an_entrypoint_replaces_the_images,
    Core variables_from_files,
    Full a_broken_file_of_variables_is_refused,
    Full groups_are_added,
    Core resource_limits,
    Core memory_file_systems_have_a_size,
    Full memory_file_systems_run_no_programs,
    Full shared_memory_has_a_size,
    Full a_device_is_given,
    Full a_device_of_the_host_stays_out_of_a_vm,
    Full kernel_settings_of_the_container,
    Core hosts_and_name_servers,
    Full generated_files_are_the_containers_own,
    Full a_mount_wins_over_a_generated_file,
    Core processes_are_limited,
    Full cpus_are_limited,
    Full the_cpus_are_chosen,
    Full memory_and_swap_go_together,
    Full disks_are_limited_where_the_host_can,
    Full the_stop_signal_is_the_containers,
    Full the_stop_timeout_is_the_containers,
];

fn an_entrypoint_replaces_the_images(world: &World<'_>) -> Result<()> {
    world.run(&["--entrypoint", "echo"], &["-n", "said"])?.prints("said")?;
    world.run(&["--entrypoint", ""], &["echo", "plain"])?.prints("plain")?;
    Ok(())
}

fn variables_from_files(world: &World<'_>) -> Result<()> {
    let path = world.directory()?.join("env");
    fs::write(&path, "# a comment\n\nA=from file\nB=with = and # in it\nC=file\nUNSET_ON_THE_HOST_\n")?;
    let path = path.to_string_lossy();
    world
        .run(
            &["--env-file", &path, "-e", "C=flag"],
            &["sh", "-c", "echo \"$A|$B|$C|${UNSET_ON_THE_HOST_-none}\""],
        )?
        .prints("from file|with = and # in it|flag|none")?;
    Ok(())
}

fn a_broken_file_of_variables_is_refused(world: &World<'_>) -> Result<()> {
    let path = world.directory()?.join("env");
    fs::write(&path, "GOOD=1\nbad name=2\n")?;
    world
        .run(&["--env-file", &path.to_string_lossy()], &["true"])?
        .ends_with(125)?
        .complains_of(&["line 2", "NAME=VALUE"])?;
    world
        .run(&["--env-file", "/no/such/file"], &["true"])?
        .ends_with(125)?
        .complains_of(&["/no/such/file"])?;
    Ok(())
}

fn groups_are_added(world: &World<'_>) -> Result<()> {
    let flags = ["-u", "app", "--group-add", "4000", "--group-add", "extra"];
    world.run(&flags, &["id", "-G"])?.prints("1000 2000 4000")?;
    world
        .run(&["--group-add", "no-such-group"], &["true"])?
        .ends_with(125)?
        .complains_of(&["no-such-group"])?;
    Ok(())
}

fn resource_limits(world: &World<'_>) -> Result<()> {
    let flags = ["--ulimit", "nofile=100:200", "--ulimit", "core=0", "--ulimit", "nproc=50"];
    let script = "ulimit -n; ulimit -Hn; ulimit -c";
    world.run(&flags, &["sh", "-c", script])?.prints("100\n200\n0")?;
    Ok(())
}

fn memory_file_systems_have_a_size(world: &World<'_>) -> Result<()> {
    let flags = ["--tmpfs", "/new/run:size=1m,mode=1770"];
    let script = "stat -c %a /new/run; df -k /new/run | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2
        dd if=/dev/zero of=/new/run/big bs=1k count=2000 2>&1 | grep -c 'No space left'";
    world.run(&flags, &["sh", "-c", script])?.prints("1770\n1024\n1")?;
    Ok(())
}

fn memory_file_systems_run_no_programs(world: &World<'_>) -> Result<()> {
    let script = "grep ' /var/new ' /proc/mounts | grep noexec | grep nosuid | grep -c nodev";
    world.run(&["--tmpfs", "/var/new"], &["sh", "-c", script])?.prints("1")?;
    Ok(())
}

fn shared_memory_has_a_size(world: &World<'_>) -> Result<()> {
    let script = "df -k /dev/shm | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2";
    world.run(&["--shm-size", "3m"], &["sh", "-c", script])?.prints("3072")?;
    Ok(())
}

fn a_device_is_given(world: &World<'_>) -> Result<()> {
    let flags = ["--device", "/dev/zero:/dev/nought:r"];
    let finished = world.run(&flags, &["sh", "-c", "head -c 2 /dev/nought | od -An -tx1"])?;
    if world.runtime() == RuntimeKind::Gvisor {
        finished.ends_with(125)?.complains_of(&["gvisor does not support --device"])?;
    } else {
        finished.prints(" 00 00")?;
    }
    world.run(&["--device", "/etc/passwd"], &["true"])?.ends_with(125)?;
    world.run(&["--device", "/dev/no-such-device"], &["true"])?.ends_with(125).map(drop)
}

fn a_device_of_the_host_stays_out_of_a_vm(world: &World<'_>) -> Result<()> {
    if !std::path::Path::new("/dev/kmsg").exists() || world.runtime() == RuntimeKind::Gvisor {
        return Ok(());
    }
    let finished = world.run(&["--device", "/dev/kmsg:/dev/log0"], &["test", "-c", "/dev/log0"])?;
    if world.runtime().is_microvm() {
        finished.ends_with(125)?.complains_of(&["does not support --device /dev/kmsg"])?;
    } else {
        finished.ends_with(0)?;
    }
    Ok(())
}

fn kernel_settings_of_the_container(world: &World<'_>) -> Result<()> {
    let flags = ["--sysctl", "net.ipv4.ip_unprivileged_port_start=99", "--sysctl", "kernel.msgmax=12345"];
    let script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax";
    let finished = world.run(&flags, &["sh", "-c", script])?;
    if world.runtime() == RuntimeKind::Gvisor {
        finished.ends_with(125)?.complains_of(&["gvisor does not support --sysctl"])?;
    } else {
        finished.prints("99\n12345")?;
    }
    world
        .run(&["--sysctl", "kernel.panic=1"], &["true"])?
        .ends_with(125)?
        .complains_of(&["kernel.panic", "namespace"])?;
    Ok(())
}

fn hosts_and_name_servers(world: &World<'_>) -> Result<()> {
    // With an address of its own its name has that.
    let flags = [
        "--network",
        "none",
        "--hostname",
        "box",
        "--add-host",
        "db:10.1.2.3",
        "--add-host",
        "six:[fd00::1]",
        "--dns",
        "192.0.2.7",
        "--dns-search",
        "example.org",
        "--dns-option",
        "ndots:3",
    ];
    let script =
        "cat /etc/hostname; grep -c localhost /etc/hosts; grep -w box /etc/hosts | head -n 1 | cut -f 1
        grep -w db /etc/hosts; grep -w six /etc/hosts; cat /etc/resolv.conf";
    world.run(&flags, &["sh", "-c", script])?.ends_with(0).and_then(|finished| {
        let out = finished.out();
        let expected = "box\n2\n127.0.0.1\n10.1.2.3\tdb\nfd00::1\tsix\nnameserver 192.0.2.7\nsearch example.org\n\
                        options ndots:3";
        ensure!(out.starts_with(expected), "expected {expected:?}\n{finished}");
        Ok(())
    })
}

fn generated_files_are_the_containers_own(world: &World<'_>) -> Result<()> {
    let script =
        "echo 10.9.9.9 mine >> /etc/hosts && tail -n 1 /etc/hosts; echo > /etc/hostname && echo wrote";
    world.run(&["-h", "box"], &["sh", "-c", script])?.prints("10.9.9.9 mine\nwrote")?;
    world.shell("grep -c mine /etc/hosts; true")?.prints("0")?;
    Ok(())
}

fn a_mount_wins_over_a_generated_file(world: &World<'_>) -> Result<()> {
    let path = world.directory()?.join("hosts");
    fs::write(&path, "mine alone\n")?;
    let volume = format!("{}:/etc/hosts:ro", path.display());
    world.run(&["-v", &volume], &["cat", "/etc/hosts"])?.prints("mine alone")?;
    Ok(())
}

fn processes_are_limited(world: &World<'_>) -> Result<()> {
    let script = "for n in 1 2 3 4 5 6 7 8 9 10; do sleep 5 & done 2>&1; echo all of them";
    let finished = world.run(&["--pids-limit", "6"], &["sh", "-c", script])?;
    if world.runtime() == RuntimeKind::Gvisor {
        finished.ends_with(125)?.complains_of(&["gvisor does not support --pids-limit"])?;
    } else {
        ensure!(finished.code() != 0 || !finished.err().is_empty(), "ten processes were made\n{finished}");
        ensure!(format!("{finished}").contains("fork"), "expected a complaint about fork\n{finished}");
    }
    Ok(())
}

fn cpus_are_limited(world: &World<'_>) -> Result<()> {
    // Two seconds of work for half a CPU take four.
    let script = "end=$(($(date +%s) + 2)); while [ $(date +%s) -lt $end ]; do :; done
        read user system rest < /proc/uptime; echo done";
    world.run(&["--cpus", "0.5", "--cpu-shares", "512"], &["sh", "-c", script])?.prints("done")?;
    world
        .run(&["--cpus", "5000"], &["true"])?
        .ends_with(125)?
        .complains_of(&["--cpus", "CPUs of this host"])?;
    world.run(&["--cpu-shares", "1"], &["true"])?.ends_with(125)?.complains_of(&["CPU shares"])?;
    Ok(())
}

fn the_cpus_are_chosen(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&["--cpuset-cpus", "0"], "nproc; echo ready; sleep 1000")?;
    if world.runtime().is_microvm() {
        container.run(&["logs"])?.prints("1\nready")?;
    }
    let pid = container.inspect()?["pid"].as_u64().context("it has no process")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).map(str::trim);
    ensure!(allowed == Some("0"), "it may run on {allowed:?}");
    world.run(&["--cpuset-cpus", "0,8000"], &["true"])?.ends_with(125)?.complains_of(&["CPU 8000"])?;
    Ok(())
}

fn memory_and_swap_go_together(world: &World<'_>) -> Result<()> {
    world.run(&["-m", "64m", "--memory-swap", "64m"], &["echo", "ran"])?.prints("ran")?;
    world
        .run(&["-m", "64m", "--memory-swap", "-1", "--memory-reservation", "32m"], &["echo", "ran"])?
        .prints("ran")?;
    for (flags, word) in [
        (&["--memory-swap", "64m"][..], "--memory"),
        (&["-m", "64m", "--memory-swap", "32m"], "--memory-swap"),
        (&["-m", "64m", "--memory-reservation", "65m"], "--memory-reservation"),
    ] {
        world.run(flags, &["true"])?.ends_with(125)?.complains_of(&[word])?;
    }
    Ok(())
}

fn disks_are_limited_where_the_host_can(world: &World<'_>) -> Result<()> {
    // Left out with a warning where the host has no such scheduler.
    world.run(&["--blkio-weight", "300"], &["echo", "ran"])?.prints("ran")?;
    world.run(&["--device-read-bps", "/etc/passwd:1m"], &["true"])?.ends_with(125)?;
    match fs::read_dir("/sys/block")?
        .flatten()
        .map(|disk| disk.file_name())
        .find(|name| Path::new("/dev").join(name).exists())
    {
        Some(disk) => {
            let limit = format!("/dev/{}:1g", disk.to_string_lossy());
            world.run(&["--device-write-bps", &limit], &["echo", "ran"])?.prints("ran")?;
        }
        None => eprintln!("skipped: there is no disk to limit"),
    }
    world.run(&["--blkio-weight", "5"], &["true"])?.ends_with(125)?.complains_of(&["10 to 1000"])?;
    Ok(())
}

fn the_stop_signal_is_the_containers(world: &World<'_>) -> Result<()> {
    let script = "trap 'exit 3' INT; trap '' TERM; echo ready; while true; do sleep 0.1; done";
    let container = world.detach_ready(&["--stop-signal", "SIGINT"], script)?;
    container.run(&["stop", "-t", "60"])?.ends_with(0)?;
    ensure!(container.wait()? == 3, "it was not stopped by SIGINT");
    Ok(())
}

fn the_stop_timeout_is_the_containers(world: &World<'_>) -> Result<()> {
    let script = "trap '' TERM; echo ready; while true; do sleep 0.1; done";
    let container = world.detach_ready(&["--stop-timeout", "1"], script)?;
    let start = Instant::now();
    container.run(&["stop"])?.ends_with(0)?;
    ensure!(start.elapsed().as_secs() < 9, "it got more than its own grace: {:?}", start.elapsed());
    container.ended(137, "signaled")?;
    Ok(())
}
