//! Containers in the background: what is known of them, and how they end.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::stories;
use crate::World;

stories![
    Core a_detached_container_is_known_by_id_prefix_and_name,
    Core a_record_outlives_its_container,
    Full logs_can_be_followed_to_the_end,
    Core stop_lets_the_command_end_by_itself,
    Core stop_kills_after_the_grace,
    Full signals_reach_the_command,
    Full a_running_container_is_not_removed,
    Full a_name_is_taken_until_its_container_is_removed,
    Core nothing_is_left_of_a_container_that_is_to_be_removed,
    Full containers_do_not_see_each_other,
    Full the_timeline_shows_every_phase,
    Full a_signal_for_the_client_is_one_for_the_command,
];

fn a_detached_container_is_known_by_id_prefix_and_name(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&["-e", "SECRET=hidden"], "echo ready; sleep 1000")?;
    let id = container.id.as_str();
    world.worker(&["ps", "-q"])?.ends_with(0).and_then(|finished| {
        ensure!(finished.out().lines().any(|line| line == id), "ps does not list {id}\n{finished}");
        Ok(())
    })?;
    for word in [id, &id[..10], &container.name] {
        let finished = world.worker(&["inspect", word])?.ends_with(0)?;
        ensure!(finished.out().contains(id), "{word} is not {id}\n{finished}");
    }
    let known = container.inspect()?;
    let runtime = world.runtime().as_str();
    for (field, value) in [
        ("id", id),
        ("name", container.name.as_str()),
        ("image", "busybox:latest"),
        ("pool", "default"),
        ("runtime", runtime),
        ("runtime_asked", runtime),
        ("status", "running"),
    ] {
        ensure!(known[field] == value, "field {field} is not {value}: {known:#}");
    }
    ensure!(known["pid"].as_u64().is_some_and(|pid| pid > 1), "no process id: {known:#}");
    ensure!(known["exit"].is_null(), "it has not ended: {known:#}");
    let text = known.to_string();
    ensure!(text.contains("SECRET") && !text.contains("hidden"), "values do not belong in it: {known:#}");
    Ok(())
}

fn a_record_outlives_its_container(world: &World<'_>) -> Result<()> {
    let container = world.detach(&[], &["sh", "-c", "echo out; echo err >&2; exit 4"])?;
    ensure!(container.wait()? == 4, "wait did not print 4");
    container.ended(4, "exited")?;
    let log = container.run(&["logs"])?.prints("out")?;
    ensure!(log.err() == "err", "stderr is not in the log\n{log}");
    let listed = |flags: &[&str]| -> Result<bool> {
        let list: Vec<Value> = serde_json::from_slice(&world.worker(flags)?.ends_with(0)?.stdout)?;
        Ok(list.iter().any(|known| known["id"] == container.id.as_str()))
    };
    ensure!(!listed(&["ps", "--output", "json"])?, "ps lists a container that is over");
    ensure!(listed(&["ps", "-a", "--output", "json"])?, "ps -a does not list it");
    ensure!(container.wait()? == 4, "a second wait did not print 4");
    container.run(&["rm"])?.ends_with(0)?;
    ensure!(!listed(&["ps", "-a", "--output", "json"])?, "ps -a lists a container that was removed");
    container.run(&["inspect"])?.ends_with(1)?.complains_of(&[&container.name])?;
    Ok(())
}

fn logs_can_be_followed_to_the_end(world: &World<'_>) -> Result<()> {
    let script = "echo ready; trap 'echo more; exit 0' USR1; while true; do sleep 0.1; done";
    let container = world.detach_ready(&[], script)?;
    let follower = container.follow()?;
    follower.stdout_shows("ready\n")?;
    container.run(&["kill", "-s", "USR1"])?.ends_with(0)?;
    follower.finish()?.prints("ready\nmore")?;
    let stamped = container.run(&["logs", "-t"])?.ends_with(0)?;
    ensure!(
        stamped.out().lines().all(|line| line.starts_with("20") && line.contains("T")),
        "expected a time on each line\n{stamped}"
    );
    Ok(())
}

fn stop_lets_the_command_end_by_itself(world: &World<'_>) -> Result<()> {
    let script = "trap 'echo bye; exit 9' TERM; echo ready; while true; do sleep 0.1; done";
    let container = world.detach_ready(&[], script)?;
    container.run(&["stop", "-t", "60"])?.ends_with(0)?;
    ensure!(container.wait()? == 9, "wait did not print 9");
    container.ended(9, "exited")?;
    container.run(&["logs"])?.prints("ready\nbye")?;
    // One that is over is stopped already.
    container.run(&["stop"])?.ends_with(0)?;
    Ok(())
}

fn stop_kills_after_the_grace(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&[], "trap '' TERM; echo ready; while true; do sleep 0.1; done")?;
    let start = Instant::now();
    container.run(&["stop", "-t", "1"])?.ends_with(0)?;
    let took = start.elapsed();
    ensure!(took >= Duration::from_secs(1), "it got no grace, only {took:?}");
    ensure!(container.wait()? == 137, "wait did not print 137");
    container.ended(137, "signaled")?;
    Ok(())
}

