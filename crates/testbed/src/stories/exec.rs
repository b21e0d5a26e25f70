//! More processes in a container that runs.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::process::Signal;

use super::stories;
use super::streams::noise;
use crate::World;

stories![
    Core an_exec_has_streams_and_an_exit_code_of_its_own,
    Full an_exec_reads_its_stdin_to_the_end,
    Full an_exec_runs_as_asked,
    Full an_exec_knows_users_that_the_container_got,
    Full an_exec_has_variables_from_files,
    Full an_exec_has_what_the_container_has,
    Full an_exec_that_cannot_run_says_so,
    Core execs_run_beside_each_other,
    Full an_exec_in_the_background_goes_on_by_itself,
    Full an_exec_in_a_container_that_is_over_is_refused,
    Full an_exec_does_not_wait_for_what_it_leaves_behind,
    Full a_signal_for_an_execs_client_is_one_for_the_exec,
    Full an_exec_ends_with_its_container,
    Full an_exec_that_nobody_reads_holds_up_nothing_else,
    Full an_exec_outlives_its_client,
    Full signals_reach_every_process,
];

const ASLEEP: &str = "trap 'exit 0' TERM; echo ready; while :; do sleep 1; done";

fn an_exec_has_streams_and_an_exit_code_of_its_own(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&[], ASLEEP)?;
    let script = "echo to stdout; echo to stderr >&2; exit 7";
    let finished = container.exec(&[], &["sh", "-c", script]).finish()?.ends_with(7)?;
    ensure!(finished.stdout == b"to stdout\n", "expected one line on stdout\n{finished}");
    ensure!(finished.stderr == b"to stderr\n", "expected one line on stderr\n{finished}");
    container.exec(&[], &["sh", "-c", "kill -9 $$"]).finish()?.ends_with(137)?;
    container.run(&["logs"])?.prints("ready")?;
    Ok(())
}

fn an_exec_reads_its_stdin_to_the_end(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&[], ASLEEP)?;
    let sent = noise(10_000_000);
    let finished = container.exec(&["-i"], &["cat"]).input(sent.clone()).finish()?.ends_with(0)?;
    ensure!(finished.stdout == sent, "sent {} bytes, received {} others", sent.len(), finished.stdout.len());
    container.exec(&[], &["wc", "-c"]).input("not for it").finish()?.prints("0")?;
    Ok(())
}

fn an_exec_runs_as_asked(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&["-e", "A=container", "-e", "B=container"], ASLEEP)?;
    let script = "id -u; id -G; echo $HOME; pwd; echo $A $B $C";
    let flags = ["-u", "app", "-w", "/tmp", "-e", "B=exec", "-e", "C=exec"];
    container
        .exec(&flags, &["sh", "-c", script])
        .finish()?
        .prints("1000\n1000 2000\n/home/app\n/tmp\ncontainer exec exec")?;
    container.exec(&["-u", "4321:8765"], &["sh", "-c", "id -u; id -g"]).finish()?.prints("4321\n8765")?;
    container.exec(&["-u", "nobody-of-that-name"], &["true"]).finish()?.ends_with(125)?;
    Ok(())
}

fn an_exec_knows_users_that_the_container_got(world: &World<'_>) -> Result<()> {
    let script = "echo late:x:7777:8888::/late:/bin/sh >> /etc/passwd; echo later:x:9999:late >> /etc/group
        echo ready; while :; do sleep 1; done";
    let container = world.detach_ready(&[], script)?;
    let id = ["sh", "-c", "id -u; id -G; echo $HOME"];
    container.exec(&["-u", "late"], &id).finish()?.prints("7777\n8888 9999\n/late")?;
    container.exec(&["-u", "late:later"], &id).finish()?.prints("7777\n9999\n/late")?;
    // What it is told leads nowhere but into the container.
    container
        .exec(&[], &["sh", "-c", "mv /etc/passwd /etc/own; ln -s /proc/1/root/etc/own /etc/passwd"])
        .finish()?
        .ends_with(0)?;
    container.exec(&["-u", "no-such-user"], &["true"]).finish()?.ends_with(125)?;
    Ok(())
}

