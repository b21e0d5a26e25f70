//! Writing a log, and reading it in the process that writes it.
//!
//! Each file of the log points to the next, so a reader that still needs a file keeps it, and every later one, from being
//! lost: a file that was removed from the directory lives on for as long as somebody reads it. That is what lets output be
//! thrown away without ever being taken from a reader, and without the writer waiting for one.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use beta9_types::LogLimits;

use super::{Stream, files, format_into};
use crate::error::{Error, Result};

/// One file of a log.
struct Segment {
    file: File,
    /// Bytes of the log before it.
    start: u64,
    /// How many files came before it.
    index: u64,
    written: AtomicU64,
    /// Set after the last byte was written.
    next: OnceLock<Arc<Segment>>,
}

impl Segment {
    fn create(path: &Path, start: u64, index: u64) -> io::Result<Arc<Self>> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        Ok(Arc::new(Self { file, start, index, written: AtomicU64::new(0), next: OnceLock::new() }))
    }

    /// One that an earlier writer left.
    fn reopen(path: &Path, start: u64, index: u64) -> io::Result<Arc<Self>> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        let written = AtomicU64::new(file.metadata()?.len());
        Ok(Arc::new(Self { file, start, index, written, next: OnceLock::new() }))
    }

    fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    fn end(&self) -> u64 {
        self.start + self.written()
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // One after the other: left to itself, the chain would be dropped by recursion.
        let mut next = self.next.take();
        while let Some(segment) = next {
            next = Arc::into_inner(segment).and_then(|mut segment| segment.next.take());
        }
    }
}

/// Appends to a log and throws its beginning away.
pub(crate) struct LogWriter {
    path: PathBuf,
    limits: LogLimits,
    current: Arc<Segment>,
    /// The older files that are kept, the oldest first.
    older: VecDeque<Arc<Segment>>,
    /// Where the log has one file only: an empty one whose name says where that begins.
    marker: Option<PathBuf>,
    /// Bytes of the log that belong to earlier starts of the container.
    kept: u64,
    buffer: Vec<u8>,
}

impl LogWriter {
    /// Opens the log at `path`, behind what an earlier start of the container wrote.
    pub(crate) fn create(path: &Path, limits: LogLimits) -> Result<Self> {
        Self::reopen(path, limits).map_err(|e| Error::file("open", path, e))
    }

    fn reopen(path: &Path, limits: LogLimits) -> io::Result<Self> {
        let (mut older, mut marker) = (VecDeque::<Arc<Segment>>::new(), None);
        let (mut end, mut index) = (0, 0);
        let append = |older: &VecDeque<Arc<Segment>>, segment: &Arc<Segment>| {
            if let Some(last) = older.back() {
                let _ = last.next.set(Arc::clone(segment));
            }
        };
        for start in files::older(path)? {
            let name = files::name(path, start);
            let segment = Segment::reopen(&name, start, index)?;
            end = segment.end();
            if segment.written() == 0 {
                marker = Some(name);
                continue;
            }
            append(&older, &segment);
            older.push_back(segment);
            index += 1;
        }
        let current = Segment::reopen(path, end, index)?;
        append(&older, &current);
        let kept = current.end();
        Ok(Self { path: path.to_owned(), limits, current, older, marker, kept, buffer: Vec::new() })
    }

    /// What is there now is not thrown away by [`Self::clear`].
    pub(crate) fn keep(&mut self) {
        self.kept = self.length();
    }

    /// Appends what was read from a stream. Returns the log's new length.
    pub(crate) fn append(&mut self, stream: Stream, data: &[u8]) -> io::Result<u64> {
        self.buffer.clear();
        format_into(&mut self.buffer, SystemTime::now(), stream, data);
        let written = self.current.written();
        if written > 0 && written + self.buffer.len() as u64 > self.limits.max_size {
            self.rotate()?;
        }
        // At a place instead of at the end: what a write that failed half-way left is written over.
        let written = self.current.written();
        self.current.file.write_all_at(&self.buffer, written)?;
        self.current.written.fetch_add(self.buffer.len() as u64, Ordering::Release);
        Ok(self.length())
    }

