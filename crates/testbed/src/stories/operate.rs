//! Operating containers: freezing, counting, listing, limiting.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::stories;
use crate::World;

stories![
    Core a_paused_container_stands_still_and_goes_on,
    Full what_is_paused_already_is_not_paused,
    Full a_paused_container_can_be_stopped,
    Full a_paused_container_can_be_killed,
    Full a_paused_container_is_removed_by_force,
    Full stats_count_what_a_container_uses,
    Full stats_follow_the_work,
    Full top_shows_what_runs,
    Full limits_change_while_it_runs,
    Full limits_of_a_stopped_container_are_kept,
    Full what_does_not_run_is_not_operated,
    Full bad_values_are_refused_in_one_sentence,
];

/// Counts up, one line each tenth of a second.
const COUNTER: &str = "i=0; echo ready; while true; do i=$((i+1)); echo $i; sleep 0.1; done";
const SLEEPER: &str = "echo ready; while true; do sleep 0.2; done";

fn lines(text: &str) -> usize {
    text.lines().count()
}

fn a_paused_container_stands_still_and_goes_on(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&[], COUNTER)?;
    container.run(&["pause"])?.prints(&container.name)?;
    ensure!(container.inspect()?["status"] == "paused", "it is not known as paused");
    let listed = world.worker(&["ps"])?.ends_with(0)?;
    ensure!(listed.out().contains("(paused)"), "ps does not say that it is paused\n{listed}");
    // What was under way has arrived.
    std::thread::sleep(Duration::from_millis(500));
    let frozen = lines(&container.run(&["logs"])?.ends_with(0)?.out());
    std::thread::sleep(Duration::from_secs(1));
    let later = lines(&container.run(&["logs"])?.ends_with(0)?.out());
    ensure!(frozen == later, "it went on while it was paused: {frozen} lines became {later}");
    container.run(&["unpause"])?.prints(&container.name)?;
    ensure!(container.inspect()?["status"] == "running", "it is not known as running");
    let follower = container.follow()?;
    follower.stdout_shows(&format!("\n{}\n", later + 3))
}

fn what_is_paused_already_is_not_paused(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&[], SLEEPER)?;
    container.run(&["unpause"])?.ends_with(1)?.complains_of(&["not paused"])?;
    container.run(&["pause"])?.ends_with(0)?;
    container.run(&["pause"])?.ends_with(1)?.complains_of(&["paused already"])?;
    // It is there for whoever looks, all the same.
    container.run(&["stats", "--no-stream"])?.ends_with(0)?;
    container.run(&["unpause"])?.ends_with(0)?;
    Ok(())
}

fn a_paused_container_can_be_stopped(world: &World<'_>) -> Result<()> {
    let script = "trap 'echo bye; exit 9' TERM; echo ready; while true; do sleep 0.1; done";
    let container = world.detach_ready(&[], script)?;
    container.run(&["pause"])?.ends_with(0)?;
    container.run(&["stop", "-t", "60"])?.ends_with(0)?;
    container.ended(9, "exited")?;
    container.run(&["logs"])?.prints("ready\nbye")?;
    Ok(())
}

fn a_paused_container_can_be_killed(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&[], SLEEPER)?;
    container.run(&["pause"])?.ends_with(0)?;
    container.run(&["kill"])?.ends_with(0)?;
    ensure!(container.wait()? == 137, "wait did not print 137");
    container.ended(137, "signaled")?;
    Ok(())
}

fn a_paused_container_is_removed_by_force(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&[], SLEEPER)?;
    container.run(&["pause"])?.ends_with(0)?;
    container.run(&["rm"])?.ends_with(1)?.complains_of(&["running"])?;
    let start = Instant::now();
    container.run(&["rm", "-f"])?.ends_with(0)?;
    ensure!(start.elapsed() < Duration::from_secs(30), "it took {:?}", start.elapsed());
    container.run(&["inspect"])?.ends_with(1)?;
    Ok(())
}

fn json(finished: &crate::program::Finished) -> Result<Value> {
    serde_json::from_slice(&finished.stdout).with_context(|| format!("no JSON\n{finished}"))
}

fn stats_count_what_a_container_uses(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&["--memory", "128m"], SLEEPER)?;
    let finished = container.run(&["stats", "--no-stream", "--output", "json"])?.ends_with(0)?;
    let stats = json(&finished)?[0].clone();
    ensure!(stats["id"] == container.id.as_str(), "it is not about {}\n{finished}", container.id);
    let number = |name: &str| stats[name].as_u64();
    ensure!(number("memory_limit_bytes") == Some(128 << 20), "the limit is not 128 MiB\n{finished}");
    let used = number("memory_bytes").unwrap_or(0);
    ensure!((1..128 << 20).contains(&used), "it cannot use {used} bytes\n{finished}");
    ensure!(number("pids").is_some_and(|pids| pids > 0), "it has no processes\n{finished}");
    ensure!(number("cpu_ns").is_some_and(|time| time > 0), "it used no time\n{finished}");
    let of_vm = number("vm_bytes");
    ensure!(of_vm.is_some() == world.runtime().is_microvm(), "the memory of its VM is {of_vm:?}\n{finished}");
    ensure!(of_vm.is_none_or(|bytes| bytes > used), "its VM uses less than itself\n{finished}");
    let table = container.run(&["stats", "--no-stream"])?.ends_with(0)?;
    ensure!(table.out().contains("134.2 MB") && table.out().contains(&container.name), "no table\n{table}");
    Ok(())
}

