//! The worker of the demonstration and the commands that talk to it.
//!
//! ```text
//! open ── serve, run … ──▶ close: the command at work is killed, the worker is stopped, containers are removed
//! ```
//!
//! Nothing can be started in a session that was closed, so that a close from another thread is final.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use beta9_sys::command::CommandExtra;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;

use super::pools::{PROGRAM, Pool, Ran};
use crate::process::tail;

/// How long the worker may take until it serves.
const SERVE_DEADLINE: Duration = Duration::from_secs(30);

/// How long it may take to stop.
const STOP_DEADLINE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// What the names of the demonstration's containers begin with; others belong to whoever played here.
const NAME_PREFIX: &str = "demo-";

/// What the worker logs when its socket is there.
const SERVING: &str = "worker is serving";

pub(super) struct Session {
    program: PathBuf,
    config: PathBuf,
    log: PathBuf,
    path: OsString,
    lines: Arc<Mutex<Vec<String>>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    is_closed: bool,
    worker: Option<Child>,
    /// The command that is at work.
    client: Option<OwnedFd>,
}

impl Session {
    pub(super) fn new(program: PathBuf, config: PathBuf, log: PathBuf, path: OsString) -> Self {
        Self { program, config, log, path, lines: Arc::default(), state: Mutex::default() }
    }

    pub(super) fn program(&self) -> &Path {
        &self.program
    }

    pub(super) fn config(&self) -> &Path {
        &self.config
    }

    /// What the worker logged so far.
    pub(super) fn log_lines(&self) -> Vec<String> {
        lock(&self.lines).clone()
    }

    /// Starts the worker; returns when it accepts commands.
    pub(super) fn serve(&self) -> Result<()> {
        let log = File::create(&self.log).with_context(|| format!("cannot write {}", self.log.display()))?;
        let mut serve = self.command();
        serve.arg("serve").stdout(Stdio::null()).stderr(Stdio::piped()).new_session().die_with_parent();
        let (serving, inbox) = channel();
        {
            let mut state = self.open_state()?;
            let mut worker =
                serve.spawn().with_context(|| format!("cannot run {}", self.program.display()))?;
            if let Some(stderr) = worker.stderr.take() {
                follow_log(stderr, log, Arc::clone(&self.lines), serving);
            }
            state.worker = Some(worker);
        }
        if inbox.recv_timeout(SERVE_DEADLINE).is_err() {
            bail!("the worker does not serve; it said:\n{}", tail(&self.log_lines().join("\n"), 10));
        }
        Ok(())
    }

