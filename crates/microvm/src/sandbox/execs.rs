//! The processes beside the container's main one, from the request to the report of their end.

use std::collections::HashMap;
use std::time::Duration;

use beta9_runtime::{ContainerStdio, Error, ErrorKind, Result};
use beta9_types::{ExecId, Exit};
use beta9_wire::{GuestExit, StartFailure};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::streams::{Outgoing, Received, Streams};
use super::{ExecExit, Violation};

/// What a guest has said that it sent arrives within this time, or moves.
const MOVE_DEADLINE: Duration = Duration::from_secs(10);

type Reply = oneshot::Sender<Result<ExecExit>>;

struct Execution {
    /// Until it runs.
    reply: Option<Reply>,
    exit: watch::Sender<Option<Exit>>,
    outgoing: Outgoing,
}

/// Those of one container, by their ids.
#[derive(Default)]
pub(super) struct Execs(HashMap<ExecId, Execution>);

/// What the owner does after an execution has started.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Yes,
    /// Whoever asked for it has given up.
    No,
}

impl Execs {
    /// Whether there is one of this name.
    pub(super) fn contains(&self, id: &ExecId) -> bool {
        self.0.contains_key(id)
    }

    /// One that the guest is asked for.
    pub(super) fn add(&mut self, id: ExecId, stdio: ContainerStdio, streams: &Streams, reply: Reply) {
        let outgoing = streams.expect(Some(id.clone()), stdio);
        let execution = Execution { reply: Some(reply), exit: watch::Sender::new(None), outgoing };
        self.0.insert(id, execution);
    }

    /// The guest says that it runs.
    pub(super) fn started(&mut self, id: &ExecId) -> std::result::Result<Wanted, Violation> {
        let execution = self.0.get_mut(id).ok_or_else(|| unknown(id))?;
        let reply = execution.reply.take().ok_or_else(|| Violation::new("it started a process twice"))?;
        match reply.send(Ok(execution.exit.subscribe())) {
            Ok(()) => Ok(Wanted::Yes),
            Err(_) => Ok(Wanted::No),
        }
    }

    /// The guest says that it could not be executed.
    pub(super) fn failed(&mut self, id: &ExecId, error: Error) -> std::result::Result<(), Violation> {
        let execution = self.0.remove(id).ok_or_else(|| unknown(id))?;
        let reply = execution.reply.ok_or_else(|| Violation::new("a process that runs failed to start"))?;
        let _ = reply.send(Err(error));
        Ok(())
    }

    /// The guest says that it has ended. Its exit is told when all that it wrote is here.
    pub(super) fn exited(&mut self, id: &ExecId, exit: GuestExit) -> std::result::Result<(), Violation> {
        let Execution { reply, exit: sender, outgoing } = self.0.remove(id).ok_or_else(|| unknown(id))?;
        if reply.is_some() {
            return Err(Violation::new("a process ended that it had not started"));
        }
        if exit.signal > 64 {
            return Err(Violation::new(format!("it named signal {}", exit.signal)));
        }
        tokio::spawn(async move {
            let Outgoing { stdout, stderr } = outgoing;
            let whole =
                tokio::join!(has_arrived(stdout, exit.stdout_bytes), has_arrived(stderr, exit.stderr_bytes));
            let mut told = match exit.signal {
                0 => Exit::exited(exit.code),
                number => Exit::signaled(number),
            };
            if whole != (Arrival::Whole, Arrival::Whole) {
                told.message = Some("its output was cut off".to_owned());
            }
            sender.send_replace(Some(told));
        });
        Ok(())
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Arrival {
    Whole,
    Cut,
}

/// Waits until `total` bytes of a stream are in its pipe. A reader of the pipe may take its time; a guest may not.
async fn has_arrived(mut stream: watch::Receiver<Received>, total: u64) -> Arrival {
    loop {
        let Received { bytes, waits, end } = *stream.borrow_and_update();
        if bytes >= total {
            return Arrival::Whole;
        }
        if end.is_some() {
            return Arrival::Cut;
        }
        match timeout(MOVE_DEADLINE, stream.changed()).await {
            Ok(Ok(())) => {}
            Err(_) if waits => {}
            Ok(Err(_)) | Err(_) => return Arrival::Cut,
        }
    }
}

fn unknown(id: &ExecId) -> Violation {
    Violation::new(format!("it spoke of process {id}, which it was not asked for"))
}

/// A guest's failure in the words of a runtime.
pub(super) fn start_failure(failure: StartFailure, message: String) -> Error {
    let kind = match failure {
        StartFailure::Setup => ErrorKind::Failed,
        StartFailure::CannotExecute => ErrorKind::CannotExecute,
        StartFailure::NotFound => ErrorKind::NotFound,
    };
    Error::new(kind, message)
}
