//! Locks between processes: `flock` on files that stay.
//!
//! A wait has no deadline of its own. It ends when the holder is done or dead, and what holders do is bounded by what an
//! image or a volume holds.

use std::fs::{File, OpenOptions};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::{Error, Result};

/// Volumes stay as they are while somebody has this.
#[derive(Debug)]
pub struct Hold {
    _file: File,
}

impl Hold {
    pub(crate) fn shared(path: &Path) -> Result<Self> {
        Self::take(path, FlockOperation::LockShared)
    }

    pub(crate) fn exclusive(path: &Path) -> Result<Self> {
        Self::take(path, FlockOperation::LockExclusive)
    }

    fn take(path: &Path, operation: FlockOperation) -> Result<Self> {
        let opened = OpenOptions::new().create(true).truncate(false).write(true).open(path);
        let file = opened.map_err(|e| Error::file("open the lock", path, e))?;
        loop {
            match flock(&file, operation) {
                Ok(()) => return Ok(Self { _file: file }),
                Err(Errno::INTR) => {}
                Err(error) => return Err(Error::file("lock", path, error)),
            }
        }
    }
}