    /// Bytes of the log so far, those that were thrown away included.
    pub(crate) fn length(&self) -> u64 {
        self.current.end()
    }

    fn rotate(&mut self) -> io::Result<()> {
        let end = self.current.end();
        let kept = files::name(&self.path, self.current.start);
        fs::rename(&self.path, &kept)?;
        let next = match Segment::create(&self.path, end, self.current.index + 1) {
            Ok(next) => next,
            Err(error) => {
                let _ = fs::rename(&kept, &self.path);
                return Err(error);
            }
        };
        let full = std::mem::replace(&mut self.current, Arc::clone(&next));
        let _ = full.next.set(next);
        self.older.push_back(full);
        while self.older.len() >= self.limits.max_files as usize {
            let Some(oldest) = self.older.pop_front() else { break };
            let _ = fs::remove_file(files::name(&self.path, oldest.start));
        }
        if self.older.is_empty() {
            // An empty file, because nothing else would say where the one that is left begins.
            if let Some(before) = self.marker.replace(files::name(&self.path, end)) {
                let _ = fs::remove_file(before);
            }
            if let Some(marker) = &self.marker {
                File::create(marker)?;
            }
        }
        Ok(())
    }

    /// At the first byte that is kept.
    pub(crate) fn oldest(&self) -> Cursor {
        let segment = self.older.front().unwrap_or(&self.current);
        Cursor { segment: Arc::clone(segment), offset: 0 }
    }

    /// At the first byte of the container's latest start, or at the first that is kept if that is later.
    pub(crate) fn latest_start(&self) -> Cursor {
        self.at(self.kept)
    }

    /// Behind the last byte.
    pub(crate) fn newest(&self) -> Cursor {
        Cursor { segment: Arc::clone(&self.current), offset: self.current.written() }
    }

    /// At a position where an entry begins, or at the first byte that is kept if that is later.
    pub(crate) fn at(&self, position: u64) -> Cursor {
        let holds = |segment: &&Arc<Segment>| segment.start <= position;
        match std::iter::once(&self.current).chain(self.older.iter().rev()).find(holds) {
            Some(segment) => {
                let offset = (position - segment.start).min(segment.written());
                Cursor { segment: Arc::clone(segment), offset }
            }
            None => self.oldest(),
        }
    }

    /// How many files the writer is ahead of a reader.
    pub(crate) fn files_behind(&self, cursor: &Cursor) -> u64 {
        self.current.index.saturating_sub(cursor.segment.index)
    }

    /// Throws away what was written: used when a start failed and the words in the log are the runtime's own.
    pub(crate) fn clear(&mut self) -> io::Result<()> {
        if self.kept > 0 {
            // Where it has gone on in another file since, a few words too many are better than too few.
            if let Some(rest) = self.kept.checked_sub(self.current.start) {
                self.current.file.set_len(rest)?;
                self.current.written.store(rest, Ordering::Release);
            }
            return Ok(());
        }
        for segment in self.older.drain(..) {
            let _ = fs::remove_file(files::name(&self.path, segment.start));
        }
        // The same file, so that who reads it already sees that it is empty.
        self.current.file.set_len(0)?;
        if self.current.index == 0 {
            self.current.written.store(0, Ordering::Release);
        } else {
            self.current = Segment::create(&self.path, 0, 0)?;
        }
        Ok(())
    }
}

/// A reader's place in a log.
pub(crate) struct Cursor {
    segment: Arc<Segment>,
    offset: u64,
}

impl Cursor {
    /// Reads some bytes; 0 when it has caught up with the writer.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            // In this order: once there is a next file, this one has all its bytes.
            let next = self.segment.next.get().map(Arc::clone);
            let left = self.segment.written().saturating_sub(self.offset);
            if left > 0 {
                let room = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let count = self.segment.file.read_at(&mut buffer[..room], self.offset)?;
                if count == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                self.offset += count as u64;
                return Ok(count);
            }
            match next {
                Some(next) => (self.segment, self.offset) = (next, 0),
                None => return Ok(0),
            }
        }
    }

    /// Bytes of the log before it.
    pub(crate) fn position(&self) -> u64 {
        self.segment.start + self.offset
    }
}
