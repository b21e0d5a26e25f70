//! What a container's process may do: system calls, capabilities, privileges, protected files.

use std::fs;

use anyhow::{Result, ensure};
use beta9_types::RuntimeKind;

use super::stories;
use crate::World;

stories![
    Core system_calls_are_filtered,
    Full system_calls_may_be_unfiltered,
    Full a_profile_of_ones_own_filters_system_calls,
    Full a_profile_may_look_at_arguments,
    Full a_broken_profile_is_refused,
    Full a_capability_is_added,
    Full all_capabilities_are_dropped,
    Core no_new_privileges_are_given,
    Core the_root_file_system_is_read_only,
    Full system_paths_may_be_unconfined,
    Core an_init_reaps_and_returns_the_code,
    Full an_init_passes_signals_on,
    Full a_missing_command_below_an_init_is_127,
];

fn system_calls_are_filtered(world: &World<'_>) -> Result<()> {
    let script = "grep Seccomp: /proc/self/status | tr -d '\\t'; unshare -U true 2>/dev/null || echo not here
        unshare -m true 2>/dev/null || echo nor here; chroot / echo but here; echo $(echo and this)";
    world.shell(script)?.prints("Seccomp:2\nnot here\nnor here\nbut here\nand this")?;
    Ok(())
}

fn system_calls_may_be_unfiltered(world: &World<'_>) -> Result<()> {
    let script = "grep Seccomp: /proc/self/status | tr -d '\\t'";
    world.run(&["--security-opt", "seccomp=unconfined"], &["sh", "-c", script])?.prints("Seccomp:0")?;
    Ok(())
}

fn profile(world: &World<'_>, json: &str) -> Result<String> {
    let path = world.directory()?.join("profile.json");
    fs::write(&path, json)?;
    Ok(format!("seccomp={}", path.display()))
}

fn a_profile_of_ones_own_filters_system_calls(world: &World<'_>) -> Result<()> {
    let option = profile(
        world,
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
            {"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":28},
            {"name":"chmod","action":"SCMP_ACT_ERRNO","excludes":{"caps":["CAP_CHOWN"]}},
            {"names":["fchmodat","fchmodat2"],"action":"SCMP_ACT_ERRNO","includes":{"caps":["CAP_SYS_ADMIN"]}}]}"#,
    )?;
    let script = "mkdir /made 2>&1 | grep -c 'No space left'; touch /f && chmod 700 /f && echo changed";
    let finished = world.run(&["--security-opt", &option], &["sh", "-c", script])?;
    if world.runtime() == RuntimeKind::Gvisor {
        finished.ends_with(125)?.complains_of(&["gvisor does not support --security-opt seccomp"])?;
    } else {
        finished.prints("1\nchanged")?;
    }
    Ok(())
}

fn a_profile_may_look_at_arguments(world: &World<'_>) -> Result<()> {
    // One call, by one of its arguments.
    let option = profile(
        world,
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
            {"names":["kill"],"action":"SCMP_ACT_ERRNO","errnoRet":13,
             "args":[{"index":1,"value":10,"op":"SCMP_CMP_EQ"}]}]}"#,
    )?;
    let script = "kill -USR1 $$ 2>&1 | grep -c 'ermission denied'; kill -0 $$ && echo sent";
    let finished = world.run(&["--security-opt", &option], &["sh", "-c", script])?;
    if world.runtime() == RuntimeKind::Gvisor {
        finished.ends_with(125)?;
    } else {
        finished.prints("1\nsent")?;
    }
    Ok(())
}

fn a_broken_profile_is_refused(world: &World<'_>) -> Result<()> {
    for json in ["{", "[]", r#"{"defaultAction":"SCMP_ACT_MAYBE"}"#, " "] {
        let option = profile(world, json)?;
        world.run(&["--security-opt", &option], &["true"])?.ends_with(125)?.complains_of(&[""])?;
    }
    world
        .run(&["--security-opt", "seccomp=/no/such/profile"], &["true"])?
        .ends_with(125)?
        .complains_of(&["/no/such/profile"])?;
    Ok(())
}

