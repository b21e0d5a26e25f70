use std::io;
use std::path::{Path, PathBuf};

/// A look at the machine that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", .subject.display())]
pub struct Error {
    operation: &'static str,
    subject: PathBuf,
    source: io::Error,
}

/// The result of a look at the machine.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(operation: &'static str, subject: impl AsRef<Path>, source: io::Error) -> Self {
        Self { operation, subject: subject.as_ref().to_owned(), source }
    }

    /// The kernel's answer.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}