fn an_exec_has_variables_from_files(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&[], ASLEEP)?;
    let path = world.directory()?.join("env");
    std::fs::write(&path, "# note\nA=from file\nB=file\n")?;
    let flags = ["--env-file", &path.to_string_lossy(), "-e", "B=flag"];
    container.exec(&flags, &["sh", "-c", "echo $A, $B"]).finish()?.prints("from file, flag")?;
    Ok(())
}

fn an_exec_has_what_the_container_has(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&["-w", "/etc", "--hostname", "shared", "-u", "app"], ASLEEP)?;
    let script = "pwd; hostname; id -u; echo mine > /tmp/file; readlink /proc/self/exe >/dev/null; \
                  tr '\\0' ' ' < /proc/1/cmdline | cut -d' ' -f1; grep CapEff /proc/self/status | tr -s '\t ' ' '";
    container
        .exec(&[], &["sh", "-c", script])
        .finish()?
        .prints("/etc\nshared\n1000\nsh\nCapEff: 0000000000000000")?;
    container.exec(&[], &["cat", "/tmp/file"]).finish()?.prints("mine")?;
    Ok(())
}

fn an_exec_that_cannot_run_says_so(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&[], ASLEEP)?;
    container.exec(&[], &["no-such-program"]).finish()?.ends_with(127)?.complains_of(&["no-such-program"])?;
    container.exec(&[], &["/no/such/program"]).finish()?.ends_with(127)?;
    container.exec(&[], &["/etc"]).finish()?.ends_with(126)?;
    container.exec(&[], &["/etc/passwd"]).finish()?.ends_with(126)?;
    container.exec(&["-w", "relative"], &["true"]).finish()?.ends_with(125)?;
    world
        .worker(&["exec", "no-such-container", "true"])?
        .ends_with(125)?
        .complains_of(&["no-such-container"])?;
    container.exec(&[], &["echo", "still fine"]).finish()?.prints("still fine")?;
    Ok(())
}

fn execs_run_beside_each_other(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&[], ASLEEP)?;
    // Each waits for all others, so none can be over before all have begun.
    let script = "mkdir -p /tmp/met; touch /tmp/met/$0; \
                  while test $(ls /tmp/met | wc -l) -lt 20; do sleep 0.1; done; echo $0; exit $0";
    let begin = |number: i32| container.exec(&[], &["sh", "-c", script, &number.to_string()]).spawn();
    let running = (0..20).map(begin).collect::<Result<Vec<_>>>()?;
    for (number, exec) in (0..).zip(running) {
        let finished = exec.finish()?.ends_with(number)?;
        ensure!(finished.out() == number.to_string(), "expected {number}\n{finished}");
    }
    Ok(())
}

fn an_exec_in_the_background_goes_on_by_itself(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&[], ASLEEP)?;
    let script = "sleep 1; yes | head -c 1000000; echo done > /tmp/done";
    let finished = container.exec(&["-d"], &["sh", "-c", script]).finish()?.ends_with(0)?;
    ensure!(finished.stdout.is_empty(), "expected no output\n{finished}");
    let wait =
        "for try in $(seq 100); do test -s /tmp/done && cat /tmp/done && exit; sleep 0.2; done; exit 1";
    container.exec(&[], &["sh", "-c", wait]).finish()?.prints("done")?;
    container.exec(&["-d"], &["no-such-program"]).finish()?.ends_with(127)?;
    Ok(())
}

fn an_exec_in_a_container_that_is_over_is_refused(world: &World<'_>) -> Result<()> {
    let container = world.detach(&[], &["true"])?;
    ensure!(container.wait()? == 0, "{} failed", container.name);
    container.exec(&[], &["true"]).finish()?.ends_with(125)?.complains_of(&["is not running"])?;
    Ok(())
}