/// Prints the set that other sets cannot grow beyond.
const BOUNDING: &str = "grep CapBnd /proc/self/status | tr -d '\\t'";

fn a_capability_is_added(world: &World<'_>) -> Result<()> {
    // Not CAP_NET_RAW, which gVisor takes away.
    let flags = ["--cap-drop", "net_raw", "--cap-add", "CAP_NET_ADMIN"];
    world.run(&flags, &["sh", "-c", BOUNDING])?.prints("CapBnd:00000000a80415fb")?;
    Ok(())
}

fn all_capabilities_are_dropped(world: &World<'_>) -> Result<()> {
    let script = format!("{BOUNDING}; chown 1 /etc/passwd 2>/dev/null || echo not mine");
    world.run(&["--cap-drop", "ALL"], &["sh", "-c", &script])?.prints("CapBnd:0000000000000000\nnot mine")?;
    let kill_alone = ["--cap-drop", "all", "--cap-add", "kill"];
    world.run(&kill_alone, &["sh", "-c", BOUNDING])?.prints("CapBnd:0000000000000020")?;
    Ok(())
}

fn no_new_privileges_are_given(world: &World<'_>) -> Result<()> {
    let script = "grep NoNewPrivs /proc/self/status | tr -d '\\t'";
    let flags = ["--security-opt", "no-new-privileges", "-u", "app"];
    world.run(&flags, &["sh", "-c", script])?.prints("NoNewPrivs:1")?;
    Ok(())
}

fn the_root_file_system_is_read_only(world: &World<'_>) -> Result<()> {
    let script = "touch /new 2>&1 | grep -c 'Read-only'; touch /etc/passwd 2>&1 | grep -c 'Read-only'
        echo kept > /run/file && cat /run/file; echo > /dev/null && echo devices";
    world.run(&["--read-only", "--tmpfs", "/run"], &["sh", "-c", script])?.prints("1\n1\nkept\ndevices")?;
    Ok(())
}

fn system_paths_may_be_unconfined(world: &World<'_>) -> Result<()> {
    let script = "grep -c ' /proc/' /proc/mounts; true";
    world.run(&["--security-opt", "systempaths=unconfined"], &["sh", "-c", script])?.prints("0")?;
    Ok(())
}

fn an_init_reaps_and_returns_the_code(world: &World<'_>) -> Result<()> {
    let script = "test $$ != 1 && echo not the first; sh -c 'sleep 0.2 &'; sleep 1; ps -o stat | grep -c '^Z'
        echo err >&2; exit 7";
    let finished = world.run(&["--init"], &["sh", "-c", script])?.ends_with(7)?;
    ensure!(finished.out() == "not the first\n0", "an orphan was not reaped\n{finished}");
    Ok(())
}

fn an_init_passes_signals_on(world: &World<'_>) -> Result<()> {
    let script = "trap 'echo got it; exit 5' USR1; echo ready; while true; do sleep 0.1; done";
    let container = world.detach_ready(&["--init"], script)?;
    container.run(&["kill", "-s", "USR1"])?.ends_with(0)?;
    ensure!(container.wait()? == 5, "the command did not get the signal");
    let sleeper = world.detach(&["--init"], &["sleep", "1000"])?;
    // Not being the first process, it has no need to catch it.
    sleeper.run(&["stop", "-t", "60"])?.ends_with(0)?;
    ensure!(sleeper.wait()? == 143, "the command did not end by SIGTERM");
    Ok(())
}

fn a_missing_command_below_an_init_is_127(world: &World<'_>) -> Result<()> {
    world.run(&["--init"], &["no-such-program"])?.ends_with(127)?.complains_of(&["no-such-program"])?;
    Ok(())
}
