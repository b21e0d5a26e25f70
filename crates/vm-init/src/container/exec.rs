//! Another process of a running container, owned by one thread from its start to the report of its end.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use beta9_sys::reaper::ChildExit;
use beta9_types::{ContainerId, ExecId, TerminalSize};
use beta9_wire::{FromGuest, GuestExit, Process};
use rustix::process::Pid;

use super::group::Door;
use super::streams::{Streams, Whose};
use crate::failure::{Context, Failure, Result};
use crate::machine::Machine;
use crate::report;
use crate::stage::{Stage, set_size};

/// What the host wants to be executed.
pub(crate) struct ExecOrder {
    pub(crate) exec: ExecId,
    pub(crate) process: Box<Process>,
}

/// The processes of one container that are executing, by their ids.
#[derive(Clone, Default)]
pub(super) struct Execs(Arc<Mutex<HashMap<ExecId, Executing>>>);

struct Executing {
    pid: Pid,
    terminal: Option<File>,
}

/// What a process needs of its container.
pub(super) struct Joined {
    pub(super) container: ContainerId,
    /// A handle of the container's init.
    pub(super) init: OwnedFd,
    pub(super) door: Door,
}

impl Execs {
    /// Executes a process on a thread of its own, which reports what becomes of it.
    pub(super) fn start(&self, machine: &Arc<Machine>, joined: Joined, order: ExecOrder) {
        let (container, exec) = (joined.container.clone(), order.exec.clone());
        let (execs, for_thread) = (self.clone(), Arc::clone(machine));
        let thread = std::thread::Builder::new().name("exec".to_owned()).spawn(move || {
            let (container, exec) = (joined.container.clone(), order.exec.clone());
            if let Err(failure) = execs.own(&for_thread, joined, order) {
                fail(&for_thread, container, exec, failure);
            }
        });
        if let Err(error) = thread {
            fail(machine, container, exec, Failure::setup("start a thread", &error));
        }
    }

    fn own(&self, machine: &Machine, joined: Joined, order: ExecOrder) -> Result<()> {
        let Joined { container, init, door } = joined;
        let ExecOrder { exec, process } = order;
        let (mut streams, pipes) = Streams::open(&container, Whose::Exec(&exec), &process)?;
        let (sender, ended) = sync_channel(1);
        let on_exit = move |exit| {
            let _ = sender.send(exit);
        };
        let (pid, terminal) =
            Stage::join(&machine.reaper, &init, &process, pipes, |pid| door.add(pid), on_exit)?;
        drop(init);
        if let Some(terminal) = &terminal {
            streams.show(terminal)?;
        }
        self.lock().insert(exec.clone(), Executing { pid, terminal });
        machine.reports.send(&FromGuest::ExecStarted { container: container.clone(), exec: exec.clone() });

        let exit = ended.recv().context(|| "wait for a process")?;
        self.lock().remove(&exec);
        let totals = streams.drain(None);
        let (code, signal) = match exit {
            ChildExit::Code(code) => (code, 0),
            ChildExit::Signal(signal) => (0, signal),
        };
        let (stdout_bytes, stderr_bytes) = (totals.stdout, totals.stderr);
        let exit = GuestExit { code, signal, oom: false, stdout_bytes, stderr_bytes };
        machine.reports.send(&FromGuest::ExecExited { container, exec, exit });
        Ok(())
    }

    /// Sends a signal to one of them. One that has just ended is no mistake.
    pub(super) fn signal(&self, exec: &ExecId, signal: i32) {
        let execs = self.lock();
        if let Some(Executing { pid, .. }) = execs.get(exec)
            && let Err(error) = beta9_sys::signals::send(*pid, signal)
        {
            report::warn(&format!("send signal {signal}: {error}"));
        }
    }

    /// Changes the size of the terminal of one of them.
    pub(super) fn resize(&self, exec: &ExecId, size: TerminalSize) {
        let execs = self.lock();
        if let Some(Executing { terminal: Some(terminal), .. }) = execs.get(exec)
            && let Err(error) = set_size(terminal, size)
        {
            report::warn(&format!("resize a terminal: {error}"));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ExecId, Executing>> {
        // A panic ends the machine.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reports that a process could not be executed.
pub(crate) fn fail(machine: &Machine, container: ContainerId, exec: ExecId, failure: Failure) {
    let Failure { kind, message } = failure;
    machine.reports.send(&FromGuest::ExecFailed { container, exec, failure: kind, message });
}
