//! Reading a log whose writer is gone.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Digits of a position in a file's name: enough for every 64-bit number, so that names sort as numbers do.
const DIGITS: usize = 20;

/// The name of an older file of the log at `path`.
pub(super) fn name(path: &Path, start: u64) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{start:0DIGITS$}"));
    path.with_file_name(name)
}

/// The positions in the names of the older files of the log at `path`.
pub(super) fn older(path: &Path) -> io::Result<Vec<u64>> {
    let prefix = format!("{}.", path.file_name().unwrap_or_default().to_string_lossy());
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut starts: Vec<u64> = fs::read_dir(directory)?
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let digits = name.to_str()?.strip_prefix(&prefix)?;
            (digits.len() == DIGITS).then(|| digits.parse().ok()).flatten()
        })
        .collect();
    starts.sort_unstable();
    Ok(starts)
}

/// The files of a log to which nobody writes any more, read as one.
#[derive(Debug)]
pub struct LogFiles {
    files: VecDeque<(File, u64)>,
    position: u64,
}

impl LogFiles {
    /// Opens the log at `path`, to be read from `position` or from the first byte that is kept if that is later.
    pub fn open(path: &Path, position: u64) -> Result<Self> {
        let failed = |e| Error::file("open", path, e);
        let mut files = VecDeque::new();
        let mut end = 0;
        for start in older(path).map_err(failed)? {
            let file = File::open(name(path, start)).map_err(failed)?;
            end = start + file.metadata().map_err(failed)?.len();
            if end > position {
                files.push_back((file, start));
            }
        }
        files.push_back((File::open(path).map_err(failed)?, end));
        let first = files.front().map_or(0, |(_, start)| *start);
        Ok(Self { files, position: position.max(first) })
    }

    /// Reads some bytes; 0 at the end.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some((file, start)) = self.files.front() {
            let count = file.read_at(buffer, self.position.saturating_sub(*start))?;
            if count > 0 {
                self.position += count as u64;
                return Ok(count);
            }
            if self.files.len() == 1 {
                break;
            }
            self.files.pop_front();
        }
        Ok(0)
    }

    /// Bytes of the log before what is read next.
    pub fn position(&self) -> u64 {
        self.position
    }
}
