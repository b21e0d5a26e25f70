//! Programs that make file systems: found, run with a deadline, and quoted when they fail.

use std::fs::File;
use std::io::{PipeWriter, Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use beta9_sys::command::CommandExtra;
use beta9_sys::reaper::{ChildExit, Reaper};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::{Error, ErrorKind, Result};

/// The slowest tool takes about a minute for a 10 GB image.
const DEADLINE: Duration = Duration::from_secs(30 * 60);

/// How much of a failed tool's output is repeated.
const SHOWN: u64 = 2000;

/// Directories with system programs that `PATH` may lack.
const SYSTEM: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Where a program is, if it is installed.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut candidates = std::env::split_paths(&path).chain(SYSTEM.map(PathBuf::from));
    candidates.find_map(|directory| {
        let file = directory.join(name);
        let found = file.metadata().ok()?;
        (file.is_absolute() && found.is_file() && found.permissions().mode() & 0o111 != 0).then_some(file)
    })
}

/// Runs a program to its end. It gets no input, its output is dropped, and a failure quotes what it said last.
///
/// In a process that has a [`Reaper`] no one else may wait for a child, so it must be given.
pub(crate) fn run(command: Command, reaper: Option<&Reaper>) -> Result<()> {
    run_to_end(command, Stdio::null(), reaper)
}

/// Runs a program to its end, and hands it what `feed` writes, on a thread of its own.
///
/// A program that ends early breaks the pipe, which ends `feed`; then the program's own failure is told.
pub(crate) fn run_fed(
    command: Command,
    reaper: Option<&Reaper>,
    feed: impl FnOnce(PipeWriter) -> Result<()> + Send,
) -> Result<()> {
    let failed = |e: std::io::Error| Error::caused(ErrorKind::Tool, "cannot make a pipe for a program", e);
    let (reader, writer) = std::io::pipe().map_err(failed)?;
    // Only fewer switches between two processes depend on it.
    let _ = rustix::pipe::fcntl_setpipe_size(&writer, 1 << 20);
    std::thread::scope(|scope| {
        let feeder = scope.spawn(|| feed(writer));
        let ran = run_to_end(command, reader.into(), reaper);
        let fed = match feeder.join() {
            Ok(fed) => fed,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        match (ran, fed) {
            (Ok(()), fed) => fed,
            // What ended the feeder before the program is the cause of both.
            (Err(_), Err(fed)) if fed.kind() != ErrorKind::Io => Err(fed),
            (Err(ran), _) => Err(ran),
        }
    })
}

/// What a program prints when it is called like that; nothing if it cannot be run. Its exit code does not matter.
pub(crate) fn says(program: &Path, argument: &str, reaper: Option<&Reaper>) -> String {
    let mut command = Command::new(program);
    command.arg(argument).stdin(Stdio::null());
    let Ok(memory) = rustix::fs::memfd_create("tool-says", MemfdFlags::CLOEXEC) else { return String::new() };
    let mut said = File::from(memory);
    let (Ok(out), Ok(err)) = (said.try_clone(), said.try_clone()) else { return String::new() };
    command.stdout(out).stderr(err);
    let ran = wait_for(command, reaper);
    let mut bytes = Vec::new();
    match ran.and_then(|_| said.rewind()).and_then(|()| said.take(MAX_SAID).read_to_end(&mut bytes)) {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => String::new(),
    }
}

fn run_to_end(mut command: Command, input: Stdio, reaper: Option<&Reaper>) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let failed = |e: std::io::Error| Error::caused(ErrorKind::Tool, format!("cannot run {name}"), e);
    let memory = rustix::fs::memfd_create("tool-errors", MemfdFlags::CLOEXEC);
    let mut errors = File::from(memory.map_err(|e| failed(e.into()))?);
    let stderr = errors.try_clone().map_err(failed)?;
    command.stdin(input).stdout(Stdio::null()).stderr(stderr);
    let started = Instant::now();
    match wait_for(command, reaper).map_err(failed)? {
        Some(ChildExit::Code(0)) => {
            tracing::debug!(program = name, elapsed_ms = started.elapsed().as_millis(), "tool finished");
            Ok(())
        }
        Some(ChildExit::Code(code)) => {
            let said = tail(&mut errors);
            // As the C library words it, whatever the program makes of it.
            let is_full = said.contains("No space left on device") || said.contains("Disk quota exceeded");
            let kind = if is_full { ErrorKind::Full } else { ErrorKind::Tool };
            Err(Error::new(kind, format!("{name} failed with code {code}{said}")))
        }
        Some(ChildExit::Signal(signal)) => {
            let message = format!("{name} was killed by signal {signal}{}", tail(&mut errors));
            Err(Error::new(ErrorKind::Tool, message))
        }
        None => {
            let message = format!("{name} did not finish in {} s{}", DEADLINE.as_secs(), tail(&mut errors));
            Err(Error::new(ErrorKind::Tool, message))
        }
    }
}

