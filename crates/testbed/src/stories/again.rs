//! Containers that are created, started, started again, renamed, and restarted by policy.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::stories;
use crate::World;

stories![
    Core created_first_and_started_later,
    Core started_again_it_keeps_its_files,
    Full restarted_by_hand,
    Core restarted_when_it_fails_so_many_times,
    Full restarted_until_it_is_stopped,
    Full a_success_is_not_restarted_on_failure,
    Full a_first_start_that_fails_is_not_repeated,
    Full renamed_while_it_runs,
];

fn created_first_and_started_later(world: &World<'_>) -> Result<()> {
    let name = world.name();
    let runtime = world.runtime().as_str();
    let created = world
        .worker(&[
            "create",
            "--runtime",
            runtime,
            "--name",
            &name,
            "busybox",
            "sh",
            "-c",
            "echo ran; exit 4",
        ])?
        .ends_with(0)?;
    ensure!(created.out().len() == 32, "expected an id\n{created}");
    let known = world.worker(&["inspect", "--format", "{{.status}}", &name])?.prints("created");
    let started = world.worker(&["start", "-a", &name]);
    let removed = world.worker(&["rm", "-f", &name]);
    known?;
    let started = started?.ends_with(4)?;
    ensure!(started.out() == "ran", "expected its output\n{started}");
    removed?.ends_with(0)?;
    Ok(())
}

fn started_again_it_keeps_its_files(world: &World<'_>) -> Result<()> {
    let (container, finished) =
        world.run_kept(&[], &["sh", "-c", "echo again >> /count; sync; wc -l < /count; exit 3"])?;
    finished.ends_with(3)?;
    container.run(&["start"])?.ends_with(0)?;
    ensure!(container.wait()? == 3, "the second end is not 3");
    container.run(&["start", "-a"])?.ends_with(3)?;
    container.run(&["logs"])?.prints("1\n2\n3")?;
    container.ended(3, "exited")?;
    Ok(())
}

fn restarted_by_hand(world: &World<'_>) -> Result<()> {
    let script = "trap 'exit 0' TERM; echo ready >> /log; wc -l < /log; while true; do sleep 0.1; done";
    let container = world.detach(&[], &["sh", "-c", script])?;
    let log = container.follow()?;
    log.stdout_shows("1\n")?;
    container.run(&["restart", "-t", "30"])?.prints(&container.name)?;
    container.follow()?.stdout_shows("2\n")?;
    ensure!(container.inspect()?["status"] == "running", "it does not run");
    Ok(())
}

fn restarted_when_it_fails_so_many_times(world: &World<'_>) -> Result<()> {
    let script = "echo x >> /count; wc -l < /count; exit 5";
    let container = world.detach(&["--restart", "on-failure:2"], &["sh", "-c", script])?;
    ensure!(container.wait()? == 5, "the last end is not 5");
    let known = container.ended(5, "exited")?;
    ensure!(known["restart_count"] == 2, "expected two restarts: {known:#}");
    ensure!(known["restart"] == "on-failure:2", "expected the policy: {known:#}");
    container.run(&["logs"])?.prints("1\n2\n3")?;
    Ok(())
}

fn restarted_until_it_is_stopped(world: &World<'_>) -> Result<()> {
    let container = world.detach(&["--restart", "always"], &["sh", "-c", "echo went; exit 0"])?;
    let end = Instant::now() + Duration::from_secs(60);
    while container.inspect()?["restart_count"].as_u64().unwrap_or(0) < 2 {
        ensure!(Instant::now() < end, "it was not started again: {:#}", container.inspect()?);
        std::thread::sleep(Duration::from_millis(100));
    }
    container.run(&["stop", "-t", "1"])?.ends_with(0)?;
    let stopped = container.inspect()?;
    ensure!(stopped["status"] == "exited", "it goes on: {stopped:#}");
    std::thread::sleep(Duration::from_millis(600));
    ensure!(container.inspect()?["restart_count"] == stopped["restart_count"], "it was started again");
    Ok(())
}

fn a_success_is_not_restarted_on_failure(world: &World<'_>) -> Result<()> {
    let container = world.detach(&["--restart", "on-failure"], &["true"])?;
    ensure!(container.wait()? == 0, "the end is not 0");
    ensure!(container.inspect()?["restart_count"] == 0, "it was started again");
    Ok(())
}

fn a_first_start_that_fails_is_not_repeated(world: &World<'_>) -> Result<()> {
    let (container, finished) = world.run_kept(&["--restart", "always"], &["no-such-program"])?;
    finished.ends_with(127)?;
    let known = container.ended(127, "start_failed")?;
    ensure!(known["restart_count"] == 0, "it was started again: {known:#}");
    Ok(())
}

fn renamed_while_it_runs(world: &World<'_>) -> Result<()> {
    let mut container = world.detach_ready(&[], "echo ready; sleep 1000")?;
    let (old, new) = (container.name.clone(), world.name());
    world.worker(&["rename", &old, &new])?.ends_with(0)?;
    container.name.clone_from(&new);
    ensure!(container.inspect()?["name"] == new.as_str(), "it has another name");
    world.worker(&["inspect", &old])?.ends_with(1)?;
    world.worker(&["rename", &new, "bad name"])?.ends_with(1)?;
    container.run(&["rm", "-f"])?.ends_with(0)?;
    let taken = world.site().root().join("names").join(&new);
    ensure!(!taken.exists(), "the name is taken by nobody");
    Ok(())
}
