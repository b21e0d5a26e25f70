//! `cargo xtask nested -- COMMAND`: runs a command as root in a machine whose KVM boots real guests and whose
//! cgroups are v2 alone, whatever this machine has.
//!
//! The machine is QEMU emulating a CPU with SVM, and Debian's cloud kernel. Its root is this machine's, read-only and
//! below a writable layer that is thrown away: programs, libraries and builds are at their paths, and nothing
//! that the command does stays. `/tmp`, `/var/tmp` and `/var/lib/beta9` are empty directories on a plain ext4, apart
//! from what the command needs below them. It has no network but loopback. Emulation is 5 to 10 times slower.
//!
//! ```text
//! starting ──ready──▶ running ──exit N──▶ ended: N
//!     └──────────────────┴─ no report, deadline, signal ──▶ ended: an error, with the tail of the console
//! ```

mod initramfs;
mod machine;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use beta9_sys::signalfd::SignalFd;
use rustix::process::Signal;

use crate::debian_kernel::{self, DebianKernel};
use crate::project::Project;
use crate::setup;
use initramfs::Job;
use machine::{Machine, Place};

/// How long the machine may take until its job begins: some 4 s on an idle machine, much more on a busy one.
const BOOT_DEADLINE: Duration = Duration::from_secs(180);

/// How long output may still arrive after the machine has ended.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// The longest report that is read.
const REPORT_LIMIT: u64 = 64 << 10;

/// The ports, by the names that `job.sh` looks for.
const PORTS: [&str; 3] = ["stdout", "stderr", "report"];

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The machine's memory
    #[arg(long, value_name = "MIB", default_value_t = 4096)]
    mem: u32,
    /// How long the command may run
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    timeout: u64,
    /// Set an environment variable; without a value it is taken from the caller
    #[arg(long = "env", value_name = "KEY[=VALUE]")]
    environment: Vec<String>,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

#[derive(Debug)]
enum Event {
    /// The job runs.
    Ready,
    /// The job ended with this code.
    Exit(u8),
    /// The machine could not run the job.
    Failed(String),
    /// One of the job's two streams has been written out to its end.
    Drained,
    /// The emulator ended; what it said.
    MachineEnded(String),
    /// A signal that asks this process to end.
    Interrupted(i32),
}

/// Runs the command and returns its exit code.
pub(crate) fn run(project: &Project, options: &Options) -> Result<ExitCode> {
    setup::packages()?;
    let kernel = debian_kernel::cloud(project)?;
    // Before any thread exists: they all must leave these signals alone.
    let signals = SignalFd::take(&[Signal::INT, Signal::TERM, Signal::HUP])?;
    let place = Place::new()?;
    write_initramfs(&place, project, &kernel, options)?;

    let (events, inbox) = channel();
    let [stdout, stderr, report] =
        [place.listen("stdout")?, place.listen("stderr")?, place.listen("report")?];
    copy(stdout, io::stdout(), events.clone());
    copy(stderr, io::stderr(), events.clone());
    read_report(report, events.clone());
    watch(signals, events.clone());
    let mut machine = Machine::start(&place, &kernel, options.mem, &PORTS)?;
    let messages = machine.messages()?;
    spawn(move || {
        let mut text = Vec::new();
        let _ = messages.take(REPORT_LIMIT).read_to_end(&mut text);
        let _ = events.send(Event::MachineEnded(String::from_utf8_lossy(&text).into_owned()));
    });

    let outcome = follow(&inbox, Duration::from_secs(options.timeout));
    drop(machine);
    if outcome.is_err() {
        eprint!("{}", place.last_words());
    }
    outcome
}

fn write_initramfs(place: &Place, project: &Project, kernel: &DebianKernel, options: &Options) -> Result<()> {
    let directory = std::env::current_dir().context("cannot tell the working directory")?;
    let job = Job {
        command: &options.command,
        environment: &environment(project, &options.environment)?,
        directory: &directory,
        keep: &needed_directories(project, &directory)?,
    };
    initramfs::write(&place.path("initramfs"), kernel, &job)
}