fn stats_follow_the_work(world: &World<'_>) -> Result<()> {
    let busy = world.detach_ready(&[], "echo ready; while true; do :; done")?;
    let percent = |finished: &crate::program::Finished| -> Result<f64> {
        json(finished)?[0]["cpu_percent"].as_f64().context("no percentage")
    };
    let finished = busy.run(&["stats", "--no-stream", "--output", "json"])?.ends_with(0)?;
    ensure!(percent(&finished)? > 10.0, "a busy container is idle\n{finished}");
    busy.run(&["pause"])?.ends_with(0)?;
    let finished = busy.run(&["stats", "--no-stream", "--output", "json"])?.ends_with(0)?;
    ensure!(percent(&finished)? < 10.0, "a paused container is busy\n{finished}");
    Ok(())
}

fn top_shows_what_runs(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&["--user", "1234"], "sleep 4321 & echo ready; wait")?;
    let finished = container.run(&["top", "--output", "json"])?.ends_with(0)?;
    let list = json(&finished)?;
    let list = list.as_array().context("no list")?;
    let sleeper = list
        .iter()
        .find(|process| process["command"].as_str().is_some_and(|command| command.starts_with("sleep")));
    let sleeper = sleeper.with_context(|| format!("the sleeper is not listed\n{finished}"))?;
    ensure!(sleeper["uid"] == 1234 && sleeper["parent"] == 1, "it is not the shell's child\n{finished}");
    ensure!(list.iter().any(|process| process["pid"] == 1), "the first process is not listed\n{finished}");
    let table = container.run(&["top"])?.ends_with(0)?;
    ensure!(table.out().starts_with("UID") && table.out().contains("1234"), "no table\n{table}");
    Ok(())
}

fn limits_change_while_it_runs(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&["--memory", "128m"], SLEEPER)?;
    container.run(&["update", "--memory", "64m", "--cpus", "0.5"])?.prints(&container.name)?;
    let finished = container.run(&["stats", "--no-stream", "--output", "json"])?.ends_with(0)?;
    ensure!(json(&finished)?[0]["memory_limit_bytes"] == 64 << 20, "the limit is not 64 MiB\n{finished}");
    ensure!(container.inspect()?["memory_bytes"] == 64 << 20, "inspect does not know it");
    if world.runtime().is_microvm() {
        let refused = container.run(&["update", "--memory", "16g"])?.ends_with(1)?;
        refused.complains_of(&["128 MiB"])?;
        let refused = container.run(&["update", "--cpus", "999"])?.ends_with(1)?;
        refused.complains_of(&["processors"])?;
    }
    Ok(())
}

fn limits_of_a_stopped_container_are_kept(world: &World<'_>) -> Result<()> {
    let (container, finished) = world.run_kept(&["--memory", "128m"], &["true"])?;
    finished.ends_with(0)?;
    container.run(&["update", "--memory", "96m", "--restart", "on-failure:3"])?.ends_with(0)?;
    ensure!(container.inspect()?["memory_bytes"] == 96 << 20, "inspect does not know it");
    Ok(())
}

fn what_does_not_run_is_not_operated(world: &World<'_>) -> Result<()> {
    let (container, finished) = world.run_kept(&[], &["true"])?;
    finished.ends_with(0)?;
    for words in [&["pause"][..], &["unpause"], &["top"], &["stats", "--no-stream"]] {
        let refused = container.run(words)?.ends_with(1)?.complains_of(&["not running"])?;
        ensure!(lines(&refused.err()) == 1, "more than one sentence\n{refused}");
    }
    for words in [
        &["pause", "nobody"][..],
        &["top", "nobody"],
        &["stats", "nobody"],
        &["update", "-m", "64m", "nobody"],
    ] {
        let refused = world.worker(words)?.ends_with(1)?.complains_of(&["no such container"])?;
        ensure!(lines(&refused.err()) == 1, "more than one sentence\n{refused}");
    }
    Ok(())
}

fn bad_values_are_refused_in_one_sentence(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&[], SLEEPER)?;
    for words in [
        &["update", "--memory", "1"][..],
        &["update", "--memory", "lots"],
        &["update", "--cpus", "0"],
        &["update", "--cpus", "-1"],
        &["update", "--cpus", "many"],
        &["update", "--pids-limit", "0"],
        &["top", "--output", "xml"],
        &["stats", "--output", "xml"],
    ] {
        // docker's code for a command line that cannot be understood.
        container.run(words)?.ends_with(125)?;
    }
    let refused = container.run(&["update"])?.ends_with(1)?.complains_of(&["nothing to update"])?;
    ensure!(lines(&refused.err()) == 1, "more than one sentence\n{refused}");
    ensure!(container.inspect()?["status"] == "running", "it does not run any more");
    Ok(())
}
