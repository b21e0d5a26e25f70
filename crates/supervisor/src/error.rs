use std::io;
use std::path::{Path, PathBuf};

pub(crate) use beta9_types::chain;

/// What kind of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A file of the container's directory could not be used.
    File,
    /// A file of the container's directory does not hold what it should.
    Corrupt,
    /// No supervisor is there to answer.
    Gone,
    /// The supervisor refused, or answered something that cannot be.
    Refused,
    /// The supervisor did not answer in time.
    Timeout,
}

/// Something about one container's directory or supervisor failed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    pub(crate) fn file(operation: &str, path: impl AsRef<Path>, source: impl Into<io::Error>) -> Self {
        let path: PathBuf = path.as_ref().to_owned();
        let message = format!("{operation} {}", path.display());
        Self { kind: ErrorKind::File, message, source: Some(Box::new(source.into())) }
    }

    pub(crate) fn caused(
        kind: ErrorKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { kind, message: message.into(), source: Some(source.into()) }
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}
