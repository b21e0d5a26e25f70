//! A container's log: which part of it, and that no reader loses a line.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::stories;
use crate::World;

stories![
    Full the_last_lines_are_shown,
    Full lines_of_a_span_of_time_are_shown,
    Full every_line_has_its_time,
    Core a_log_is_rotated_and_its_end_is_kept,
    Full a_follower_goes_over_rotations,
    Full a_slow_client_misses_nothing_and_holds_up_nobody,
    Full what_was_written_before_attaching_is_the_logs,
];

fn the_last_lines_are_shown(world: &World<'_>) -> Result<()> {
    let container = world.detach(&[], &["sh", "-c", "seq 1 50; printf end"])?;
    ensure!(container.wait()? == 0, "{} failed", container.name);
    container.run(&["logs", "--tail", "3"])?.prints("49\n50\nend")?;
    container.run(&["logs", "-n", "0"])?.prints("")?;
    let all = container.run(&["logs", "--tail", "all"])?.ends_with(0)?;
    ensure!(all.out().lines().count() == 51, "expected 51 lines\n{all}");
    container.run(&["logs", "-f", "-n", "1"])?.prints("end")?;
    container.run(&["logs", "--tail", "some"])?.complains_of(&["all"])?;

    let container = world.detach_ready(&[], "seq 1 5; echo ready; while :; do sleep 1; done")?;
    container.run(&["logs", "--tail", "2"])?.prints("5\nready")?;
    Ok(())
}

fn lines_of_a_span_of_time_are_shown(world: &World<'_>) -> Result<()> {
    let container =
        world.detach(&[], &["sh", "-c", "echo first; sleep 2; echo second; sleep 2; echo third"])?;
    ensure!(container.wait()? == 0, "{} failed", container.name);
    let stamped = container.run(&["logs", "-t"])?.ends_with(0)?;
    let out = stamped.out();
    let times: Vec<&str> =
        out.lines().filter_map(|line| line.split_once(' ').map(|(time, _)| time)).collect();
    ensure!(times.len() == 3, "expected three times\n{stamped}");
    container.run(&["logs", "--since", times[1]])?.prints("second\nthird")?;
    container.run(&["logs", "--until", times[1]])?.prints("first\nsecond")?;
    container.run(&["logs", "--since", times[1], "--until", times[1]])?.prints("second")?;
    container.run(&["logs", "--until", times[1], "--tail", "1"])?.prints("second")?;
    container.run(&["logs", "--since", "1h"])?.prints("first\nsecond\nthird")?;
    container.run(&["logs", "--until", "1h"])?.prints("")?;
    container
        .run(&["logs", "--since", "yesterday"])?
        .ends_with(125)?
        .complains_of(&["yesterday", "1h30m"])?;
    Ok(())
}

fn every_line_has_its_time(world: &World<'_>) -> Result<()> {
    let script = "printf 'in '; sleep 1; printf 'pieces\\n'; echo whole >&2";
    let container = world.detach(&[], &["sh", "-c", script])?;
    ensure!(container.wait()? == 0, "{} failed", container.name);
    let finished = container.run(&["logs", "-t"])?.ends_with(0)?;
    let is_stamped = |text: &str, rest: &str| {
        let (time, line) = text.split_once(' ').unwrap_or_default();
        time.len() == 30 && time.ends_with('Z') && line == rest
    };
    ensure!(is_stamped(&finished.out(), "in pieces"), "expected one time for one line\n{finished}");
    ensure!(is_stamped(&finished.err(), "whole"), "expected a time\n{finished}");
    Ok(())
}

const SMALL: [&str; 4] = ["--log-opt", "max-size=64k", "--log-opt", "max-file=3"];

