use std::path::Path;

/// What kind of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The file is not what it was taken for, or is damaged.
    Invalid,
    /// It is a kernel, and none that works here.
    Unsupported,
    /// Something that is needed is not there.
    Missing,
    /// A file could not be read.
    File,
}

/// Why a kernel or its modules cannot be used: one sentence, with its cause as source.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<std::io::Error>,
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    pub(crate) fn caused(kind: ErrorKind, message: impl Into<String>, source: std::io::Error) -> Self {
        Self { kind, message: message.into(), source: Some(source) }
    }

    pub(crate) fn file(what: &str, path: &Path, source: std::io::Error) -> Self {
        Self::caused(ErrorKind::File, format!("{what} {}", path.display()), source)
    }

    /// The same failure, said of a file.
    pub(crate) fn of(self, path: &Path) -> Self {
        Self { message: format!("{}: {}", path.display(), self.message), ..self }
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}
