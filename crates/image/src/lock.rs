//! Locks between processes: `flock` on files that are never removed, so that two holders never lock two files.
//!
//! A wait has no deadline of its own. It ends when the holder is done or dead, and what holders do is bounded:
//! the applier by its limits, the tools by their deadline.

use std::fs::{File, OpenOptions};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::{Error, Result};

/// A held lock; dropping it lets go.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
}

impl Drop for Lock {
    /// Says so, rather than leave it to the descriptor's end: a program that is just being started has a copy of that.
    fn drop(&mut self) {
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

impl Lock {
    /// Waits until nobody else holds the lock.
    pub(crate) fn exclusive(path: &Path) -> Result<Self> {
        match Self::try_exclusive(path)? {
            Some(lock) => Ok(lock),
            None => {
                tracing::debug!(lock = %path.display(), "waiting for another builder");
                Self::take(path, FlockOperation::LockExclusive)
            }
        }
    }

    /// Takes the lock if nobody holds it, shared or not.
    pub(crate) fn try_exclusive(path: &Path) -> Result<Option<Self>> {
        let file = open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { file })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(Error::io("lock", path, error)),
        }
    }

    /// Holds the lock together with others that share it.
    pub(crate) fn shared(path: &Path) -> Result<Self> {
        Self::take(path, FlockOperation::LockShared)
    }

    fn take(path: &Path, operation: FlockOperation) -> Result<Self> {
        let file = open(path)?;
        loop {
            match flock(&file, operation) {
                Ok(()) => return Ok(Self { file }),
                Err(Errno::INTR) => {}
                Err(error) => return Err(Error::io("lock", path, error)),
            }
        }
    }
}

fn open(path: &Path) -> Result<File> {
    let opened = OpenOptions::new().create(true).truncate(false).write(true).open(path);
    opened.map_err(|e| Error::io("open the lock", path, e))
}
