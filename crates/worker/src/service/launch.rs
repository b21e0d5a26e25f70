//! Starting a supervisor: an exec of this very program that outlives this process.

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::Duration;

use beta9_supervisor::{ContainerDirectory, Purpose};
use beta9_sys::command::CommandExtra;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};

use crate::error::{Error, ErrorKind, Result};

/// A supervisor opens its socket in milliseconds; cleaning up after another may take its kill deadlines.
const READY_DEADLINE: Duration = Duration::from_secs(30);
const RECOVERY_DEADLINE: Duration = Duration::from_secs(60);
/// To lend files out a VM is booted, after another copy or a start that is just over.
const LEND_DEADLINE: Duration = Duration::from_secs(150);
/// How much of what a supervisor said is repeated in an error.
const SAID_BYTES: usize = 2000;

/// This program, by a path that stays true when its file is replaced by an upgrade, under its own name. Nothing of the
/// caller's environment is passed on but `PATH`, along which programs are found.
pub(crate) fn own_program() -> std::process::Command {
    let mut command = std::process::Command::new("/proc/self/exe");
    command.arg0("beta9-worker").env_clear().envs(std::env::vars_os().filter(|(name, _)| name == "PATH"));
    command
}

/// Starts the supervisor of a created container. Returns when its socket accepts clients.
pub(super) async fn start(directory: &ContainerDirectory) -> Result<()> {
    let child = spawn(directory, Purpose::Start, Stdio::piped())?;
    let (is_ready, _) = is_ready(child, READY_DEADLINE).await;
    if is_ready { Ok(()) } else { Err(unready(directory)) }
}

/// While it is there, the files of a container that does not run are lent out. Whoever lends them learns of its end, also
/// by the end of this process.
#[derive(Debug)]
pub(super) struct Loan(#[expect(dead_code, reason = "held open")] Option<ChildStdout>);

/// Has the files of a container that does not run lent out. Returns when they can be copied.
pub(super) async fn lend(directory: &ContainerDirectory) -> Result<Loan> {
    let said_before = std::fs::metadata(directory.supervisor_log()).map_or(0, |meta| meta.len());
    let child = spawn(directory, Purpose::Lend, Stdio::piped())?;
    if let (true, stdout) = is_ready(child, LEND_DEADLINE).await {
        return Ok(Loan(stdout));
    }
    let said = said_since(directory, said_before);
    let why =
        said.lines().rev().find_map(|line| line.strip_prefix("error: ")).unwrap_or("it did not say why");
    Err(Error::new(ErrorKind::Precondition, format!("its files cannot be reached: {why}")))
}

/// Whether a supervisor says that it is ready before it ends, and its stdout, on which it says no more.
async fn is_ready(mut child: Child, deadline: Duration) -> (bool, Option<ChildStdout>) {
    let mut line = String::new();
    let mut stdout = child.stdout.take();
    let ready = async {
        if let Some(stdout) = &mut stdout {
            // End-of-file without the line means that it died.
            let _ = BufReader::new(stdout).read_line(&mut line).await;
        }
    };
    let answered = tokio::time::timeout(deadline, ready).await;
    // Whoever starts a process collects it; without a daemon that falls to init when we are gone.
    tokio::spawn(async move { child.wait().await });
    (answered.is_ok() && line.trim() == "ready", stdout)
}

/// Has a supervisor clean up after one that died. Returns when it is done.
pub(super) async fn recover(directory: &ContainerDirectory) -> Result<()> {
    let mut child = spawn(directory, Purpose::Recover, Stdio::null())?;
    match tokio::time::timeout(RECOVERY_DEADLINE, child.wait()).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(e)) => Err(Error::internal("wait for the recovery of a container", e)),
        Err(_) => {
            let text = format!("the recovery in {} does not end", directory.path().display());
            Err(Error::new(ErrorKind::Timeout, text))
        }
    }
}

fn spawn(directory: &ContainerDirectory, purpose: Purpose, stdout: Stdio) -> Result<Child> {
    let log_path = directory.supervisor_log();
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log_path)
        .map_err(|e| Error::internal(format!("open {}", log_path.display()), e))?;
    let mut command = own_program();
    command.arg("supervise").arg(directory.path()).current_dir("/");
    match purpose {
        Purpose::Start => {}
        Purpose::Recover => drop(command.arg("--recover")),
        Purpose::Lend => drop(command.arg("--lend")),
    }
    command.stdin(Stdio::null()).stdout(stdout).stderr(log).new_session();
    Command::from(command).spawn().map_err(|e| Error::internal("start a supervisor", e))
}

fn said_since(directory: &ContainerDirectory, before: u64) -> String {
    let mut said = String::new();
    let read = std::fs::File::open(directory.supervisor_log()).and_then(|mut file| {
        file.seek(SeekFrom::Start(before))?;
        file.read_to_string(&mut said)
    });
    // What cannot be read was not said.
    if read.is_err() {
        said.clear();
    }
    said
}

fn unready(directory: &ContainerDirectory) -> Error {
    let said = said_since(directory, 0);
    let start = said.char_indices().rev().nth(SAID_BYTES).map_or(0, |(index, _)| index);
    let said = said[start..].trim();
    let text = match said {
        "" => "the container's supervisor did not start and did not say why".to_owned(),
        said => format!("the container's supervisor did not start: {said}"),
    };
    Error::new(ErrorKind::Internal, text)
}
