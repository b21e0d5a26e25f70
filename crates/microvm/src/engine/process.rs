//! A program that serves one VM: started inside the container's cgroup, ended with its owner.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use beta9_runtime::{Error, ErrorKind, Result};
use beta9_sys::cgroup::Cgroup;
use beta9_sys::command::CommandExtra;
use beta9_sys::reaper::{ChildExit, Reaper};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::watch;

use crate::OwnProgram;

/// How long a killed process may take to be gone. Only a process stuck in the kernel takes longer.
pub(crate) const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// What a VM's programs are started with.
#[derive(Clone)]
pub(crate) struct Host {
    /// The owner of every child.
    pub(crate) reaper: Reaper,
    /// Where they live.
    pub(crate) cgroup: Cgroup,
    /// The network namespace they join; this process's own where absent.
    pub(crate) network: Option<PathBuf>,
    /// This program, which confines others.
    pub(crate) this: OwnProgram,
}

/// Output of a child, for a [`drain`](super::drain).
pub(crate) struct Outputs {
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// A running child. Dropping it kills it.
pub(crate) struct Process {
    name: &'static str,
    pid: Pid,
    reach: Reach,
}

/// A way to a process that does not own it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Reach {
    /// Signals the process and never a later one of the same number.
    handle: Arc<OwnedFd>,
    ended: watch::Receiver<Option<ChildExit>>,
}

impl Reach {
    /// Waits for its end. May be cancelled and repeated.
    pub(crate) async fn ended(&self) -> ChildExit {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await.map(|exit| *exit) {
            Ok(Some(exit)) => exit,
            // The reaper's table drops a callback only by calling it.
            _ => std::future::pending().await,
        }
    }

    /// Sends SIGKILL. Sending it to a process that has ended is fine.
    pub(crate) fn kill(&self) {
        if self.ended.borrow().is_none() {
            let _ = pidfd_send_signal(self.handle.as_fd(), Signal::KILL);
        }
    }
}

impl Process {
    /// Starts `command` with both outputs on pipes.
    pub(crate) fn spawn(
        host: &Host,
        name: &'static str,
        mut command: Command,
        stdin: Stdio,
    ) -> Result<(Self, Outputs)> {
        let entrance = host.cgroup.entrance().map_err(|e| {
            Error::caused(ErrorKind::Failed, format!("start {name} in the container's cgroup"), e)
        })?;
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.enter_cgroup(entrance).new_session().die_with_parent();
        if let Some(path) = &host.network {
            let namespace = std::fs::File::open(path).map_err(|e| crate::failed("open", path, e))?;
            command.join_network(namespace.into());
        }
        let (sender, ended) = watch::channel(None);
        let program = command.get_program().to_owned();
        let child = host
            .reaper
            .spawn(&mut command, move |exit| {
                // Nobody waits for a process that was dropped.
                let _ = sender.send(Some(exit));
            })
            .map_err(|e| crate::failed("run", Path::new(&program), e))?;
        let handle = pidfd_open(child.pid, PidfdFlags::empty())
            .map_err(|e| Error::caused(ErrorKind::Failed, format!("watch the {name} process"), e))?;
        let lost = || Error::new(ErrorKind::Failed, format!("lost the output of {name}"));
        let outputs = Outputs {
            stdout: child.stdout.ok_or_else(lost)?.into(),
            stderr: child.stderr.ok_or_else(lost)?.into(),
        };
        Ok((Self { name, pid: child.pid, reach: Reach { handle: Arc::new(handle), ended } }, outputs))
    }

    /// Takes over a process that this one inherited, as a subreaper, from one that it started.
    pub(crate) fn adopt(host: &Host, name: &'static str, pid: Pid) -> Result<Self> {
        let (sender, ended) = watch::channel(None);
        host.reaper.adopt(pid, move |exit| {
            let _ = sender.send(Some(exit));
        });
        // The number stays the process's until the reaper has collected it, which `ended` tells of.
        let handle = pidfd_open(pid, PidfdFlags::empty())
            .map_err(|e| Error::caused(ErrorKind::Failed, format!("watch the {name} process"), e))?;
        Ok(Self { name, pid, reach: Reach { handle: Arc::new(handle), ended } })
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// A way to it that may outlive this.
    pub(crate) fn reach(&self) -> Reach {
        self.reach.clone()
    }

    /// Waits for its end. May be cancelled and repeated.
    pub(crate) async fn ended(&self) -> ChildExit {
        self.reach.ended().await
    }

    /// Sends SIGKILL. Sending it to a process that has ended is fine.
    pub(crate) fn kill(&self) {
        self.reach.kill();
    }

    /// Kills it and waits until it is gone.
    pub(crate) async fn end(&self) -> Result<()> {
        self.kill();
        tokio::time::timeout(KILL_DEADLINE, self.ended()).await.map(drop).map_err(|_| {
            let seconds = KILL_DEADLINE.as_secs();
            Error::new(
                ErrorKind::Timeout,
                format!("{} (pid {}) survived SIGKILL for {seconds} s", self.name, self.pid),
            )
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// How a program ended, for a sentence that starts with its name.
pub(crate) fn describe(exit: ChildExit) -> String {
    match exit {
        ChildExit::Code(code) => format!("ended with code {code}"),
        ChildExit::Signal(number) => format!("was ended by signal {number}"),
    }
}
