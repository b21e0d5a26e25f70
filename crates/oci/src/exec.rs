//! Processes beside a container's main one.
//!
//! ```text
//! exec --detach ──▶ pid file ──▶ the reaper adopts that pid ──▶ its exit is the verdict
//! ```
//!
//! For runc the adopted process is the process itself. For gVisor it is the program that waits for it in the sandbox and
//! ends as it did.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use beta9_runtime::{Error, ErrorKind, ExecRequest, Execution, Processes, Result};
use beta9_sys::reaper::{ChildExit, Reaper};
use beta9_types::{ContainerId, ExecId, Exit, ExitReason, TerminalSize};
use rustix::process::Pid;
use tokio::sync::watch;

use crate::container::{OciContainer, OomRule, exit_of};
use crate::program::{ExecOptions, Files, Program};
use crate::terminal::{ConsoleSocket, Terminal};

/// The files of one start. They are gone when it is over.
pub(crate) struct ExecFiles {
    stem: PathBuf,
}

impl ExecFiles {
    const ENDINGS: [&str; 4] = ["json", "pid", "inside", "log"];

    fn new(directory: &Path, id: &ExecId) -> Self {
        Self { stem: directory.join(format!("exec-{id}")) }
    }

    fn path(&self, ending: &str) -> PathBuf {
        let mut path = self.stem.clone().into_os_string();
        path.push(".");
        path.push(ending);
        path.into()
    }

    pub(crate) fn process(&self) -> PathBuf {
        self.path("json")
    }

    pub(crate) fn pid(&self) -> PathBuf {
        self.path("pid")
    }

    /// The process's number in the container.
    pub(crate) fn inside_pid(&self) -> PathBuf {
        self.path("inside")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.path("log")
    }

    fn console(&self) -> PathBuf {
        self.path("console")
    }
}

impl Drop for ExecFiles {
    fn drop(&mut self) {
        for ending in Self::ENDINGS {
            let _ = fs::remove_file(self.path(ending));
        }
    }
}

/// Starts and reaches the processes of one container.
pub(crate) struct OciProcesses {
    pub(crate) id: ContainerId,
    pub(crate) program: Program,
    pub(crate) reaper: Reaper,
    pub(crate) files: Files,
    pub(crate) oom: OomRule,
    /// The main process's.
    pub(crate) terminal: Option<Arc<Terminal>>,
}

#[async_trait]
impl Processes for OciProcesses {
    async fn exec(&self, request: ExecRequest) -> Result<Arc<dyn Execution>> {
        let ExecRequest { id, mut process, stdio } = request;
        let files = ExecFiles::new(self.files.dir(), &id);
        process.set_terminal(Some(stdio.terminal.is_some()));
        let text = serde_json::to_vec(&process)
            .map_err(|e| Error::caused(ErrorKind::Failed, "describe a process to the runtime program", e))?;
        write_private(&files.process(), &text)?;
        let console = match stdio.terminal {
            Some(_) => Some(ConsoleSocket::bind(&files.console())?),
            None => None,
        };
        // A process in a sandbox has no number on the host to which signals could be sent.
        let options = ExecOptions { console, tells_inside_pid: self.oom == OomRule::Sandbox };
        let (pid, terminal) = self.program.exec(&self.reaper, &self.id, &files, stdio, options).await?;
        let ended = OciContainer::watch_exit(&self.reaper, pid);
        let inside = fs::read_to_string(files.inside_pid()).ok().and_then(|text| text.trim().parse().ok());
        Ok(Arc::new(OciExecution {
            id: self.id.clone(),
            program: self.program.clone(),
            reaper: self.reaper.clone(),
            files: self.files.clone(),
            oom: self.oom,
            pid,
            inside,
            ended,
            terminal,
        }))
    }

    async fn resize(&self, size: TerminalSize) -> Result<()> {
        resize(self.terminal.as_deref(), size)
    }
}

fn resize(terminal: Option<&Terminal>, size: TerminalSize) -> Result<()> {
    match terminal {
        Some(terminal) => terminal.resize(size),
        None => Err(Error::new(ErrorKind::Unsupported, "the process has no terminal")),
    }
}

/// The environment in it may be secret.
fn write_private(path: &Path, text: &[u8]) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text))
        .map_err(|e| Error::caused(ErrorKind::Failed, format!("write {}", path.display()), e))
}

struct OciExecution {
    id: ContainerId,
    program: Program,
    reaper: Reaper,
    files: Files,
    oom: OomRule,
    pid: Pid,
    inside: Option<i32>,
    ended: watch::Receiver<Option<ChildExit>>,
    terminal: Option<Terminal>,
}

#[async_trait]
impl Execution for OciExecution {
    async fn exit(&self) -> Exit {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await.ok().and_then(|exit| *exit) {
            Some(exit) => exit_of(exit, self.oom),
            // The sender lives in the reaper's table until it has sent.
            None => Exit::lost(ExitReason::SupervisorLost, "the exit of the process was lost"),
        }
    }

    async fn signal(&self, number: i32) -> Result<()> {
        if self.ended.borrow().is_some() {
            return Err(Error::new(ErrorKind::Failed, "the process has ended"));
        }
        match self.inside {
            Some(inside) => {
                let (inside, number) = (inside.to_string(), number.to_string());
                let args = ["--pid", inside.as_str(), self.id.as_str(), number.as_str()];
                self.program.call(&self.reaper, &self.files, "kill", &args).await
            }
            None => beta9_sys::signals::send(self.pid, number)
                .map_err(|e| Error::caused(ErrorKind::Failed, format!("send signal {number}"), e)),
        }
    }

    async fn resize(&self, size: TerminalSize) -> Result<()> {
        resize(self.terminal.as_ref(), size)
    }
}
