use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use beta9_types::Digest;
use sha2::{Digest as _, Sha256};

use crate::blobs::read_document;
use crate::{Error, ErrorKind, Result};

/// The files of an image, wherever they are.
pub(super) trait Content {
    /// Opens a file by its name in the image; the size is what it holds.
    fn open(&self, name: &str) -> Result<(Box<dyn Read + '_>, u64)>;

    /// Where this is, for messages.
    fn path(&self) -> &Path;

    /// Whether there is such a file.
    fn has(&self, name: &str) -> bool;

    /// Whether it is an OCI image layout.
    fn is_layout(&self) -> bool {
        self.has("oci-layout") && self.has("index.json")
    }

    /// Reads a small file whole.
    fn document(&self, name: &str) -> Result<Vec<u8>> {
        read_document(self.open(name)?.0, &self.path().join(name))
    }

    /// Reads and verifies a small blob.
    fn blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        let bytes = self.document(&blob_name(digest))?;
        let found = Digest::from_sha256(Sha256::digest(&bytes).into());
        if found == *digest {
            return Ok(bytes);
        }
        let message =
            format!("content announced as {digest} is {found}; {} is damaged", self.path().display());
        Err(Error::new(ErrorKind::Mismatch, message))
    }
}

/// Where a layout has a blob.
pub(super) fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A file that an image should have and has not.
pub(super) fn missing(name: &str, path: &Path) -> Error {
    Error::new(ErrorKind::Invalid, format!("{} is incomplete: it has no {name}", path.display()))
}

/// An image layout in a directory. Only fixed names and digests are ever opened.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
}

impl Directory {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    fn file(&self, name: &str) -> Result<File> {
        let path = self.path.join(name);
        // A pipe must not make us wait.
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        OpenOptions::new().read(true).custom_flags(flags).open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => missing(name, &self.path),
            _ => Error::io("open", &path, error),
        })
    }
}

impl Content for Directory {
    fn open(&self, name: &str) -> Result<(Box<dyn Read + '_>, u64)> {
        let file = self.file(name)?;
        let path = self.path.join(name);
        let found = file.metadata().map_err(|e| Error::io("look up", &path, e))?;
        if !found.is_file() {
            return Err(Error::new(ErrorKind::Invalid, format!("{} is not a file", path.display())));
        }
        Ok((Box::new(file), found.len()))
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn has(&self, name: &str) -> bool {
        self.path.join(name).is_file()
    }
}
