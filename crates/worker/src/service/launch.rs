//! Starting a supervisor: an exec of this very program that outlives this process.

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::Duration;

use beta9_supervisor::{ContainerDirectory, Purpose};
use beta9_sys::command::CommandExtra;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::error::{Error, ErrorKind, Result};

/// A supervisor opens its socket in milliseconds; cleaning up after another may take its kill deadlines.
const READY_DEADLINE: Duration = Duration::from_secs(30);
const RECOVERY_DEADLINE: Duration = Duration::from_secs(60);
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
    let mut child = spawn(directory, Purpose::Start, Stdio::piped())?;
    let stdout = child.stdout.take();
    let mut line = String::new();
    let ready = async {
        if let Some(stdout) = stdout {
            // End-of-file without the line means that it died.
            let _ = BufReader::new(stdout).read_line(&mut line).await;
        }
    };
    let answered = tokio::time::timeout(READY_DEADLINE, ready).await;
    let is_ready = answered.is_ok() && line.trim() == "ready";
    // Whoever starts a process collects it; without a daemon that falls to init when we are gone.
    tokio::spawn(async move { child.wait().await });
    if is_ready { Ok(()) } else { Err(unready(directory)) }
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
    if purpose == Purpose::Recover {
        command.arg("--recover");
    }
    command.stdin(Stdio::null()).stdout(stdout).stderr(log).new_session();
    Command::from(command).spawn().map_err(|e| Error::internal("start a supervisor", e))
}

fn unready(directory: &ContainerDirectory) -> Error {
    let said = std::fs::read_to_string(directory.supervisor_log()).unwrap_or_default();
    let start = said.char_indices().rev().nth(SAID_BYTES).map_or(0, |(index, _)| index);
    let said = said[start..].trim();
    let text = match said {
        "" => "the container's supervisor did not start and did not say why".to_owned(),
        said => format!("the container's supervisor did not start: {said}"),
    };
    Error::new(ErrorKind::Internal, text)
}
