use std::io::{self, Read};

/// What the store is doing, for a progress display.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Blobs are copied into the store and verified. Counted in bytes as they are stored.
    Copy,
    /// Layers are read to find out what they leave. Counted in bytes as they are stored.
    Read,
    /// Layers are unpacked into the tree. Counted in bytes as they are stored.
    Unpack,
    /// The block image is being made. Counted like [`Step::Unpack`] when it is made of the layers; else the total is
    /// unknown.
    Build,
}

impl Step {
    /// The step as a word that finishes "image …": `copying`, `reading`, `unpacking`, `building`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Copy => "copying",
            Self::Read => "reading",
            Self::Unpack => "unpacking",
            Self::Build => "building",
        }
    }
}

/// Told how far a step has come: bytes done, and bytes in all where they are known.
///
/// Called often and from the thread that does the work, so it must be quick. Any suitable closure is one.
pub trait Progress: Send + Sync {
    /// `done` never goes down within a step.
    fn report(&self, step: Step, done: u64, total: Option<u64>);
}

impl<F: Fn(Step, u64, Option<u64>) + Send + Sync> Progress for F {
    fn report(&self, step: Step, done: u64, total: Option<u64>) {
        self(step, done, total);
    }
}

/// Progress that nobody watches.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Unwatched;

impl Progress for Unwatched {
    fn report(&self, _: Step, _: u64, _: Option<u64>) {}
}

/// One step under way: adds up what several readers have read.
pub(crate) struct Meter<'a> {
    progress: &'a dyn Progress,
    step: Step,
    done: u64,
    total: Option<u64>,
}

impl<'a> Meter<'a> {
    pub(crate) fn start(progress: &'a dyn Progress, step: Step, total: Option<u64>) -> Self {
        progress.report(step, 0, total);
        Self { progress, step, done: 0, total }
    }

    pub(crate) fn add(&mut self, bytes: u64) {
        self.done += bytes;
        self.progress.report(self.step, self.done, self.total);
    }
}

/// A reader that reports what goes through it.
pub(crate) struct Metered<'m, 'p, R> {
    pub(crate) reader: R,
    pub(crate) meter: &'m mut Meter<'p>,
}

impl<R: Read> Read for Metered<'_, '_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.meter.add(count as u64);
        Ok(count)
    }
}
