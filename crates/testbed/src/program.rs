//! Running a program to its end with a deadline, and looking at its output while it runs.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Far more than any command needs, also with a VM under emulation on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(180);

/// Output of a program that has ended arrives at once; only a process that it left behind can hold its pipes.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

/// Bytes of each stream that a failure shows.
const SHOWN: usize = 4000;

/// A command to be run.
#[derive(Debug)]
pub struct Invocation {
    command: Command,
    input: Input,
    deadline: Duration,
    is_read: bool,
}

#[derive(Debug)]
enum Input {
    /// At its end from the start.
    Null,
    /// These bytes, then the end.
    Bytes(Vec<u8>),
    /// Open until the program is waited for.
    Open,
}

impl Invocation {
    /// Runs `program` with `args`, its stdin at its end.
    pub fn new(program: impl Into<OsString>, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        let mut command = Command::new(program.into());
        command.args(args.into_iter().map(Into::into));
        Self { command, input: Input::Null, deadline: DEADLINE, is_read: true }
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.command.env(name, value.into());
        self
    }

    /// Takes an environment variable away.
    pub fn without(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Writes these bytes to its stdin, then closes it.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Input::Bytes(bytes.into());
        self
    }

    /// Leaves its stdin open until [`Running::finish`].
    pub fn open_input(mut self) -> Self {
        self.input = Input::Open;
        self
    }

    /// Reads nothing of its stdout until [`Running::read`].
    pub fn unread(mut self) -> Self {
        self.is_read = false;
        self
    }

    /// The command itself, for whoever runs it otherwise.
    pub(crate) fn into_command(self) -> Command {
        self.command
    }

    /// Starts it.
    pub fn spawn(mut self) -> Result<Running> {
        let line = describe(&self.command);
        let stdin = if matches!(self.input, Input::Null) { Stdio::null() } else { Stdio::piped() };
        self.command.stdin(stdin);
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().with_context(|| format!("cannot run {line}"))?;
        let mut stdin = child.stdin.take();
        if let Input::Bytes(bytes) = self.input
            && let Some(mut pipe) = stdin.take()
        {
            // A program that does not read all of it is no failure of the writer's.
            thread::spawn(move || drop(pipe.write_all(&bytes)));
        }
        let mut unread = child.stdout.take();
        let stdout = if self.is_read { Output::read(unread.take()) } else { Output::default() };
        Ok(Running {
            stdout,
            unread,
            stderr: Output::read(child.stderr.take()),
            stdin,
            child,
            line,
            started: Instant::now(),
            deadline: self.deadline,
        })
    }

    /// Runs it to its end.
    pub fn finish(self) -> Result<Finished> {
        self.spawn()?.finish()
    }
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// A program that runs. Dropped, it is killed.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Output,
    /// Its stdout, while nobody reads it.
    unread: Option<ChildStdout>,
    stderr: Output,
    line: String,
    started: Instant,
    deadline: Duration,
}

impl Running {
    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until its stdout holds `text`.
    pub fn stdout_shows(&self, text: &str) -> Result<()> {
        self.shows(&self.stdout, text)
    }

    /// Whether its stdout holds `text` now or in a moment.
    pub fn stdout_shows_soon(&self, text: &str) -> bool {
        self.stdout.holds(text.as_bytes(), Duration::from_millis(200))
    }

    /// Waits until its stderr holds `text`.
    pub fn stderr_shows(&self, text: &str) -> Result<()> {
        self.shows(&self.stderr, text)
    }

    fn shows(&self, output: &Output, text: &str) -> Result<()> {
        let left = self.deadline.saturating_sub(self.started.elapsed());
        if output.holds(text.as_bytes(), left) {
            return Ok(());
        }
        let (stdout, stderr) = (self.stdout.so_far(), self.stderr.so_far());
        bail!(
            "{} did not print {text:?}\n{}{}",
            self.line,
            shown("stdout", &stdout),
            shown("stderr", &stderr)
        )
    }

    /// Begins to read the stdout that [`Invocation::unread`] left alone.
    pub fn read(&mut self) {
        if let Some(stdout) = self.unread.take() {
            self.stdout = Output::read(Some(stdout));
        }
    }

    /// Closes its stdin.
    pub fn close_input(&mut self) {
        self.stdin = None;
    }

