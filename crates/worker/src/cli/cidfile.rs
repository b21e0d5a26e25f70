//! `--cidfile`: where a script finds the container's id.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::cli::Failure;

/// A file that was made for the id of a container to come. Dropped without an id it is removed.
pub(super) struct CidFile {
    path: PathBuf,
    file: File,
    is_written: bool,
}

impl CidFile {
    /// Makes it; one that exists is somebody else's.
    pub(super) fn claim(path: &Path) -> Result<Self, Failure> {
        let file =
            OpenOptions::new().write(true).create_new(true).open(path).map_err(|e| match e.kind() {
                ErrorKind::AlreadyExists => Failure::new(format!(
                    "--cidfile {} exists: remove it, or name another file",
                    path.display()
                )),
                _ => Failure::new(format!("make --cidfile {}: {e}", path.display())),
            })?;
        Ok(Self { path: path.to_owned(), file, is_written: false })
    }

    pub(super) fn write(mut self, id: &str) -> Result<(), Failure> {
        self.file
            .write_all(id.as_bytes())
            .map_err(|e| Failure::new(format!("write --cidfile {}: {e}", self.path.display())))?;
        self.is_written = true;
        Ok(())
    }
}

impl Drop for CidFile {
    fn drop(&mut self) {
        if !self.is_written {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_an_id_goes_and_one_with_it_is_not_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cid");
        drop(CidFile::claim(&path).ok().unwrap());
        assert!(!path.exists());
        CidFile::claim(&path).ok().unwrap().write("abc").ok().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "abc");
        assert!(CidFile::claim(&path).err().unwrap().message.contains("exists"));
    }
}
