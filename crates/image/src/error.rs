use std::error::Error as StdError;
use std::io;
use std::path::Path;

/// What kind of failure it is: decides whether trying again, or another image, makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The image is not in the store, or the file to import does not exist.
    NotFound,
    /// Several images answer to what was asked for.
    Ambiguous,
    /// The image breaks a format's rules, or tries to reach outside of its root.
    Invalid,
    /// The image is larger, deeper or more numerous than the store accepts.
    Limit,
    /// Content does not have the digest or the size it was announced with.
    Mismatch,
    /// The image is well formed and asks for something that this store does not do.
    Unsupported,
    /// A program that makes file systems is missing or failed.
    Tool,
    /// Somebody is at work on the same; later it may be possible.
    Busy,
    /// Reading or writing files failed.
    Io,
    /// The disk has no room for it.
    Full,
}

/// Something about an image failed: what was tried and what the reader can do, with the cause as source.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The result of a step of the image store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A failure with no deeper cause.
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// A failure with its cause, which the message does not repeat.
    pub(crate) fn caused(
        kind: ErrorKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self { kind, message: message.into(), source: Some(source.into()) }
    }

    /// An operation on a file of the host that failed.
    pub(crate) fn io(operation: &str, path: &Path, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        let (kind, remedy) = Self::kind_of(&source);
        Self::caused(kind, format!("cannot {operation} {}{remedy}", path.display()), source)
    }

    /// What an operation's failure is, and what can be done about it.
    pub(crate) fn kind_of(source: &io::Error) -> (ErrorKind, &'static str) {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                (ErrorKind::Full, "; make room, for example with `beta9-worker image prune`")
            }
            _ => (ErrorKind::Io, ""),
        }
    }

    /// A stream that failed. One of our own errors that travelled through a reader comes out as it went in.
    pub(crate) fn stream(kind: ErrorKind, message: impl Into<String>, source: io::Error) -> Self {
        match source.downcast::<Self>() {
            Ok(own) => own,
            Err(source) => Self::caused(kind, message, source),
        }
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The message and its causes in one line, the way it is shown to a user.
    pub fn chain(&self) -> String {
        beta9_types::chain(self)
    }
}
