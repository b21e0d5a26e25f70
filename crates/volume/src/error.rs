use std::io;
use std::path::Path;

/// What kind of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// There is no such volume.
    NotFound,
    /// A container has it.
    InUse,
    /// A file could not be read or written.
    File,
}

/// Something about a volume failed: what was tried and what the reader can do, with the cause as source.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The result of an operation on volumes.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    pub(crate) fn file(operation: &str, path: &Path, source: impl Into<io::Error>) -> Self {
        let message = format!("{operation} {}", path.display());
        Self { kind: ErrorKind::File, message, source: Some(Box::new(source.into())) }
    }

    /// What containers have could not be found out.
    pub(crate) fn count(source: Box<dyn std::error::Error + Send + Sync>) -> Self {
        let message = "find out which volumes containers have".to_owned();
        Self { kind: ErrorKind::File, message, source: Some(source) }
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}