    /// Runs a command of the worker's program to its end.
    fn run(&self, command: &mut Command) -> Result<Output> {
        // Its own session: Ctrl-C is for this program, which then stops everything in order.
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).new_session();
        let child = {
            let mut state = self.open_state()?;
            let child = command.spawn().with_context(|| format!("cannot run {}", self.program.display()))?;
            state.client = Some(pidfd(&child)?);
            child
        };
        let output = child.wait_with_output().context("cannot read what a command says")?;
        lock(&self.state).client = None;
        Ok(output)
    }

    /// Runs a command that has to succeed, and returns what it printed.
    pub(super) fn succeed(&self, arguments: &[&str]) -> Result<String> {
        let output = self.run(self.command().args(arguments))?;
        check(arguments, &output)
    }

    fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.succeed(arguments)?;
        serde_json::from_str(&text)
            .with_context(|| format!("beta9-worker {} printed no JSON", arguments.join(" ")))
    }

    pub(super) fn has_image(&self, name: &str) -> Result<bool> {
        let images = self.json(&["image", "ls", "--output", "json"])?;
        let tagged = format!("{name}:latest");
        let references = images.as_array().into_iter().flatten().map(|image| image["reference"].as_str());
        Ok(references.flatten().any(|reference| reference == tagged))
    }

    /// The pools, when each of them has been decided.
    pub(super) fn pools(&self) -> Result<Vec<Pool>> {
        let mut status = self.json(&["status", "--output", "json"])?;
        serde_json::from_value(status["pools"].take()).context("the worker's status has an unknown form")
    }

    /// Runs the program in a pool, and asks the container's record how long its start took.
    pub(super) fn run_program(&self, pool: &str, image: &str) -> Result<Ran> {
        let name = format!("{NAME_PREFIX}{pool}");
        let arguments = ["run", "--name", &name, "--pool", pool, image, "python3", "-c", PROGRAM];
        let output = self.run(self.command().args(arguments))?;
        let record = self.json(&["inspect", &name])?;
        let at = |phase: &str| {
            let timeline = record[0]["timeline"].as_array()?;
            timeline.iter().find(|mark| mark["phase"] == phase)?["at_us"].as_u64()
        };
        let start = at("running").zip(at("requested")).map(|(running, asked)| running.saturating_sub(asked));
        self.succeed(&["rm", &name])?;
        Ok(Ran {
            output: String::from_utf8_lossy(&output.stdout).into_owned(),
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
            exit_code: output.status.code(),
            start_ms: start.map(|microseconds| microseconds / 1000),
        })
    }

    /// Removes the containers that a demonstration left, running or not.
    pub(super) fn remove_containers(&self) -> Result<()> {
        remove_containers(|arguments| self.succeed(arguments))
    }

    /// Stops and removes all that was started. Needed once, and also after a failure.
    pub(super) fn close(&self) -> Result<()> {
        let (worker, client) = {
            let mut state = lock(&self.state);
            state.is_closed = true;
            (state.worker.take(), state.client.take())
        };
        if let Some(client) = client {
            // It may have ended in this moment.
            let _ = pidfd_send_signal(client, Signal::KILL);
        }
        let Some(worker) = worker else { return Ok(()) };
        stop(worker).context("cannot stop the worker")?;
        // Without a worker a command does the work itself, and no request can make another container any more.
        remove_containers(|arguments| {
            let output = self.command().args(arguments).output().context("cannot run beta9-worker")?;
            check(arguments, &output)
        })
        .context("cannot remove the demonstration's containers")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(&self.config).stdin(Stdio::null()).env("PATH", &self.path);
        // What the caller set for a worker of their own is not for this one.
        for name in ["BETA9_ROOT", "BETA9_CONFIG", "CONTAINER_RUNTIME"] {
            command.env_remove(name);
        }
        command.default_signals();
        command
    }

    fn open_state(&self) -> Result<MutexGuard<'_, State>> {
        let state = lock(&self.state);
        if state.is_closed {
            bail!("interrupted");
        }
        Ok(state)
    }
}

fn remove_containers(run: impl Fn(&[&str]) -> Result<String>) -> Result<()> {
    let listed = run(&["ps", "--all", "--output", "json"])?;
    let listed: Value = serde_json::from_str(&listed).context("beta9-worker ps printed no JSON")?;
    let ours = listed
        .as_array()
        .into_iter()
        .flatten()
        .filter(|container| container["name"].as_str().is_some_and(|name| name.starts_with(NAME_PREFIX)));
    for id in ours.filter_map(|container| container["id"].as_str()) {
        run(&["rm", "--force", id])?;
    }
    Ok(())
}

fn check(arguments: &[&str], output: &Output) -> Result<String> {
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let command = arguments.iter().take(2).copied().collect::<Vec<_>>().join(" ");
        bail!("beta9-worker {command} failed with {}: {}", output.status, tail(said.trim_end(), 10));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Keeps the worker's log, and says when it serves. Ends with the worker.
fn follow_log(stderr: ChildStderr, mut log: File, lines: Arc<Mutex<Vec<String>>>, serving: Sender<()>) {
    thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            let _ = writeln!(log, "{line}");
            let is_serving = line.contains(SERVING);
            lock(&lines).push(line);
            if is_serving {
                let _ = serving.send(());
            }
        }
    });
}

/// SIGTERM, and SIGKILL after the deadline.
fn stop(mut worker: Child) -> Result<()> {
    let pidfd = pidfd(&worker)?;
    // One that has ended already is stopped.
    let _ = pidfd_send_signal(&pidfd, Signal::TERM);
    let ended =
        poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&STOP_DEADLINE)).context("cannot wait")?;
    if ended == 0 {
        worker.kill()?;
    }
    worker.wait()?;
    Ok(())
}

fn pidfd(child: &Child) -> Result<OwnedFd> {
    pidfd_open(Pid::from_child(child), PidfdFlags::empty()).context("cannot open a process")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
