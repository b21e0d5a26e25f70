use std::io;
use std::path::Path;

/// What kind of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The machine lacks a program, a right or a part of its kernel.
    Unavailable,
    /// Somebody else has what was asked for: a port, a bridge, a range of addresses.
    Taken,
    /// There is no free address or port left.
    Exhausted,
    /// What was asked for cannot be.
    Invalid,
    /// A step failed.
    Failed,
}

/// Something about a container's network failed: what was tried and what the reader can do, with the cause as source.
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

    pub(crate) fn caused(
        kind: ErrorKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { kind, message: message.into(), source: Some(source.into()) }
    }

    pub(crate) fn file(operation: &str, path: &Path, source: impl Into<io::Error>) -> Self {
        let source: io::Error = source.into();
        let kind = match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorKind::Unavailable,
            _ => ErrorKind::Failed,
        };
        Self::caused(kind, format!("{operation} {}", path.display()), source)
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

/// Gives a failure of the kernel its context: what it was a part of.
pub(crate) trait Context<T> {
    fn while_doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for beta9_sys::Result<T> {
    fn while_doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| {
            let kind = match error.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported => ErrorKind::Unavailable,
                _ => ErrorKind::Failed,
            };
            Error::caused(kind, what(), error)
        })
    }
}
