//! A container in a VM of its own.

use std::sync::Arc;

use async_trait::async_trait;
use beta9_runtime::{
    Container, Error, ErrorKind, ExecRequest, Execution, Operations, Processes, Result, SignalTarget, Signals,
};
use beta9_sys::cgroup::Cgroup;
use beta9_types::{ContainerId, ExecId, Exit, TerminalSize};
use rustix::process::Pid;

use crate::engine::{KILL_DEADLINE, VmDirectory, clear};
use crate::guest_spec::{Stdin, refuse_unsupported_process, translate_process};
use crate::knobs::Knobs;
use crate::operations::GuestOperations;
use crate::sandbox::{Exec, ExecExit, Sandbox};
use crate::share::Share;

pub(crate) struct MicrovmContainer {
    sandbox: Sandbox,
    id: ContainerId,
    vmm: Pid,
    directory: VmDirectory,
    cgroup: Cgroup,
    share: Option<Share>,
    knobs: Knobs,
}

impl MicrovmContainer {
    pub(crate) fn new(
        sandbox: Sandbox,
        id: ContainerId,
        vmm: Pid,
        directory: VmDirectory,
        cgroup: Cgroup,
        share: Option<Share>,
        knobs: Knobs,
    ) -> Self {
        Self { sandbox, id, vmm, directory, cgroup, share, knobs }
    }

    pub(crate) fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }
}

#[async_trait]
impl Container for MicrovmContainer {
    async fn start(&mut self) -> Result<()> {
        self.sandbox.start().await?;
        self.directory.mark_started()
    }

    fn pid(&self) -> u32 {
        self.vmm.as_raw_nonzero().get().unsigned_abs()
    }

    async fn exit(&mut self) -> Exit {
        self.sandbox.verdict().await
    }

    fn signals(&self) -> Arc<dyn Signals> {
        Arc::new(GuestSignals { sandbox: self.sandbox.clone() })
    }

    fn operations(&self) -> Arc<dyn Operations> {
        let (sandbox, cgroup) = (self.sandbox.clone(), self.cgroup.clone());
        Arc::new(GuestOperations { sandbox, cgroup, knobs: self.knobs.clone() })
    }

    fn processes(&self) -> Arc<dyn Processes> {
        Arc::new(GuestProcesses { sandbox: self.sandbox.clone() })
    }

    async fn delete(&mut self) -> Result<()> {
        let mut stopped = self.sandbox.stop().await;
        if let Some(share) = &self.share {
            stopped = stopped.and(share.end().await);
        }
        // Whatever the programs of the VM left behind; the cgroup is the container's alone.
        let ended = end_processes(&self.cgroup).await;
        // Also when a process of it waits for a file system that does not answer: it needs none of this any more.
        let cleared = clear(self.directory.path());
        stopped.and(ended).and(cleared)?;
        tracing::debug!(container = %self.id, "the vm is gone");
        Ok(())
    }
}

/// Kills every process of a container's cgroup and waits until it is empty.
pub(crate) async fn end_processes(cgroup: &Cgroup) -> Result<()> {
    let group = cgroup.clone();
    let emptied = tokio::task::spawn_blocking(move || group.kill(KILL_DEADLINE)).await.unwrap_or(false);
    if emptied {
        return Ok(());
    }
    let seconds = KILL_DEADLINE.as_secs();
    Err(Error::new(ErrorKind::Timeout, format!("processes of the VM survived SIGKILL for {seconds} s")))
}

struct GuestSignals {
    sandbox: Sandbox,
}

#[async_trait]
impl Signals for GuestSignals {
    async fn send(&self, number: i32, target: SignalTarget) -> Result<()> {
        check_signal(number)?;
        self.sandbox.signal(number, target).await
    }
}

fn check_signal(number: i32) -> Result<()> {
    if (1..=64).contains(&number) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Unsupported, format!("there is no signal {number}")))
}

struct GuestProcesses {
    sandbox: Sandbox,
}

#[async_trait]
impl Processes for GuestProcesses {
    async fn exec(&self, request: ExecRequest) -> Result<Arc<dyn Execution>> {
        let ExecRequest { id, process, stdio } = request;
        refuse_unsupported_process(&process)?;
        let stdin = if stdio.stdin.is_some() { Stdin::Open } else { Stdin::Closed };
        let mut process = translate_process(&process, stdin)?;
        process.terminal = stdio.terminal;
        let exit = self.sandbox.exec(Exec { id: id.clone(), process, stdio }).await?;
        Ok(Arc::new(GuestExecution { sandbox: self.sandbox.clone(), id, exit }))
    }

    async fn resize(&self, size: TerminalSize) -> Result<()> {
        self.sandbox.resize(None, size).await
    }
}

struct GuestExecution {
    sandbox: Sandbox,
    id: ExecId,
    exit: ExecExit,
}

#[async_trait]
impl Execution for GuestExecution {
    async fn exit(&self) -> Exit {
        let mut exit = self.exit.clone();
        let told = exit.wait_for(Option::is_some).await.ok().and_then(|exit| exit.clone());
        // Closed without an exit: the container has ended, and the guest kills all of it then.
        told.unwrap_or_else(|| Exit {
            message: Some("it was killed with its container".to_owned()),
            ..Exit::signaled(9)
        })
    }

    async fn signal(&self, number: i32) -> Result<()> {
        check_signal(number)?;
        self.sandbox.signal_exec(self.id.clone(), number).await
    }

    async fn resize(&self, size: TerminalSize) -> Result<()> {
        self.sandbox.resize(Some(self.id.clone()), size).await
    }
}
