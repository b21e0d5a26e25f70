//! Operations on the container that runs in a VM.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use beta9_runtime::{Error, ErrorKind, Result};
use beta9_types::{CopyIn, CopyOut};
use beta9_wire::{Operation, Outcome};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::copies::{Connection, Stopped};
use super::host_end::{Input, Output};
use super::{Request, Sandbox, printable};

/// How long the verdict on a copy may take after its last byte.
const VERDICT_DEADLINE: Duration = Duration::from_secs(60);
/// Longest message of a guest that is repeated to a user.
const MAX_MESSAGE: usize = 1000;

impl Sandbox {
    /// Has the guest do something that takes no time of its own.
    pub(crate) async fn operate(&self, operation: Operation) -> Result<Outcome> {
        let answer = self.ask_for(self.number(), operation).await?;
        match timeout(self.answer_deadline, verdict(answer)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let seconds = self.answer_deadline.as_secs_f32();
                Err(Error::new(ErrorKind::Timeout, format!("the guest did not answer within {seconds} s")))
            }
        }
    }

    /// Has files copied out of the container.
    pub(crate) async fn copy_out(&self, request: CopyOut, to: OwnedFd) -> Result<()> {
        let to = Output::new(to).map_err(unusable)?;
        self.copy(Operation::CopyOut(request), async |mut connection| connection.receive(to).await).await
    }

    /// Has files copied into the container.
    pub(crate) async fn copy_in(&self, request: CopyIn, from: OwnedFd) -> Result<()> {
        let from = Input::new(from).map_err(unusable)?;
        self.copy(Operation::CopyIn(request), async |mut connection| connection.send(from).await).await
    }

    async fn copy(
        &self,
        operation: Operation,
        relay: impl AsyncFnOnce(Connection) -> std::result::Result<(), Stopped>,
    ) -> Result<()> {
        let number = self.number();
        let mut expected = self.copies.expect(number);
        let answer = self.ask_for(number, operation).await?;
        let outcome = verdict(answer);
        tokio::pin!(outcome);
        let connection = tokio::select! {
            biased;
            connection = &mut expected.connection => connection.map_err(|_| over())?,
            // Without a connection it can only have failed.
            outcome = &mut outcome => return done(outcome?),
        };
        let relayed = tokio::select! {
            relayed = relay(connection) => relayed,
            outcome = &mut outcome => return done(outcome?),
        };
        match relayed {
            Ok(()) => {}
            Err(Stopped::Client) => return Err(Error::new(ErrorKind::Failed, "the copy was abandoned")),
            Err(Stopped::Guest(violation)) => {
                // It says more about its failure than a connection that breaks with it.
                if let Ok(outcome) = timeout(Duration::from_secs(2), &mut outcome).await {
                    done(outcome?)?;
                }
                return Err(Error::new(ErrorKind::Failed, format!("the guest failed: {}", violation.0)));
            }
        }
        match timeout(VERDICT_DEADLINE, outcome).await {
            Ok(outcome) => done(outcome?),
            Err(_) => Err(Error::new(ErrorKind::Timeout, "the guest does not say how the copy went")),
        }
    }

    fn number(&self) -> u32 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    async fn ask_for(&self, number: u32, operation: Operation) -> Result<oneshot::Receiver<Result<Outcome>>> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Operate { number, operation, reply };
        self.requests.send(request).await.map_err(|_| over())?;
        Ok(answer)
    }
}

async fn verdict(answer: oneshot::Receiver<Result<Outcome>>) -> Result<Outcome> {
    match answer.await.map_err(|_| over())?? {
        Outcome::Failed(failure) => {
            let kind = if failure.is_missing { ErrorKind::NotFound } else { ErrorKind::Failed };
            Err(Error::new(kind, printable(&failure.message, MAX_MESSAGE)))
        }
        outcome => Ok(outcome),
    }
}

fn done(outcome: Outcome) -> Result<()> {
    match outcome {
        Outcome::Done => Ok(()),
        _ => Err(Error::new(ErrorKind::Failed, "the guest answered something else than it was asked")),
    }
}

fn over() -> Error {
    Error::new(ErrorKind::Failed, "the VM is over")
}

fn unusable(error: std::io::Error) -> Error {
    Error::caused(ErrorKind::Failed, "use the copy's pipe", error)
}
