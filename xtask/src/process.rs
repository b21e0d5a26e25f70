//! Running other programs: one line of progress each, and their own words when they fail.

use std::ffi::OsStr;
use std::io::IsTerminal;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Lines of a failed program's output that are repeated.
const SHOWN: usize = 30;

/// How often a step shows on a terminal that it goes on.
const TICK: Duration = Duration::from_secs(1);

/// How often elsewhere.
const REMINDER: Duration = Duration::from_secs(30);

/// A program with arguments, stdin closed.
pub(crate) fn command<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    command
}

/// The cargo that runs this program.
pub(crate) fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}

/// Runs `command` to its end and returns its stdout. A failure carries the tail of what it printed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
        said.push_str(&String::from_utf8_lossy(&output.stderr));
        bail!("{program} failed with {}:\n{}", output.status, tail(&said, SHOWN));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Shows that `what` has begun, that it goes on, and, when `work` is done, how long it took.
pub(crate) fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let is_terminal = std::io::stderr().is_terminal();
    let (running, ended) = channel::<()>();
    eprint!("   {what} …{}", if is_terminal { "\r" } else { "\n" });
    let done = std::thread::scope(|scope| {
        scope.spawn(move || {
            let every = if is_terminal { TICK } else { REMINDER };
            while ended.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                let (seconds, end) = (start.elapsed().as_secs(), if is_terminal { "\r" } else { "\n" });
                eprint!("   {what} … {seconds} s{end}");
            }
        });
        let done = work();
        drop(running);
        done
    });
    let clear = if is_terminal { "\u{1b}[K" } else { "" };
    match &done {
        Ok(_) => eprintln!("{clear}   {what}: {:.1} s", start.elapsed().as_secs_f64()),
        Err(_) => eprintln!("{clear}   {what}: failed after {:.1} s", start.elapsed().as_secs_f64()),
    }
    done.with_context(|| format!("cannot {what}"))
}

/// The last `lines` lines of `text`.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_carries_what_the_program_said() {
        let error = output(&mut command("sh", ["-c", "echo out; echo err >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("exit status: 3") && text.ends_with("out\nerr"), "{text}");
    }

    #[test]
    fn tail_keeps_the_end() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a", 2), "a");
    }
}
