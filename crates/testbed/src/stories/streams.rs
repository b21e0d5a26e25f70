//! stdin, stdout and stderr: every byte, in order, and each on its own.

use std::fmt::Write;

use anyhow::{Result, ensure};
use sha2::{Digest, Sha256};

use super::stories;
use crate::World;

stories![
    Core stdout_and_stderr_stay_apart,
    Full a_silent_command_prints_nothing,
    Core large_binary_output_is_byte_identical,
    Full lines_arrive_whole_and_in_order,
    Core stdin_is_passed_on_to_its_end,
    Full stdin_is_at_its_end_unless_asked_for,
    Full a_command_may_ignore_its_stdin,
    Full output_arrives_while_the_command_runs,
    Full a_large_input_comes_back_byte_identical,
    Full a_filter_gets_its_whole_input,
];

/// Bytes that no text could pass for, the same every time.
pub(super) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        // xorshift64.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn stdout_and_stderr_stay_apart(world: &World<'_>) -> Result<()> {
    let finished = world.shell("echo to stdout; echo to stderr >&2; echo more")?.prints("to stdout\nmore")?;
    ensure!(finished.stderr == b"to stderr\n", "expected one line on stderr\n{finished}");
    Ok(())
}

fn a_silent_command_prints_nothing(world: &World<'_>) -> Result<()> {
    let finished = world.run(&[], &["true"])?.ends_with(0)?;
    ensure!(finished.stdout.is_empty() && finished.stderr.is_empty(), "expected no output\n{finished}");
    Ok(())
}

fn large_binary_output_is_byte_identical(world: &World<'_>) -> Result<()> {
    const LEN: usize = 5_000_000;
    let script =
        format!("head -c {LEN} /dev/urandom > /tmp/noise; sha256sum < /tmp/noise >&2; cat /tmp/noise");
    let finished = world.shell(&script)?.ends_with(0)?;
    ensure!(finished.stdout.len() == LEN, "expected {LEN} bytes, got {}", finished.stdout.len());
    let (sent, received) = (finished.err(), sha256(&finished.stdout));
    ensure!(sent.starts_with(&received), "sent {sent}, received {received}");
    Ok(())
}

fn lines_arrive_whole_and_in_order(world: &World<'_>) -> Result<()> {
    // Several writers would mix; one may not. The last line has no end.
    let finished = world.shell("seq 1 20000; printf end")?.ends_with(0)?;
    let mut expected: String = (1..=20000).map(|number| format!("{number}\n")).collect();
    expected.push_str("end");
    ensure!(finished.stdout == expected.as_bytes(), "lines are missing or out of order\n{finished}");
    Ok(())
}

fn stdin_is_passed_on_to_its_end(world: &World<'_>) -> Result<()> {
    let sent = noise(1 << 20);
    let finished = world.invocation(&["-i"], &["cat"]).input(sent.clone()).finish()?.ends_with(0)?;
    let received = finished.stdout;
    ensure!(received == sent, "sent {} bytes, received {} others", sent.len(), received.len());
    Ok(())
}

fn stdin_is_at_its_end_unless_asked_for(world: &World<'_>) -> Result<()> {
    world.invocation(&[], &["wc", "-c"]).input("not for the container").finish()?.prints("0")?;
    Ok(())
}

fn a_command_may_ignore_its_stdin(world: &World<'_>) -> Result<()> {
    let finished =
        world.invocation(&["-i"], &["head", "-c", "4"]).input(noise(1 << 20)).finish()?.ends_with(0)?;
    ensure!(finished.stdout.len() == 4, "expected four bytes\n{finished}");
    Ok(())
}

fn output_arrives_while_the_command_runs(world: &World<'_>) -> Result<()> {
    let mut cat = world.invocation(&["-i"], &["cat"]).open_input().spawn()?;
    for line in ["first\n", "second\n"] {
        cat.write(line.as_bytes())?;
        cat.stdout_shows(line)?;
    }
    cat.finish()?.prints("first\nsecond")?;
    Ok(())
}

/// Bytes of the large round trip: `BETA9_ROUND_TRIP` of them, else 10 MB.
fn round_trip() -> usize {
    std::env::var("BETA9_ROUND_TRIP").ok().and_then(|text| text.parse().ok()).unwrap_or(10_000_000)
}

fn a_large_input_comes_back_byte_identical(world: &World<'_>) -> Result<()> {
    let sent = noise(round_trip());
    let finished = world.invocation(&["-i"], &["cat"]).input(sent.clone()).finish()?.ends_with(0)?;
    ensure!(finished.stdout == sent, "sent {} bytes, received {} others", sent.len(), finished.stdout.len());
    Ok(())
}

fn a_filter_gets_its_whole_input(world: &World<'_>) -> Result<()> {
    let lines: String = (0..20_000).rev().map(|number| format!("{number:05}\n")).collect();
    let sorted: String = (0..20_000).map(|number| format!("{number:05}\n")).collect();
    let times = if world.runtime().is_microvm() { 3 } else { 10 };
    let times = std::env::var("BETA9_FILTERS").ok().and_then(|text| text.parse().ok()).unwrap_or(times);
    for time in 1..=times {
        let finished = world.invocation(&["-i"], &["sort"]).input(lines.clone()).finish()?.ends_with(0)?;
        ensure!(
            finished.stdout == sorted.as_bytes(),
            "time {time} of {times}: {} bytes came",
            finished.stdout.len()
        );
    }
    Ok(())
}
