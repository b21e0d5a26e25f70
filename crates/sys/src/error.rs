use std::io;
use std::path::{Path, PathBuf};

/// A call into the kernel that failed: which, on what, and the kernel's answer.
#[derive(Debug, thiserror::Error)]
#[error("{operation}{}", describe(.subject))]
pub struct Error {
    operation: &'static str,
    subject: Option<PathBuf>,
    source: io::Error,
}

/// The result of a call into the kernel.
pub type Result<T> = std::result::Result<T, Error>;

fn describe(subject: &Option<PathBuf>) -> String {
    subject.as_ref().map(|path| format!(" {}", path.display())).unwrap_or_default()
}

impl Error {
    /// An operation on nothing that has a name.
    pub fn new(operation: &'static str, source: impl Into<io::Error>) -> Self {
        Self { operation, subject: None, source: source.into() }
    }

    /// An operation on a file.
    pub fn at(operation: &'static str, path: impl AsRef<Path>, source: impl Into<io::Error>) -> Self {
        Self { operation, subject: Some(path.as_ref().to_owned()), source: source.into() }
    }

    /// The kernel's answer.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    /// The kernel's answer as an errno, where it was one.
    pub fn raw_os_error(&self) -> Option<i32> {
        let explained = || self.source.get_ref()?.downcast_ref::<Explained>().map(|error| error.number);
        self.source.raw_os_error().or_else(explained)
    }
}

/// An errno and the kernel's words for it.
#[derive(Debug, thiserror::Error)]
#[error("{words} ({})", io::Error::from_raw_os_error(*.number))]
pub(crate) struct Explained {
    pub(crate) number: i32,
    pub(crate) words: String,
}
