//! Who is alive: a lock that the kernel releases when its holder ends, however it ends.
//!
//! A process id could have been given to another process; a lock cannot.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;

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

/// The lock of a supervisor; held until it is dropped.
pub(crate) struct SupervisorLock(#[expect(dead_code, reason = "held for its lock")] File);

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
