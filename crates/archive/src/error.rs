use std::io;

/// What kind of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// There is no such file.
    NotFound,
    /// Source and destination do not go together, or the archive holds something that is refused.
    Refused,
    /// A file could not be read or written.
    File,
    /// The stream broke.
    Stream,
}

/// A copy failed: what was tried and what the reader can do, with the cause as source.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<io::Error>,
}

/// The result of a copy.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    pub(crate) fn file(operation: &str, path: &[u8], source: impl Into<io::Error>) -> Self {
        let source = source.into();
        let kind = match source.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            _ => ErrorKind::File,
        };
        Self { kind, message: format!("{operation} {}", shown(path)), source: Some(source) }
    }

    pub(crate) fn stream(message: &str, source: io::Error) -> Self {
        Self { kind: ErrorKind::Stream, message: message.to_owned(), source: Some(source) }
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

/// A name that anybody may have chosen, fit for a message.
pub(crate) fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(200).flat_map(char::escape_debug).collect()
}
