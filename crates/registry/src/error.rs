use std::error::Error as StdError;
use std::io;
use std::path::Path;

/// What kind of failure it is: decides whether trying again, other credentials, or another image make sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A name, a setting or a file of the user's is not usable.
    Invalid,
    /// The registry wants credentials, or refuses these.
    Unauthorized,
    /// The registry has no such image.
    NotFound,
    /// No connection could be made.
    Unreachable,
    /// The registry did not answer, or not fast enough.
    Timeout,
    /// The connection broke before everything was there.
    Interrupted,
    /// The registry cannot serve the request now.
    Busy,
    /// The registry sent what it must not send, or sends us where we do not go.
    Protocol,
    /// The image is larger than what is accepted.
    Limit,
    /// The image is well formed, and not for this machine or not for us.
    Unsupported,
    /// The disk has no room for it.
    Full,
    /// The image is not in the store.
    NotStored,
    /// Reading or writing files, or the store, failed.
    Io,
    /// A credential helper failed.
    Helper,
}

/// Something between a registry and the store failed: what was tried and what the reader can do, with the cause as source.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The result of a step between a registry and the store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    pub(crate) fn caused(
        kind: ErrorKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self { kind, message: message.into(), source: Some(source.into()) }
    }

    pub(crate) fn io(operation: &str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::caused(ErrorKind::Io, format!("cannot {operation} {}", path.display()), source.into())
    }

    /// The same failure, told as part of a larger undertaking.
    pub(crate) fn during(self, message: impl Into<String>) -> Self {
        Self { kind: self.kind, message: message.into(), source: Some(Box::new(self)) }
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the same may work a moment later.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::Unreachable | ErrorKind::Timeout | ErrorKind::Interrupted | ErrorKind::Busy
        )
    }

    /// The message and its causes in one line, the way it is shown to a user.
    pub fn chain(&self) -> String {
        beta9_types::chain(self)
    }
}

impl From<beta9_image::Error> for Error {
    /// The store's messages are whole sentences already.
    fn from(error: beta9_image::Error) -> Self {
        let kind = match error.kind() {
            beta9_image::ErrorKind::Mismatch | beta9_image::ErrorKind::Invalid => ErrorKind::Protocol,
            beta9_image::ErrorKind::Limit => ErrorKind::Limit,
            beta9_image::ErrorKind::Unsupported => ErrorKind::Unsupported,
            beta9_image::ErrorKind::Full => ErrorKind::Full,
            beta9_image::ErrorKind::NotFound => ErrorKind::NotStored,
            _ => ErrorKind::Io,
        };
        Self::new(kind, error.chain())
    }
}