fn signals_reach_the_command(world: &World<'_>) -> Result<()> {
    let script = "trap 'echo hup' HUP; trap 'echo usr2' USR2; trap 'exit 6' INT
        echo ready; while true; do sleep 0.1; done";
    let container = world.detach_ready(&[], script)?;
    let log = container.follow()?;
    for (signal, word) in [("HUP", "hup\n"), ("12", "usr2\n")] {
        container.run(&["kill", "-s", signal])?.ends_with(0)?;
        log.stdout_shows(word)?;
    }
    container.run(&["kill", "-s", "SIGINT"])?.ends_with(0)?;
    ensure!(container.wait()? == 6, "wait did not print 6");
    container.run(&["kill", "-s", "TERM"])?.ends_with(1)?;
    Ok(())
}

fn a_running_container_is_not_removed(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&[], "echo ready; sleep 1000")?;
    container.run(&["rm"])?.ends_with(1)?.complains_of(&["running"])?;
    ensure!(container.inspect()?["status"] == "running", "it does not run any more");
    container.run(&["rm", "-f"])?.ends_with(0)?;
    container.run(&["inspect"])?.ends_with(1)?;
    Ok(())
}

fn a_name_is_taken_until_its_container_is_removed(world: &World<'_>) -> Result<()> {
    let container = world.detach(&[], &["true"])?;
    let runtime = world.runtime().as_str();
    let again = ["run", "--rm", "--runtime", runtime, "--name", &container.name, "busybox", "echo", "again"];
    world.worker(&again)?.ends_with(125)?.complains_of(&[&container.name, "taken"])?;
    container.wait()?;
    world.worker(&again)?.ends_with(125)?;
    container.run(&["rm"])?.ends_with(0)?;
    world.worker(&again)?.prints("again")?;
    Ok(())
}

fn nothing_is_left_of_a_container_that_is_to_be_removed(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&["--rm"], "echo ready; sleep 1000")?;
    let directory = world.site().root().join("containers").join(&container.id);
    ensure!(directory.exists(), "there is no {}", directory.display());
    container.run(&["kill"])?.ends_with(0)?;
    // Whether it ends or is gone first, a wait returns.
    container.run(&["wait"])?;
    let end = Instant::now() + Duration::from_secs(30);
    while directory.exists() {
        ensure!(Instant::now() < end, "{} is still there", directory.display());
        std::thread::sleep(Duration::from_millis(50));
    }
    container.run(&["inspect"])?.ends_with(1)?;
    Ok(())
}

fn containers_do_not_see_each_other(world: &World<'_>) -> Result<()> {
    let script = "echo ready; touch /tmp/$NAME; trap 'ls /tmp; ps | grep -c [s]leep; exit 0' USR1
        while true; do sleep 0.1; done";
    let first = world.detach_ready(&["-e", "NAME=first"], script)?;
    let second = world.detach_ready(&["-e", "NAME=second"], script)?;
    let running = world.worker(&["ps", "-q"])?.ends_with(0)?.out();
    ensure!(running.contains(&first.id) && running.contains(&second.id), "ps lists only {running}");
    for (container, name) in [(&first, "first"), (&second, "second")] {
        container.run(&["kill", "-s", "USR1"])?.ends_with(0)?;
        ensure!(container.wait()? == 0, "{name} failed");
        let log = container.run(&["logs"])?.ends_with(0)?;
        ensure!(log.out().starts_with(&format!("ready\n{name}\n")), "{name} sees more than its own\n{log}");
    }
    Ok(())
}

fn the_timeline_shows_every_phase(world: &World<'_>) -> Result<()> {
    let (container, finished) = world.run_kept(&[], &["true"])?;
    finished.ends_with(0)?;
    let known = container.inspect()?;
    let marks = known["timeline"].as_array().context("no timeline")?;
    let names: Vec<_> = marks.iter().filter_map(|mark| mark["phase"].as_str()).collect();
    for phase in ["supervisor_started", "rootfs_ready", "created", "running", "exited", "cleaned"] {
        ensure!(names.contains(&phase), "phase {phase} is missing in {names:?}");
    }
    if world.runtime().is_microvm() {
        let boot: Vec<_> = names.iter().filter(|name| name.starts_with("guest_")).collect();
        ensure!(
            boot == [&"guest_kernel", &"guest_init", &"guest_ready", &"guest_mounted"],
            "the guest's: {boot:?}"
        );
        ensure!(names.contains(&"engine_ended"), "the engine's end is missing in {names:?}");
    }
    ensure!(marks.is_sorted_by_key(|mark| mark["at_us"].as_u64()), "times go backwards: {known:#}");
    let drawn = container.run(&["inspect", "--timeline"])?.ends_with(0)?;
    ensure!(drawn.out().contains("request to running"), "no timeline was drawn\n{drawn}");
    Ok(())
}

fn a_signal_for_the_client_is_one_for_the_command(world: &World<'_>) -> Result<()> {
    let script = "trap 'exit 8' TERM; echo ready; while true; do sleep 0.1; done";
    let client = world.invocation(&[], &["sh", "-c", script]).spawn()?;
    client.stdout_shows("ready\n")?;
    client.signal(rustix::process::Signal::TERM)?;
    client.finish()?.ends_with(8)?;
    Ok(())
}
