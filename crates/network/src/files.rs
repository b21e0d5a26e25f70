//! Locks, and files that are replaced at once.

use std::fs::{self, DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorKind, Result};

/// Longest file that is read; real ones have a few hundred bytes.
const MAX_FILE: u64 = 256 << 10;

/// Makes a directory for root alone, with those above it.
pub(crate) fn make_directory(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| Error::file("create", path, e))
}

/// Waits for a lock that is held until the file is dropped. Those who hold it do a few system calls.
pub(crate) fn lock(path: &Path) -> Result<File> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(|e| Error::file("open", path, e))?;
    wait_for(file, path)
}

/// The same for a directory that is there.
pub(crate) fn lock_directory(path: &Path) -> Result<File> {
    wait_for(File::open(path).map_err(|e| Error::file("open", path, e))?, path)
}

fn wait_for(file: File, path: &Path) -> Result<File> {
    loop {
        match flock(&file, FlockOperation::LockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Error::file("lock", path, error)),
        }
    }
}

/// Replaces a JSON file so that a reader sees either the old or the new one whole.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let temporary = path.with_extension("new");
    let write = || {
        let mut file = File::create(&temporary)?;
        serde_json::to_writer(&mut file, value)?;
        file.write_all(b"\n")?;
        fs::rename(&temporary, path)
    };
    write().map_err(|e| Error::file("write", path, e))
}

/// Reads a JSON file; absent is `None`.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match fs::metadata(path) {
        Ok(meta) if meta.len() > MAX_FILE => {
            return Err(Error::new(
                ErrorKind::Failed,
                format!("{} is over {MAX_FILE} bytes", path.display()),
            ));
        }
        Ok(_) => fs::read(path).map_err(|e| Error::file("read", path, e))?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::file("read", path, e)),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|e| Error::caused(ErrorKind::Failed, format!("{} is damaged: remove it", path.display()), e))
}

/// Removes a file. Missing is fine.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::file("remove", path, e)),
        _ => Ok(()),
    }
}