fn a_log_is_rotated_and_its_end_is_kept(world: &World<'_>) -> Result<()> {
    let container = world.detach(&SMALL, &["sh", "-c", "seq 1 100000"])?;
    ensure!(container.wait()? == 0, "{} failed", container.name);
    let directory = world.site().root().join("containers").join(&container.id);
    let mut files: Vec<u64> = Vec::new();
    for entry in std::fs::read_dir(&directory).context("the container's directory")? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("log") {
            files.push(entry.metadata()?.len());
        }
    }
    ensure!(files.len() == 3, "expected three files, got {files:?}");
    ensure!(files.iter().all(|size| *size < 1 << 20), "a file is too large: {files:?}");
    let finished = container.run(&["logs"])?.ends_with(0)?;
    // What is thrown away may end in the middle of a line.
    let numbers: Vec<u32> = finished.out().lines().skip(1).map(|line| line.parse().unwrap_or(0)).collect();
    let first = *numbers.first().context("the log is empty")?;
    ensure!(first > 1, "nothing was thrown away");
    ensure!(numbers.iter().copied().eq(first..=100_000), "lines are missing");
    container.run(&["logs", "--tail", "2"])?.prints("99999\n100000")?;
    Ok(())
}

fn a_follower_goes_over_rotations(world: &World<'_>) -> Result<()> {
    let script = "for part in 0 1 2 3 4 5 6 7 8 9; do seq $((part * 3000 + 1)) $((part * 3000 + 3000)); \
                  test $part = 0 && sleep 2; done; sleep 1";
    let container = world.detach(&SMALL, &["sh", "-c", script])?;
    let follower = container.follow()?;
    let finished = follower.finish()?.ends_with(0)?;
    let expected: String = (1..=30_000).map(|number| format!("{number}\n")).collect();
    ensure!(finished.stdout == expected.as_bytes(), "lines are missing or repeated\n{finished}");
    Ok(())
}

fn a_slow_client_misses_nothing_and_holds_up_nobody(world: &World<'_>) -> Result<()> {
    // Far more than the log keeps and than pipes and connections hold.
    const LEN: usize = 8_000_000;
    // In lines of some length: each has its time in the log, and the log may not go on for more than 500 files.
    let script = format!("yes $(seq 30) | head -c {LEN}; echo written >&2; exit 5");
    let (container, invocation) = world.prepared(&SMALL, &["sh", "-c", &script]);
    let mut client = invocation.unread().spawn()?;
    let known = |field: &str| -> Result<String> {
        Ok(container.inspect()?["status"].as_str().unwrap_or(field).to_owned())
    };
    // The container's end does not depend on the client.
    let deadline = std::time::Instant::now() + Duration::from_secs(120);
    while known("status").map_or(true, |status| status != "exited") {
        ensure!(std::time::Instant::now() < deadline, "a client that does not read holds up the container");
        std::thread::sleep(Duration::from_millis(200));
    }
    client.read();
    let finished = client.finish()?.ends_with(5)?;
    ensure!(finished.stdout.len() == LEN, "expected {LEN} bytes, got {}", finished.stdout.len());
    ensure!(finished.err() == "written", "expected one line on stderr\n{finished}");
    Ok(())
}

fn what_was_written_before_attaching_is_the_logs(world: &World<'_>) -> Result<()> {
    let script = "echo before; read line; echo \"got $line\"; cat; exit 3";
    let container = world.detach(&["-i"], &["sh", "-c", script])?;
    container.follow()?.stdout_shows("before\n")?;
    let mut looking = container.command(&["attach", "--no-stdin"]).open_input().spawn()?;
    let mut attached = container.command(&["attach"]).open_input().spawn()?;
    attached.write(b"hello\n")?;
    attached.stdout_shows("got hello\n")?;
    // Who looks sees what is written from then on; nobody is told when that begins.
    let mut echoes = 0;
    while !looking.stdout_shows_soon("again\n") {
        ensure!(echoes < 100, "who looks on sees nothing of what is written");
        attached.write(b"again\n")?;
        echoes += 1;
    }
    attached.write(b"rest")?;
    // The end of what one says, while the other direction goes on.
    attached.close_input();
    let finished = attached.finish()?.ends_with(3)?;
    let expected = format!("got hello\n{}rest", "again\n".repeat(echoes));
    ensure!(finished.out() == expected, "expected what came after attaching\n{finished}");
    looking.close_input();
    looking.finish()?.ends_with(3)?;
    container.command(&["attach"]).finish()?.ends_with(1)?.complains_of(&["is not running"])?;
    Ok(())
}