    /// Writes to the stdin that [`Invocation::open_input`] left open.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let stdin = self.stdin.as_mut().context("stdin is not open")?;
        stdin.write_all(bytes).and_then(|()| stdin.flush()).context("cannot write to stdin")
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let process = self.handle()?;
        pidfd_send_signal(&process, signal).with_context(|| format!("cannot signal {}", self.line))
    }

    /// Waits for its end, which its deadline brings about if nothing else does.
    pub fn finish(mut self) -> Result<Finished> {
        drop(self.stdin.take());
        self.read();
        let left = self.deadline.saturating_sub(self.started.elapsed());
        let in_time = self.ends_within(left)?;
        if !in_time {
            self.child.kill().with_context(|| format!("cannot kill {}", self.line))?;
        }
        let status = self.child.wait().with_context(|| format!("cannot wait for {}", self.line))?;
        let drained = Instant::now() + DRAIN_DEADLINE;
        let is_complete = self.stdout.ends_before(drained) && self.stderr.ends_before(drained);
        let finished = Finished {
            line: self.line.clone(),
            status,
            stdout: self.stdout.so_far(),
            stderr: self.stderr.so_far(),
            took: self.started.elapsed(),
        };
        ensure!(in_time, "it did not end within {:?}\n{finished}", self.deadline);
        ensure!(is_complete, "it ended and something else holds its output open\n{finished}");
        Ok(finished)
    }

    fn ends_within(&self, time: Duration) -> Result<bool> {
        let process = self.handle()?;
        let mut events = [PollFd::new(&process, PollFlags::IN)];
        let end = Instant::now() + time;
        loop {
            let left = Timespec::try_from(end.saturating_duration_since(Instant::now()))?;
            match poll(&mut events, Some(&left)) {
                Ok(count) => return Ok(count > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("cannot wait for a process"),
            }
        }
    }

    fn handle(&self) -> Result<rustix::fd::OwnedFd> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("no process id")?;
        pidfd_open(pid, PidfdFlags::empty()).with_context(|| format!("cannot watch {}", self.line))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail when it has ended and was waited for, as it should have been.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One stream as far as it was read, by a thread that reads on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Output(Arc<(Mutex<Progress>, Condvar)>);

#[derive(Debug, Default)]
struct Progress {
    bytes: Vec<u8>,
    is_over: bool,
}

impl Output {
    pub(crate) fn read(stream: Option<impl Read + Send + 'static>) -> Self {
        let output = Self(Arc::default());
        let reader = output.clone();
        thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            if let Some(mut stream) = stream {
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    reader.lock().bytes.extend_from_slice(&buffer[..count]);
                    reader.0.1.notify_all();
                }
            }
            reader.lock().is_over = true;
            reader.0.1.notify_all();
        });
        output
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn so_far(&self) -> Vec<u8> {
        self.lock().bytes.clone()
    }

    /// Whether the stream comes to hold `text` within `time`.
    pub(crate) fn holds(&self, text: &[u8], time: Duration) -> bool {
        let found = |read: &Progress| read.bytes.windows(text.len()).any(|window| window == text);
        self.wait(time, |read| found(read) || read.is_over);
        found(&self.lock())
    }

    fn ends_before(&self, end: Instant) -> bool {
        self.wait(end.saturating_duration_since(Instant::now()), |read| read.is_over);
        self.lock().is_over
    }

    fn wait(&self, time: Duration, is_enough: impl Fn(&Progress) -> bool) {
        let waited = self.0.1.wait_timeout_while(self.lock(), time, |read| !is_enough(read));
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

/// A program that has ended. Printed, it shows everything that a reader of a failed test needs.
#[derive(Debug, Clone)]
pub struct Finished {
    line: String,
    status: ExitStatus,
    /// What it wrote to stdout.
    pub stdout: Vec<u8>,
    /// What it wrote to stderr.
    pub stderr: Vec<u8>,
    /// How long it ran.
    pub took: Duration,
}

impl Finished {
    /// Its exit code; -1 when a signal ended it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    /// Its stdout as text, without white space at the end.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// Its stderr as text, without white space at the end.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim_end().to_owned()
    }

    /// Fails unless it ended with `code`.
    pub fn ends_with(self, code: i32) -> Result<Self> {
        ensure!(self.code() == code, "expected exit code {code}\n{self}");
        Ok(self)
    }

    /// Fails unless it ended with 0 and its stdout, without white space at the end, is `text`.
    pub fn prints(self, text: &str) -> Result<Self> {
        let finished = self.ends_with(0)?;
        ensure!(finished.out() == text, "expected {text:?} on stdout\n{finished}");
        Ok(finished)
    }

    /// Fails unless its stderr holds every one of `words`.
    pub fn complains_of(self, words: &[&str]) -> Result<Self> {
        let said = self.err();
        for word in words {
            ensure!(said.contains(word), "expected {word:?} on stderr\n{self}");
        }
        Ok(self)
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "$ {}\n  {} after {:.1} s", self.line, self.status, self.took.as_secs_f64())?;
        f.write_str(&shown("stdout", &self.stdout))?;
        f.write_str(&shown("stderr", &self.stderr))
    }
}

fn shown(name: &str, bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)]);
    let more =
        if bytes.len() > SHOWN { format!("\n  … {} bytes in all", bytes.len()) } else { String::new() };
    match text.trim_end() {
        "" => format!("  {name}: empty\n"),
        text => format!("  {name}: {}{more}\n", text.replace('\n', "\n  | ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_code_and_input_are_kept_apart() {
        let script = "cat; echo err >&2; exit 3";
        let finished = Invocation::new("sh", ["-c", script]).input("in").finish().unwrap();
        assert_eq!((finished.code(), finished.out(), finished.err()), (3, "in".into(), "err".into()));
    }

    #[test]
    fn one_that_does_not_end_is_killed_at_its_deadline() {
        let mut sleeper = Invocation::new("sleep", ["600"]);
        sleeper.deadline = Duration::from_millis(50);
        let error = sleeper.finish().unwrap_err().to_string();
        assert!(error.contains("did not end within 50ms") && error.contains("sleep 600"), "{error}");
    }

    #[test]
    fn output_is_seen_while_it_runs() {
        let mut cat = Invocation::new("cat", [""; 0]).open_input().spawn().unwrap();
        cat.write(b"hello\n").unwrap();
        cat.stdout_shows("hello").unwrap();
        assert_eq!(cat.finish().unwrap().out(), "hello");
        let silent = Invocation::new("true", [""; 0]).spawn().unwrap();
        assert!(silent.stdout_shows("x").is_err());
    }
}
