//! Who is alive: a lock that the kernel releases when its holder ends, however it ends.
//!
//! A process id could have been given to another process; a lock cannot.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::time::Duration;

use crate::directory::ContainerDirectory;
use crate::error::{Error, ErrorKind, Result};

/// Whether a container's supervisor lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// It holds its lock.
    Alive,
    /// Nobody holds the lock.
    Gone,
}

/// Asks whether the supervisor of the container in `directory` lives.
pub fn liveness(directory: &ContainerDirectory) -> Result<Liveness> {
    match try_lock(directory)? {
        Some(_) => Ok(Liveness::Gone),
        None => Ok(Liveness::Alive),
    }
}

/// Waits until the supervisor of the container in `directory` has ended, for `patience` at most.
pub fn await_end(directory: &ContainerDirectory, patience: Duration) {
    // One whose lock is gone has ended as well.
    let _ = lock_existing(directory, patience);
}

/// The lock of a supervisor; held until it is dropped.
pub(crate) struct SupervisorLock(#[expect(dead_code, reason = "held for its lock")] File);

/// Takes the lock, if need be when its holder has ended, which it is given `patience` for. `None` when it has not.
///
/// A thread of its own waits for the kernel; it is gone when the lock is there, and ends with the process otherwise.
pub(crate) fn lock_within(
    directory: &ContainerDirectory,
    patience: Duration,
) -> Result<Option<SupervisorLock>> {
    match try_lock(directory)? {
        Some(lock) => Ok(Some(lock)),
        None => lock_existing(directory, patience),
    }
}

/// The same for a lock that is there: it is not made where it is not.
fn lock_existing(directory: &ContainerDirectory, patience: Duration) -> Result<Option<SupervisorLock>> {
    let path = directory.lock();
    let file = File::open(&path).map_err(|e| Error::file("open", &path, e))?;
    let (sender, locked) = std::sync::mpsc::channel();
    let waiter = std::thread::Builder::new()
        .spawn(move || {
            let _ = sender.send(file.lock().map(|()| file));
        })
        .map_err(|e| Error::caused(ErrorKind::File, "start a thread", e))?;
    match locked.recv_timeout(patience) {
        Ok(file) => {
            let _ = waiter.join();
            file.map(|file| Some(SupervisorLock(file))).map_err(|e| Error::file("lock", &path, e))
        }
        Err(_) => Ok(None),
    }
}

/// Takes the lock. `None` when somebody else has it.
pub(crate) fn try_lock(directory: &ContainerDirectory) -> Result<Option<SupervisorLock>> {
    let path = directory.lock();
    let file = match OpenOptions::new().create(true).truncate(false).write(true).open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(Error::caused(ErrorKind::Gone, format!("{} is gone", directory.path().display()), e));
        }
        Err(e) => return Err(Error::file("open", &path, e)),
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(SupervisorLock(file))),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) => Err(Error::file("lock", &path, e)),
    }
}
