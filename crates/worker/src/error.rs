use std::error::Error as StdError;

use beta9_types::ParseError;
pub(crate) use beta9_types::chain;

/// What kind of failure it is. Each has one gRPC status and one exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ErrorKind {
    /// A value of the request breaks its rule.
    Invalid,
    /// No such container, image or pool.
    NotFound,
    /// The name or id is taken.
    Taken,
    /// The object's state forbids it, or the runtime asked for cannot work here.
    Precondition,
    /// A registry wants credentials, or others than these.
    Unauthorized,
    /// A registry cannot be reached, or not now.
    Unavailable,
    /// The other side did not answer in time.
    Timeout,
    /// Our own fault, or the machine's.
    Internal,
}

/// A request that the worker could not serve: one sentence, with its cause as source.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

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

    pub(crate) fn internal(
        message: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self::caused(ErrorKind::Internal, message, source)
    }

    pub(crate) fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl From<ParseError> for Error {
    /// A parse error is a whole sentence already.
    fn from(error: ParseError) -> Self {
        Self::new(ErrorKind::Invalid, error.to_string())
    }
}

impl From<beta9_supervisor::Error> for Error {
    fn from(error: beta9_supervisor::Error) -> Self {
        let kind = match error.kind() {
            beta9_supervisor::ErrorKind::Refused | beta9_supervisor::ErrorKind::Gone => {
                ErrorKind::Precondition
            }
            beta9_supervisor::ErrorKind::Timeout => ErrorKind::Timeout,
            _ => ErrorKind::Internal,
        };
        Self::new(kind, chain(&error))
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        let code = match error.kind {
            ErrorKind::Invalid => tonic::Code::InvalidArgument,
            ErrorKind::NotFound => tonic::Code::NotFound,
            ErrorKind::Taken => tonic::Code::AlreadyExists,
            ErrorKind::Precondition => tonic::Code::FailedPrecondition,
            ErrorKind::Unauthorized => tonic::Code::Unauthenticated,
            ErrorKind::Unavailable => tonic::Code::Unavailable,
            ErrorKind::Timeout => tonic::Code::DeadlineExceeded,
            ErrorKind::Internal => tonic::Code::Internal,
        };
        Self::new(code, chain(&error))
    }
}