fn an_exec_does_not_wait_for_what_it_leaves_behind(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&[], ASLEEP)?;
    let began = Instant::now();
    let script = "(sleep 30; echo late) & yes | head -c 300000; echo end";
    let finished = container.exec(&[], &["sh", "-c", script]).finish()?.ends_with(0)?;
    ensure!(finished.stdout.len() == 300_004, "expected all output, got {} bytes", finished.stdout.len());
    ensure!(began.elapsed() < Duration::from_secs(25), "it took {:?}", began.elapsed());
    container.exec(&[], &["sh", "-c", "ps | grep -c '[s]leep 30'"]).finish()?.ends_with(0)?;
    Ok(())
}

fn a_signal_for_an_execs_client_is_one_for_the_exec(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&[], ASLEEP)?;
    let script = "trap 'echo caught; exit 42' TERM; echo armed; while :; do sleep 0.1; done";
    let exec = container.exec(&[], &["sh", "-c", script]).spawn()?;
    exec.stdout_shows("armed\n")?;
    exec.signal(Signal::TERM)?;
    let finished = exec.finish()?.ends_with(42)?;
    ensure!(finished.out() == "armed\ncaught", "expected two lines\n{finished}");
    Ok(())
}

fn an_exec_ends_with_its_container(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&[], ASLEEP)?;
    let exec = container.exec(&[], &["sh", "-c", "echo armed; sleep 1000"]).spawn()?;
    exec.stdout_shows("armed\n")?;
    container.run(&["kill"])?.ends_with(0)?;
    exec.finish()?.ends_with(137)?;
    ensure!(container.wait()? == 137, "the container was not killed");
    Ok(())
}

fn an_exec_that_nobody_reads_holds_up_nothing_else(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&[], "echo ready; while :; do echo tick; sleep 0.2; done")?;
    let mut stalled =
        container.exec(&[], &["sh", "-c", "head -c 8000000 /dev/zero; exit 3"]).unread().spawn()?;
    // Its client is blocked by then, and with it the process.
    std::thread::sleep(Duration::from_secs(2));
    let sent = noise(3_000_000);
    let other = container.exec(&["-i"], &["cat"]).input(sent.clone()).finish()?.ends_with(0)?;
    ensure!(other.stdout == sent, "another exec was held up");
    container.exec(&[], &["echo", "quick"]).finish()?.prints("quick")?;
    let follower = container.follow()?;
    follower.stdout_shows("tick\ntick\ntick\ntick\n")?;
    drop(follower);
    ensure!(container.inspect()?["status"] == "running", "the container was held up");
    stalled.read();
    let finished = stalled.finish()?.ends_with(3)?;
    ensure!(finished.stdout.len() == 8_000_000, "expected every byte, got {}", finished.stdout.len());
    Ok(())
}

fn an_exec_outlives_its_client(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&[], ASLEEP)?;
    let script = "echo armed; sleep 2; yes | head -c 1000000; echo done > /tmp/done";
    let exec = container.exec(&[], &["sh", "-c", script]).spawn()?;
    exec.stdout_shows("armed\n")?;
    exec.signal(Signal::KILL)?;
    exec.finish()?;
    let wait =
        "for try in $(seq 100); do test -s /tmp/done && cat /tmp/done && exit; sleep 0.2; done; exit 1";
    container.exec(&[], &["sh", "-c", wait]).finish()?.prints("done")?;
    Ok(())
}

fn signals_reach_every_process(world: &World<'_>) -> Result<()> {
    let script = "trap 'echo main' USR1; \
                  sh -c 'trap \"echo child; exit\" USR1; echo ready; while :; do sleep 0.1; done' & \
                  wait; wait; exit 5";
    let container = world.detach_ready(&[], script)?;
    container.run(&["kill", "-s", "USR1", "--all"])?.ends_with(0)?;
    ensure!(container.wait()? == 5, "the container did not end by itself");
    let finished = container.run(&["logs"])?.ends_with(0)?;
    let out = finished.out();
    ensure!(out.contains("main") && out.contains("child"), "both processes get the signal\n{finished}");
    Ok(())
}
