//! The host's side of the protocol with a VM's guest: one task owns the VM.
//!
//! ```text
//! booting ──Hello──▶ ready ──Create──▶ creating ──Created──▶ created ──Start──▶ starting ──Started──▶ running
//!                                         │ Failed                                 │ Failed             │ Exited
//!                                         ▼                                        ▼                    ▼
//!                                        the request fails, the VM waits for its end                 draining
//!                                                                                                       │ streams whole,
//!                                                                                                       ▼ or deadline
//! any ──VM ended, protocol violated, deadline──▶ lost ──▶ gone ◀── VM ended or killed ◀─ Shutdown ◀─ verdict
//! ```
//!
//! Requests come in by a bounded queue; the verdict and the end of the VM go out by a watch. The guest is
//! hostile: every id is checked, every wait has a deadline, every queue and connection count is bounded, and
//! whatever is not in the picture ends the VM with a verdict that says what the guest did.

mod copies;
mod execs;
mod frames;
mod handshake;
mod host_end;
mod listeners;
mod operate;
mod owner;
mod streams;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use beta9_runtime::{ContainerStdio, Error, ErrorKind, Marks, Result, SignalTarget};
use beta9_sys::cgroup::Cgroup;
use beta9_types::{ContainerId, ExecId, Exit, Phase, TerminalSize};
use beta9_wire::{ContainerSpec, Operation, Outcome, Process, RootDisk};
use tokio::sync::{mpsc, oneshot, watch};

use crate::engine::{Pace, Vm};

use copies::Copies;
pub(crate) use listeners::Listeners;
use owner::Owner;

/// Deadlines of everything that is asked of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deadlines {
    /// From the VM's start to `Hello`.
    pub(crate) boot: Duration,
    /// From `Create` or `Start` to its answer.
    pub(crate) answer: Duration,
    /// While draining, without a single byte moving.
    pub(crate) drain: Duration,
    /// From `Shutdown` until the guest has written everything.
    pub(crate) shutdown: Duration,
    /// From then to the end of the VMM.
    pub(crate) end: Duration,
}

impl Deadlines {
    pub(crate) fn at(pace: Pace) -> Self {
        Self {
            boot: pace.deadline(Duration::from_secs(10)),
            answer: pace.deadline(Duration::from_secs(15)),
            drain: Duration::from_secs(10),
            shutdown: pace.deadline(Duration::from_secs(2)),
            end: pace.deadline(Duration::from_millis(200)),
        }
    }
}

/// The guest did what the protocol does not allow. The text continues "the guest broke the protocol: ".
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation(String);

impl Violation {
    fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl From<beta9_wire::Error> for Violation {
    fn from(error: beta9_wire::Error) -> Self {
        Self(match std::error::Error::source(&error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        })
    }
}

/// What the owner of the VM is asked for.
pub(crate) enum Request {
    /// Prepare the container.
    Create(Box<Create>, oneshot::Sender<Result<()>>),
    /// Execute its process.
    Start(oneshot::Sender<Result<()>>),
    /// Signal its process or all of its processes.
    Signal {
        /// The kernel's number.
        number: i32,
        /// Whose.
        target: SignalTarget,
        /// Answered when it is on its way.
        reply: oneshot::Sender<Result<()>>,
    },
    /// Have the guest do something with the running container.
    Operate {
        /// Different from all others of this VM.
        number: u32,
        /// What.
        operation: Operation,
        /// Answered when the guest has answered.
        reply: oneshot::Sender<Result<Outcome>>,
    },
    /// Execute another process in the container.
    Exec(Box<Exec>, oneshot::Sender<Result<ExecExit>>),
    /// Signal a process that was executed.
    SignalExec(ExecId, i32, oneshot::Sender<Result<()>>),
    /// Change the size of a terminal: the main process's where no other is named.
    Resize(Option<ExecId>, TerminalSize, oneshot::Sender<Result<()>>),
    /// End the VM now; answered by the watch.
    Stop,
}

/// The contents of an exec request.
pub(crate) struct Exec {
    pub(crate) id: ExecId,
    pub(crate) process: Process,
    pub(crate) stdio: ContainerStdio,
}

/// How a process that was executed ended, once it has. Closed without it when the container ended first.
pub(crate) type ExecExit = watch::Receiver<Option<Exit>>;

/// The contents of a create request.
pub(crate) struct Create {
    pub(crate) root: RootDisk,
    pub(crate) spec: ContainerSpec,
    pub(crate) stdio: ContainerStdio,
}

/// What is known about the VM's end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Status {
    /// How the container ended. Never changes once it is there.
    pub(crate) verdict: Option<Exit>,
    /// Nothing of the VM runs any more, or, with an error, something of it cannot be killed.
    pub(crate) gone: Option<std::result::Result<(), String>>,
}

