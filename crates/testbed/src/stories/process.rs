//! The container's process: its environment, its user, what it is allowed, and what it sees of others.

use anyhow::{Result, ensure};

use super::stories;
use crate::World;

stories![
    Core environment_variables,
    Core working_directory,
    Core user_by_name,
    Full user_by_number_and_group,
    Full an_unknown_user_is_refused,
    Core pid_1_host_name_and_no_other_processes,
    Full host_name_by_flag,
    Core capabilities_are_dockers,
    Full a_user_has_no_capabilities,
    Full what_no_container_may_do,
    Full arguments_are_passed_on_as_they_are,
    Full loopback_works,
];

fn environment_variables(world: &World<'_>) -> Result<()> {
    let script = r#"echo "$PATH|$HOME|$PLAIN|$EMPTY|$LINES_"; test "$HOSTNAME" = "$(hostname)" && echo same"#;
    let flags = ["-e", "PLAIN=a b=c", "-e", "EMPTY=", "-e", "LINES_=1\n2", "-e", "UNSET_ON_THE_HOST_"];
    let finished = world.run(&flags, &["sh", "-c", script])?;
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    finished.prints(&format!("{path}|/root|a b=c||1\n2\nsame"))?;
    Ok(())
}

fn working_directory(world: &World<'_>) -> Result<()> {
    world
        .run(&["-w", "/made/when/missing"], &["sh", "-c", "pwd; cd /; pwd; ls -ld /made"])?
        .ends_with(0)
        .and_then(|finished| {
            let out = finished.out();
            ensure!(out.starts_with("/made/when/missing\n/\nd"), "expected both directories\n{finished}");
            Ok(())
        })
}

/// Prints user, group, all groups and home.
const WHO: &str = "id -u; id -g; id -G; echo $HOME";

fn user_by_name(world: &World<'_>) -> Result<()> {
    let script = format!("{WHO}; touch /home/app/mine && echo wrote; touch /etc/mine 2>&1 | grep -c denied");
    world
        .run(&["-u", "app"], &["sh", "-c", &script])?
        .prints("1000\n1000\n1000 2000\n/home/app\nwrote\n1")?;
    Ok(())
}

fn user_by_number_and_group(world: &World<'_>) -> Result<()> {
    for (user, who) in [
        ("1000", "1000\n1000\n1000 2000\n/home/app"),
        ("app:extra", "1000\n2000\n2000\n/home/app"),
        ("4321:8765", "4321\n8765\n8765\n/"),
    ] {
        world.run(&["-u", user], &["sh", "-c", WHO])?.prints(who)?;
    }
    Ok(())
}

fn an_unknown_user_is_refused(world: &World<'_>) -> Result<()> {
    world
        .run(&["-u", "nobody-of-that-name"], &["true"])?
        .ends_with(125)?
        .complains_of(&["nobody-of-that-name"])?;
    Ok(())
}

fn pid_1_host_name_and_no_other_processes(world: &World<'_>) -> Result<()> {
    let script = "echo $$; hostname; ls /proc | grep -c '^[0-9]'";
    let container = world.detach(&[], &["sh", "-c", script])?;
    ensure!(container.wait()? == 0, "{} failed", container.name);
    let finished = container.run(&["logs"])?;
    let out = finished.out();
    let lines: Vec<_> = out.lines().collect();
    let [pid, host, processes] = lines[..] else { anyhow::bail!("expected three lines\n{finished}") };
    ensure!(pid == "1", "the command is not process 1\n{finished}");
    ensure!(host == &container.id[..12], "the host name is not the id's beginning\n{finished}");
    // The shell, `ls` and `grep`.
    ensure!(matches!(processes, "2" | "3"), "other processes are visible\n{finished}");
    Ok(())
}

fn host_name_by_flag(world: &World<'_>) -> Result<()> {
    world
        .run(&["--hostname", "chosen"], &["sh", "-c", "hostname; echo $HOSTNAME"])?
        .prints("chosen\nchosen")?;
    Ok(())
}

fn capabilities_are_dockers(world: &World<'_>) -> Result<()> {
    let script = "grep -E '^Cap(Inh|Prm|Eff|Bnd)' /proc/self/status | tr -s '\t ' ' '";
    let set = "00000000a80425fb";
    let expected = format!("CapInh: 0000000000000000\nCapPrm: {set}\nCapEff: {set}\nCapBnd: {set}");
    world.shell(script)?.prints(&expected)?;
    Ok(())
}

fn a_user_has_no_capabilities(world: &World<'_>) -> Result<()> {
    // The first process, which nobody executed, and one that it executes.
    let none = "Cap(Prm|Eff):[[:space:]]0000000000000000$";
    let script = format!("for process in 1 self; do grep -cE '^{none}' /proc/$process/status; done");
    world.run(&["-u", "app"], &["sh", "-c", &script])?.prints("2\n2")?;
    Ok(())
}

fn what_no_container_may_do(world: &World<'_>) -> Result<()> {
    let script = "mount -t tmpfs none /tmp && echo mounted; \
                  hostname other && echo renamed; \
                  date -s 2001-01-01 >/dev/null; test $(date +%Y) = 2001 && echo turned back; \
                  chroot / mount -o remount,rw /sys && echo remounted; \
                  dmesg -c && echo cleared; true";
    let finished = world.shell(script)?.ends_with(0)?;
    ensure!(finished.stdout.is_empty(), "something was allowed\n{finished}");
    Ok(())
}

fn arguments_are_passed_on_as_they_are(world: &World<'_>) -> Result<()> {
    let arguments = ["", " a  b ", "-x", "--", "$HOME", "\"'\\", "ä€😀", "1\n2"];
    let mut command = vec!["printf", "<%s>"];
    command.extend(arguments);
    let expected: String = arguments.iter().map(|argument| format!("<{argument}>")).collect();
    world.run(&[], &command)?.prints(&expected)?;
    Ok(())
}

fn loopback_works(world: &World<'_>) -> Result<()> {
    let script = "nc -l -p 4000 -e echo through loopback & \
                  for try in 1 2 3 4 5 6 7 8 9; do nc 127.0.0.1 4000 </dev/null && exit 0; sleep 1; done; exit 1";
    let finished = world.shell(script)?.ends_with(0)?;
    ensure!(finished.out() == "through loopback", "expected one line\n{finished}");
    Ok(())
}
