//! A container that an OCI runtime program created, and whose process the reaper owns.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use beta9_runtime::{Container, Error, ErrorKind, Operations, Processes, Result, SignalTarget, Signals};
use beta9_sys::cgroup::Cgroup;
use beta9_sys::reaper::{ChildExit, Reaper};
use beta9_types::{BindMount, ContainerId, Exit, RuntimeKind};
use rustix::process::{Pid, Signal};
use tokio::sync::watch;

use crate::exec::OciProcesses;
use crate::operations::{OciOperations, View, directory_view};
use crate::program::{Files, Program};
use crate::terminal::Terminal;

/// How long killed processes may take to leave their cgroup.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// The code for the last signal, 64. What is above can only be the container's own.
const LAST_SIGNAL_CODE: u8 = 128 + 64;

/// What the kernel's OOM killer means for a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OomRule {
    /// Any process may be the victim; the container is `oom` when its main process ended by SIGKILL.
    ProcessInContainer,
    /// The victim is the sandbox, whatever code it leaves behind.
    Sandbox,
}

pub(crate) struct OciContainer {
    pub(crate) id: ContainerId,
    pub(crate) program: Program,
    pub(crate) reaper: Reaper,
    pub(crate) files: Files,
    pub(crate) cgroup: Cgroup,
    pub(crate) oom: OomRule,
    pub(crate) pid: Pid,
    /// Where its files are on the host.
    pub(crate) root: PathBuf,
    pub(crate) mounts: Vec<BindMount>,
    /// The container's own directory.
    pub(crate) directory: PathBuf,
    pub(crate) ended: watch::Receiver<Option<ChildExit>>,
    pub(crate) verdict: Option<Exit>,
    pub(crate) terminal: Option<Arc<Terminal>>,
}

impl OciContainer {
    /// Has the reaper report the end of `pid`.
    pub(crate) fn watch_exit(reaper: &Reaper, pid: Pid) -> watch::Receiver<Option<ChildExit>> {
        let (sender, receiver) = watch::channel(None);
        reaper.adopt(pid, move |exit| {
            let _ = sender.send(Some(exit));
        });
        receiver
    }

    fn judge(&self, exit: ChildExit) -> Exit {
        let oom = self.cgroup.oom_kills() > 0;
        let exit = exit_of(exit, self.oom);
        match self.oom {
            OomRule::Sandbox if oom => Exit::oom(),
            OomRule::ProcessInContainer if oom && exit.code == 137 => Exit::oom(),
            _ => exit,
        }
    }
}

/// What the end of the adopted process says about the container's.
pub(crate) fn exit_of(exit: ChildExit, rule: OomRule) -> Exit {
    match exit {
        // gVisor's sandbox cannot die of its container's signal, so it returns 128+n instead.
        ChildExit::Code(code @ 129..=LAST_SIGNAL_CODE) if rule == OomRule::Sandbox => {
            Exit::signaled(code - 128)
        }
        ChildExit::Code(code) => Exit::exited(code),
        ChildExit::Signal(number) => Exit::signaled(number),
    }
}

#[async_trait]
impl Container for OciContainer {
    async fn start(&mut self) -> Result<()> {
        self.program.call(&self.reaper, &self.files, "start", &[self.id.as_str()]).await
    }

    fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    async fn exit(&mut self) -> Exit {
        if let Some(verdict) = &self.verdict {
            return verdict.clone();
        }
        let ended = self.ended.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
        let verdict = match ended {
            Some(exit) => self.judge(exit),
            // The sender lives in the reaper's table until it has sent.
            None => Exit::lost(
                beta9_types::ExitReason::SupervisorLost,
                "the exit of the container's process was lost",
            ),
        };
        self.verdict = Some(verdict.clone());
        verdict
    }

    fn signals(&self) -> Arc<dyn Signals> {
        Arc::new(OciSignals {
            id: self.id.clone(),
            program: self.program.clone(),
            reaper: self.reaper.clone(),
            files: self.files.clone(),
        })
    }

    fn operations(&self) -> Arc<dyn Operations> {
        let (kind, view) = match self.oom {
            OomRule::Sandbox => (RuntimeKind::Gvisor, directory_view(&self.root, &self.mounts)),
            OomRule::ProcessInContainer => (RuntimeKind::Runc, View::Process(self.pid())),
        };
        Arc::new(OciOperations {
            kind,
            id: self.id.clone(),
            program: self.program.clone(),
            reaper: self.reaper.clone(),
            files: self.files.clone(),
            cgroup: self.cgroup.clone(),
            view,
            directory: self.directory.clone(),
        })
    }

    fn processes(&self) -> Arc<dyn Processes> {
        Arc::new(OciProcesses {
            id: self.id.clone(),
            program: self.program.clone(),
            reaper: self.reaper.clone(),
            files: self.files.clone(),
            oom: self.oom,
            terminal: self.terminal.clone(),
        })
    }

    async fn delete(&mut self) -> Result<()> {
        delete(&self.program, &self.reaper, &self.files, &self.id, &self.cgroup).await
    }
}

/// Ends what still runs of a container and has the program forget it. Missing is fine.
pub(crate) async fn delete(
    program: &Program,
    reaper: &Reaper,
    files: &Files,
    id: &ContainerId,
    cgroup: &Cgroup,
) -> Result<()> {
    let deleted = program.call(reaper, files, "delete", &["--force", id.as_str()]).await;
    let group = cgroup.clone();
    let emptied = tokio::task::spawn_blocking(move || group.kill(KILL_DEADLINE)).await.unwrap_or(false);
    if !emptied {
        let text = format!("processes of container {id} survived SIGKILL for {} s", KILL_DEADLINE.as_secs());
        return Err(Error::new(ErrorKind::Timeout, text));
    }
    match deleted {
        Err(error) if error.to_string().contains("does not exist") => Ok(()),
        other => other,
    }
}

struct OciSignals {
    id: ContainerId,
    program: Program,
    reaper: Reaper,
    files: Files,
}

#[async_trait]
impl Signals for OciSignals {
    async fn send(&self, number: i32, target: SignalTarget) -> Result<()> {
        if Signal::from_named_raw(number).is_none() && !(34..=64).contains(&number) {
            return Err(Error::new(ErrorKind::Unsupported, format!("there is no signal {number}")));
        }
        let number = number.to_string();
        let mut args = vec![self.id.as_str(), number.as_str()];
        if target == SignalTarget::All {
            args.insert(0, "--all");
        }
        self.program.call(&self.reaper, &self.files, "kill", &args).await
    }
}