/// A VM whose guest has reported. Dropping every handle ends it.
#[derive(Clone)]
pub(crate) struct Sandbox {
    requests: mpsc::Sender<Request>,
    status: watch::Receiver<Status>,
    numbers: Arc<AtomicU32>,
    copies: Arc<Copies>,
    answer_deadline: Duration,
    exec_deadline: Duration,
}

impl Sandbox {
    /// Waits for the guest of a started VM to report, and hands both to a task of their own.
    ///
    /// On failure the VM is gone; when this is cancelled, it is killed.
    pub(crate) async fn open(
        vm: Vm,
        listeners: Accepting,
        container: ContainerId,
        cgroup: Cgroup,
        deadlines: Deadlines,
        marks: &Marks,
    ) -> Result<(Self, GuestKernel)> {
        let Accepting { control, stream, copy } = listeners;
        let (control, kernel) = match handshake::greet(&vm, control, &container, deadlines.boot).await {
            Ok(greeted) => greeted,
            Err(error) => {
                vm.stop(Duration::ZERO).await?;
                return Err(error);
            }
        };
        marks.reach(Phase::GuestReady);
        let copies = Arc::new(Copies::serve(copy, vm.dialer, container.clone()));
        let (requests, queue) = mpsc::channel(32);
        let (status, seen) = watch::channel(Status::default());
        let owner =
            Owner::new(vm, control, stream, container, cgroup, deadlines, queue, status, marks.clone());
        tokio::spawn(owner.run());
        let numbers = Arc::default();
        let (answer_deadline, exec_deadline) = (deadlines.answer, deadlines.answer);
        Ok((Self { requests, status: seen, numbers, copies, answer_deadline, exec_deadline }, kernel))
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<Result<T>>) -> Request) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let over = || Error::new(ErrorKind::Failed, "the VM is over");
        self.requests.send(request(reply)).await.map_err(|_| over())?;
        answer.await.map_err(|_| over())?
    }

    /// Prepares the container; comes back when only its process is missing.
    pub(crate) async fn create(&self, create: Create) -> Result<()> {
        self.ask(|reply| Request::Create(Box::new(create), reply)).await
    }

    /// Executes the container's process.
    pub(crate) async fn start(&self) -> Result<()> {
        self.ask(Request::Start).await
    }

    /// Sends a signal to the container's process, or to all of its processes.
    pub(crate) async fn signal(&self, number: i32, target: SignalTarget) -> Result<()> {
        self.ask(|reply| Request::Signal { number, target, reply }).await
    }

    /// Executes another process; comes back when it runs.
    pub(crate) async fn exec(&self, exec: Exec) -> Result<ExecExit> {
        let answer = self.ask(|reply| Request::Exec(Box::new(exec), reply));
        match tokio::time::timeout(self.exec_deadline, answer).await {
            Ok(answer) => answer,
            // Should it start after all, the owner ends it: nobody takes its answer any more.
            Err(_) => {
                let text = format!("the guest did not start it within {} s", self.exec_deadline.as_secs());
                Err(Error::new(ErrorKind::Timeout, text))
            }
        }
    }

    /// Sends a signal to a process that was executed.
    pub(crate) async fn signal_exec(&self, exec: ExecId, number: i32) -> Result<()> {
        self.ask(|reply| Request::SignalExec(exec, number, reply)).await
    }

    /// Changes the size of a terminal.
    pub(crate) async fn resize(&self, exec: Option<ExecId>, size: TerminalSize) -> Result<()> {
        self.ask(|reply| Request::Resize(exec, size, reply)).await
    }

    /// Waits for the verdict. May be cancelled and repeated.
    pub(crate) async fn verdict(&self) -> Exit {
        let mut status = self.status.clone();
        let verdict = status.wait_for(|status| status.verdict.is_some()).await;
        let verdict = verdict.ok().and_then(|status| status.verdict.clone());
        verdict.unwrap_or_else(|| {
            Exit::lost(beta9_types::ExitReason::SupervisorLost, "the task that owned the VM is gone")
        })
    }

    /// Ends the VM if it is not ending by itself, and waits until nothing of it runs.
    pub(crate) async fn stop(&self) -> Result<()> {
        // It fails only when the owner has finished.
        let _ = self.requests.send(Request::Stop).await;
        let mut status = self.status.clone();
        match status.wait_for(|status| status.gone.is_some()).await.map(|status| status.gone.clone()) {
            Ok(Some(Err(message))) => Err(Error::new(ErrorKind::Timeout, message)),
            _ => Ok(()),
        }
    }
}

/// The listeners that the sandbox accepts from.
pub(crate) struct Accepting {
    pub(crate) control: tokio::net::UnixListener,
    pub(crate) stream: tokio::net::UnixListener,
    pub(crate) copy: tokio::net::UnixListener,
}

/// What the guest calls its kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GuestKernel(pub(crate) String);

/// A guest's words, fit for a message: bounded and without control characters.
fn printable(text: &str, limit: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(limit).collect()
}
