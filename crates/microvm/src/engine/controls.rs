//! What is changed of a VM while it runs, through the same connection that its sign of life comes by: an engine answers one
//! question at a time, and a VMM that hangs at one is the watchdog's.

use beta9_runtime::{Error, ErrorKind, Result};
use tokio::sync::{mpsc, oneshot};

use super::DiskLimit;

/// Changes that may wait for their turn.
const QUEUE: usize = 8;

/// Something to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// What each disk may do from now on, all of it.
    Disks(DiskLimit),
    /// How much of the guest's memory its balloon holds.
    Balloon {
        /// MiB.
        taken: u32,
        /// MiB of the guest's memory, with what is in the balloon.
        of: u32,
    },
}

/// A change that somebody waits for.
pub(super) struct Wish {
    pub(super) change: Change,
    pub(super) done: oneshot::Sender<Result<()>>,
}

/// The way to change a VM. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Controls(mpsc::Sender<Wish>);

impl Controls {
    /// A way, and where what comes by it arrives.
    pub(super) fn new() -> (Self, mpsc::Receiver<Wish>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(sender), receiver)
    }

    /// The way to change a VM that cannot be changed, yet or any more.
    pub(crate) fn none() -> Self {
        Self::new().0
    }

    /// Has it changed; comes back when the engine has agreed. Whoever serves this keeps a deadline.
    pub(crate) async fn change(&self, change: Change) -> Result<()> {
        let over = || Error::new(ErrorKind::Failed, "the VM is over");
        let (done, outcome) = oneshot::channel();
        self.0.send(Wish { change, done }).await.map_err(|_| over())?;
        outcome.await.map_err(|_| over())?
    }
}
