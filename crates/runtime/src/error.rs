use std::error::Error as StdError;

/// What kind of failure it is: decides the exit code and whether trying again makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The runtime cannot work on this machine as it is set up.
    Unavailable,
    /// The request asks for something this runtime does not do.
    Unsupported,
    /// The container's program exists and cannot be executed: exit code 126.
    CannotExecute,
    /// The container's program does not exist: exit code 127.
    NotFound,
    /// The other side did not answer in time.
    Timeout,
    /// A step failed.
    Failed,
}

/// A runtime failed: what was tried and what the reader can do, with the cause as source.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The result of a runtime's step.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A failure with no deeper cause.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// A failure with its cause. The message must not repeat the cause.
    pub fn caused(
        kind: ErrorKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self { kind, message: message.into(), source: Some(source.into()) }
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The exit code that stands for this failure, by docker's convention.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            ErrorKind::CannotExecute => beta9_types::Exit::CANNOT_EXECUTE,
            ErrorKind::NotFound => beta9_types::Exit::NOT_FOUND,
            _ => beta9_types::Exit::OUR_FAILURE,
        }
    }

    /// The message and its causes in one line, the way it is shown to a user.
    pub fn chain(&self) -> String {
        beta9_types::chain(self)
    }
}
