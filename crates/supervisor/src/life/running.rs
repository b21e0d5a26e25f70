//! While a container runs: what is asked of it is done, and its end is waited for.
//!
//! ```text
//! running ──stop──▶ its stop signal ──grace is over──▶ SIGKILL ──it is still there──▶ given up: its runtime is ended
//! ```

use std::sync::Arc;
use std::time::Duration;

use beta9_runtime::{Container, Operations, SignalTarget};
use beta9_types::{ContainerState, Exit};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Life, SIGKILL, next_command};
use crate::operate::{self, Answer, Ask, Operation, Refusal};
use crate::server::Command;

/// A container that survives SIGKILL for so long is ended from outside.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// A signal that was being sent when the container ended is answered within this time.
const SEND_DEADLINE: Duration = Duration::from_secs(2);

impl Life {
    /// Whether a signal asks for the container's end, after which no policy starts it again.
    pub(super) fn ends(&self, number: i32) -> bool {
        number == SIGKILL || number == self.record.stop_signal.get()
    }

    /// Waits for the verdict and passes on signals and operations meanwhile.
    pub(super) async fn watch_over(&mut self, container: &mut dyn Container) -> Exit {
        let pid = container.pid();
        let (signals, operations) = (container.signals(), container.operations());
        let mut deadline = Deadline::None;
        let mut sends = JoinSet::new();
        let mut operating = JoinSet::new();
        let mut is_changing = false;
        let send = |number, target| {
            let signals = Arc::clone(&signals);
            async move { signals.send(number, target).await.map_err(|e| e.chain()) }
        };
        loop {
            let at = deadline.at();
            tokio::select! {
                exit = container.exit() => {
                    // Whoever sent the signal that ended it gets an answer.
                    let _ = timeout(SEND_DEADLINE, async { while sends.join_next().await.is_some() {} }).await;
                    return exit;
                }
                command = next_command(&mut self.inbox) => match command {
                    Command::Signal { number, all, done } => {
                        if self.ends(number) {
                            self.restarts.stop();
                        }
                        let target = if all { SignalTarget::All } else { SignalTarget::Main };
                        let thaw = (number == SIGKILL).then(|| self.thaw(&operations)).flatten();
                        let sending = send(number, target);
                        let again = send(number, target);
                        sends.spawn(async move {
                            let mut sent = sending.await;
                            if let Some(thaw) = thaw {
                                thaw.await;
                                // A runtime that takes no signals for a frozen container takes them now.
                                if sent.is_err() {
                                    sent = again.await;
                                }
                            }
                            drop(done.send(sent));
                        });
                    }
                    Command::Stop { grace, signal } => {
                        self.restarts.stop();
                        let number = signal.unwrap_or(self.record.stop_signal).get();
                        let thaw = self.thaw(&operations);
                        let (sending, again) = (send(number, SignalTarget::Main), send(number, SignalTarget::Main));
                        sends.spawn(async move {
                            let sent = sending.await;
                            if let Some(thaw) = thaw {
                                thaw.await;
                                if sent.is_err() {
                                    drop(again.await);
                                }
                            }
                        });
                        deadline = deadline.sooner(Deadline::Kill(Instant::now() + grace));
                    }
                    Command::Ask(Ask::Copying { done }) => drop(done.send(Ok(Arc::clone(&operations)))),
                    Command::Ask(Ask::Operation { operation, done }) => {
                        if let Operation::Restart { policy } = operation {
                            self.restarts.follow(policy);
                        }
                        if let Operation::Ports { change } = &operation {
                            let changing = self.network.change_ports(&self.directory, change.clone());
                            operating.spawn(async move {
                                let outcome = changing.await.map(|()| Answer::Done).map_err(Refusal::new);
                                operate::Over { operation, outcome, done }
                            });
                            continue;
                        }
                        match operate::refusal(&operation, &self.updates.borrow().state.state, is_changing) {
                            Some(refusal) => drop(done.send(Err(refusal))),
                            None => {
                                is_changing |= matches!(operation, Operation::Pause | Operation::Resume);
                                operating.spawn(operate::run(Arc::clone(&operations), operation, done));
                            }
                        }
                    }
                },
                Some(Ok(over)) = operating.join_next() => {
                    let operate::Over { operation, outcome, done } = over;
                    let is_done = matches!(outcome, Ok(Answer::Done));
                    match operation {
                        Operation::Pause if is_done => self.publish(ContainerState::Paused { pid }, false),
                        Operation::Resume if is_done => self.publish(ContainerState::Running { pid }, false),
                        _ => {}
                    }
                    is_changing &= !matches!(operation, Operation::Pause | Operation::Resume);
                    drop(done.send(outcome));
                }
                () = sleep_until(at.unwrap_or_else(Instant::now)), if at.is_some() => match deadline {
                    Deadline::Kill(_) => {
                        let sending = send(SIGKILL, SignalTarget::Main);
                        sends.spawn(async move { drop(sending.await); });
                        deadline = Deadline::GiveUp(Instant::now() + KILL_DEADLINE);
                    }
                    _ => {
                        let text = "it did not end after SIGKILL, so its runtime was ended";
                        return Exit { message: Some(text.to_owned()), ..Exit::signaled(9) };
                    }
                },
                Some(_) = sends.join_next() => {}
            }
        }
    }

    /// What lets a frozen container go on, so that it can end; `None` where it is not frozen.
    fn thaw(&self, operations: &Arc<dyn Operations>) -> Option<impl Future<Output = ()> + use<>> {
        let is_frozen = matches!(self.updates.borrow().state.state, ContainerState::Paused { .. });
        let (operations, container) = (Arc::clone(operations), self.record.id.clone());
        is_frozen.then_some(async move {
            if let Err(error) = operations.resume().await {
                tracing::warn!(%container, error = error.chain(), "a frozen container that is to end stays frozen");
            }
        })
    }
}

/// When patience with a container that was told to stop ends.
#[derive(Debug, Clone, Copy)]
enum Deadline {
    None,
    /// SIGKILL is sent then.
    Kill(Instant),
    /// Its runtime is ended then.
    GiveUp(Instant),
}

impl Deadline {
    fn at(self) -> Option<Instant> {
        match self {
            Self::None => None,
            Self::Kill(at) | Self::GiveUp(at) => Some(at),
        }
    }

    /// A second stop may shorten the grace of the first, never lengthen it.
    fn sooner(self, other: Self) -> Self {
        match (self.at(), other.at()) {
            (Some(mine), Some(theirs)) if mine <= theirs => self,
            (Some(_), None) => self,
            _ => other,
        }
    }
}