/// Waits for a program's end. Our end of its input is gone as soon as it runs.
fn wait_for(mut command: Command, reaper: Option<&Reaper>) -> std::io::Result<Option<ChildExit>> {
    command.env("LC_ALL", "C");
    // This thread waits for the child, so it outlives it.
    command.die_with_parent();
    match reaper {
        Some(reaper) => run_reaped(command, reaper),
        None => run_alone(command),
    }
}

/// Most of a program's output that is looked at.
const MAX_SAID: u64 = 256 << 10;

/// `None` when the deadline passed.
fn run_reaped(mut command: Command, reaper: &Reaper) -> std::io::Result<Option<ChildExit>> {
    let (sender, exits) = sync_channel(1);
    let spawned = reaper.spawn(&mut command, move |exit| {
        // The receiver is gone when the deadline has passed.
        let _ = sender.send(exit);
    })?;
    drop(command);
    match exits.recv_timeout(DEADLINE) {
        Ok(exit) => Ok(Some(exit)),
        Err(RecvTimeoutError::Timeout) => {
            kill_process(spawned.pid, Signal::KILL)?;
            Ok(None)
        }
        Err(RecvTimeoutError::Disconnected) => Err(std::io::Error::other("the reaper is gone")),
    }
}

fn run_alone(mut command: Command) -> std::io::Result<Option<ChildExit>> {
    let mut child = command.spawn()?;
    drop(command);
    let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    let end = Instant::now() + DEADLINE;
    let in_time = loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => break false,
            Ok(_) => break true,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    };
    if !in_time {
        child.kill()?;
    }
    let status = child.wait()?;
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    let exit = match (status.code(), signal) {
        (Some(code), _) => u8::try_from(code).map(ChildExit::Code),
        (None, signal) => u8::try_from(signal.unwrap_or_default()).map(ChildExit::Signal),
    };
    Ok(if in_time { exit.ok() } else { None })
}

/// What the tool said last, as the end of a message.
fn tail(errors: &mut File) -> String {
    match last_words(errors) {
        Ok(text) if !text.is_empty() => format!(", saying: {text}"),
        _ => String::new(),
    }
}

fn last_words(errors: &mut File) -> std::io::Result<String> {
    let length = errors.seek(SeekFrom::End(0))?;
    errors.seek(SeekFrom::Start(length.saturating_sub(SHOWN)))?;
    let mut bytes = Vec::new();
    errors.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim().replace('\n', "; "))
}

/// The program's name for messages about a missing one.
pub(crate) fn missing(names: &[&str], package: &str) -> Error {
    let names = names.join(", ");
    Error::new(ErrorKind::Tool, format!("none of {names} is installed; install {package}"))
}

/// A path as an argument that no program takes for an option.
pub(crate) fn argument(path: &Path) -> PathBuf {
    if path.is_absolute() { path.to_owned() } else { Path::new(".").join(path) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(line: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        command
    }

    #[test]
    fn a_failure_quotes_the_program() {
        let error = run(command("echo one >&2; echo two >&2; exit 3"), None).unwrap_err();
        assert_eq!(error.to_string(), "sh failed with code 3, saying: one; two");
        assert_eq!(error.kind(), ErrorKind::Tool);
        let error = run(command("kill -9 $$"), None).unwrap_err();
        assert_eq!(error.to_string(), "sh was killed by signal 9");
    }

    #[test]
    fn a_program_runs_under_a_reaper_too() {
        let reaper = Reaper::start().unwrap();
        run(command("true"), Some(&reaper)).unwrap();
        let error = run(command("exit 4"), Some(&reaper)).unwrap_err();
        assert_eq!(error.to_string(), "sh failed with code 4");
        assert_eq!(says(Path::new("/bin/echo"), "hello", Some(&reaper)), "hello\n");
    }

    #[test]
    fn a_program_is_fed_and_its_early_end_is_told() {
        use std::io::Write;
        let endless = |mut pipe: PipeWriter| loop {
            pipe.write_all(&[0; 4096]).map_err(|e| Error::caused(ErrorKind::Io, "cannot write", e))?;
        };
        run_fed(command("test $(wc -c) = 5"), None, |mut pipe| {
            pipe.write_all(b"12345").map_err(|e| Error::caused(ErrorKind::Io, "cannot write", e))
        })
        .unwrap();
        let error =
            run_fed(command("head -c 9 >/dev/null; echo enough >&2; exit 1"), None, endless).unwrap_err();
        assert_eq!(error.to_string(), "sh failed with code 1, saying: enough");
        // A feeder that fails is what is told, whatever the program made of half a stream.
        let bad = |_| Err(Error::new(ErrorKind::Invalid, "no"));
        assert_eq!(run_fed(command("cat; exit 1"), None, bad).unwrap_err().to_string(), "no");
        assert_eq!(run_fed(command("cat"), None, bad).unwrap_err().to_string(), "no");
    }
}
