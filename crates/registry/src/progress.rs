use beta9_types::Digest;

/// Where a blob is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// Its turn has not come.
    Waiting,
    /// Bytes are moving.
    Moving,
    /// It is where it should be, and verified.
    Done,
    /// It was there already.
    Exists,
}

impl Status {
    /// The status as a word: `waiting`, `moving`, `done`, `exists`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Moving => "moving",
            Self::Done => "done",
            Self::Exists => "exists",
        }
    }
}

/// How far a layer is.
#[derive(Debug, Clone)]
pub struct Transfer {
    /// Which one.
    pub digest: Digest,
    /// Where it is on its way.
    pub status: Status,
    /// Bytes that are there. Goes down only when a registry cannot go on where it broke off.
    pub done: u64,
    /// Its bytes.
    pub total: u64,
}

/// Told about every layer, often, from the thread that does the work; so it must be quick. Any suitable closure is one.
pub trait Watch: Send + Sync {
    /// A layer got somewhere.
    fn see(&self, transfer: Transfer);
}

impl<F: Fn(Transfer) + Send + Sync> Watch for F {
    fn see(&self, transfer: Transfer) {
        self(transfer);
    }
}