fn environment(project: &Project, asked: &[String]) -> Result<Vec<(String, String)>> {
    let path = project.path()?.into_string();
    let mut environment = vec![("PATH".to_owned(), path.ok().context("PATH is not UTF-8")?)];
    for key in ["HOME", "LANG"] {
        if let Ok(value) = std::env::var(key) {
            environment.push((key.to_owned(), value));
        }
    }
    for entry in asked {
        let value = match entry.split_once('=') {
            Some((key, value)) => (key.to_owned(), value.to_owned()),
            None => match std::env::var(entry) {
                Ok(value) => (entry.clone(), value),
                Err(_) => bail!("--env {entry}: no such variable here; give it a value with --env {entry}=…"),
            },
        };
        environment.push(value);
    }
    Ok(environment)
}

/// Directories that the job is likely to use wherever they are, parents first.
fn needed_directories(project: &Project, working_directory: &Path) -> Result<Vec<PathBuf>> {
    let mut needed = vec![project.root().to_owned(), working_directory.to_owned()];
    needed.extend(std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from));
    needed.extend(std::env::split_paths(&project.path()?));
    needed.retain(|directory| directory.is_absolute());
    needed.sort();
    needed.dedup();
    Ok(needed)
}

/// Writes what arrives at `listener` to `to` as it comes.
fn copy(listener: UnixListener, mut to: impl Write + Send + 'static, events: Sender<Event>) {
    spawn(move || {
        let Ok((mut stream, _)) = listener.accept() else { return };
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            // A reader that went away is no reason to stop the job.
            let _ = to.write_all(&buffer[..count]).and_then(|()| to.flush());
        }
        let _ = events.send(Event::Drained);
    });
}

fn read_report(listener: UnixListener, events: Sender<Event>) {
    spawn(move || {
        let Ok((stream, _)) = listener.accept() else { return };
        for line in BufReader::new(stream.take(REPORT_LIMIT)).lines().map_while(Result::ok) {
            let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
            let event = match (word, rest.parse()) {
                ("ready", _) => Event::Ready,
                ("exit", Ok(code)) => Event::Exit(code),
                _ => Event::Failed(line),
            };
            let _ = events.send(event);
        }
    });
}

fn watch(signals: SignalFd, events: Sender<Event>) {
    spawn(move || {
        if let Ok(signal) = signals.wait() {
            let _ = events.send(Event::Interrupted(signal));
        }
    });
}

/// Starts a thread that is never waited for: it ends with what it reads from, or with the process.
fn spawn(work: impl FnOnce() + Send + 'static) {
    thread::spawn(work);
}

/// Follows the machine to its end.
fn follow(inbox: &Receiver<Event>, timeout: Duration) -> Result<ExitCode> {
    let mut deadline = Instant::now() + BOOT_DEADLINE;
    let mut late = format!("the nested machine was not up within {BOOT_DEADLINE:?}");
    let mut exit = None;
    let mut drained = 0;
    loop {
        if let Some(code) = exit
            && drained == 2
        {
            return Ok(ExitCode::from(code));
        }
        match inbox.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Event::Ready) => {
                deadline = Instant::now() + timeout;
                late = format!("the command did not end within {timeout:?}; --timeout SECONDS gives it more");
            }
            Ok(Event::Exit(code)) => {
                exit = Some(code);
                deadline = Instant::now() + DRAIN_DEADLINE;
                late = format!("the command ended with {code}, but its output is not complete");
            }
            Ok(Event::Drained) => drained += 1,
            Ok(Event::Failed(why)) => bail!("the nested machine could not run the command: {why}"),
            // What a shell shows for a command that a signal ended.
            Ok(Event::Interrupted(signal)) => {
                return Ok(ExitCode::from(128 + u8::try_from(signal).unwrap_or(0)));
            }
            // The report and the output may still be on their way through the other threads.
            Ok(Event::MachineEnded(said)) if exit.is_none() => {
                deadline = deadline.min(Instant::now() + DRAIN_DEADLINE);
                late = format!("the nested machine ended without a report. {said}");
            }
            Ok(Event::MachineEnded(_)) => {}
            Err(_) => bail!(late),
        }
    }
}

#[cfg(test)]
mod tests;
