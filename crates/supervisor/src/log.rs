//! A container's log: the CRI log format, binary-safe.
//!
//! ```text
//! 2016-10-06T00:17:09.669794202Z stdout F a whole line\n
//! 2016-10-06T00:17:09.669794202Z stderr P a piece without its end\n
//! ```
//!
//! `F` is a line whose newline is the entry's own; `P` is a piece that ends before its line does. Joining the contents
//! of one stream, with a newline after each `F`, gives back exactly what the container wrote.
//! (Kubernetes: `kubelet` CRI logging, "log format".)

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

/// Which stream an entry came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn word(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Appends to a log.
pub(crate) struct LogWriter {
    file: File,
    length: u64,
    /// Where this start of the container began.
    start: u64,
    buffer: Vec<u8>,
}

impl LogWriter {
    /// Opens the log, after what an earlier start of the container wrote.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let mut options = File::options();
        let file =
            options.append(true).create(true).open(path).map_err(|e| Error::file("create", path, e))?;
        let length = file.metadata().map_err(|e| Error::file("look at", path, e))?.len();
        Ok(Self { file, length, start: length, buffer: Vec::new() })
    }

    /// Appends what was read from a stream. Returns the log's new length.
    pub(crate) fn append(&mut self, stream: Stream, data: &[u8]) -> io::Result<u64> {
        self.buffer.clear();
        let prefix = format!("{} {} ", timestamp(SystemTime::now()), stream.word());
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            let (content, mark) = match piece.strip_suffix(b"\n") {
                Some(line) => (line, b"F "),
                None => (piece, b"P "),
            };
            self.buffer.extend_from_slice(prefix.as_bytes());
            self.buffer.extend_from_slice(mark);
            self.buffer.extend_from_slice(content);
            self.buffer.push(b'\n');
        }
        self.file.write_all(&self.buffer)?;
        self.length += self.buffer.len() as u64;
        Ok(self.length)
    }

    /// Throws away what was written: used when a start failed and the words in the log are the runtime's own.
    pub(crate) fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(self.start)?;
        self.length = self.start;
        Ok(())
    }

    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// The container is started again: what is there now stays.
    pub(crate) fn keep(&mut self) {
        self.start = self.length;
    }
}

/// RFC 3339 in UTC with nanoseconds. The calendar arithmetic is Howard Hinnant's `civil_from_days`.
fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z", since.subsec_nanos())
}

/// One entry of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// When it was read from the container, RFC 3339.
    pub time: String,
    /// Where it came from.
    pub stream: Stream,
    /// What the container wrote, a line's newline included.
    pub content: Vec<u8>,
}

/// Reads a log from its beginning, entry by entry, also while it grows.
pub struct LogReader {
    file: File,
    offset: u64,
    pending: Vec<u8>,
}

impl LogReader {
    /// Bytes read at a time.
    const CHUNK: usize = 256 << 10;

    /// Opens a container's log.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::file("open", path, e))?;
        Ok(Self { file, offset: 0, pending: Vec::new() })
    }

    /// The whole entries that are in the file and were not returned yet, up to about 256 KiB of them. Empty means that
    /// the reader has caught up.
    pub fn read(&mut self) -> io::Result<Vec<LogEntry>> {
        loop {
            let before = self.pending.len();
            self.pending.resize(before + Self::CHUNK, 0);
            let count = match self.file.read_at(&mut self.pending[before..], self.offset) {
                Ok(count) => count,
                Err(error) => {
                    self.pending.truncate(before);
                    return Err(error);
                }
            };
            self.pending.truncate(before + count);
            self.offset += count as u64;
            let whole = self.pending.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
            if whole > 0 {
                let rest = self.pending.split_off(whole);
                let entries = std::mem::replace(&mut self.pending, rest);
                return Ok(entries.split_inclusive(|byte| *byte == b'\n').filter_map(parse_entry).collect());
            }
            if count == 0 {
                return Ok(Vec::new());
            }
        }
    }
}

fn parse_entry(line: &[u8]) -> Option<LogEntry> {
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(fields.next()?).ok()?.to_owned();
    let stream = match fields.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let mark = fields.next()?;
    let content = fields.next()?;
    let content = if mark == b"F" { content } else { content.strip_suffix(b"\n")? };
    Some(LogEntry { time, stream, content: content.to_vec() })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        let at = |seconds| timestamp(UNIX_EPOCH + Duration::new(seconds, 5));
        assert_eq!(at(0), "1970-01-01T00:00:00.000000005Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000000005Z");
        assert_eq!(at(1_475_712_000 + 1029), "2016-10-06T00:17:09.000000005Z");
    }

    proptest! {
        #[test]
        fn every_byte_comes_back(chunks in proptest::collection::vec(
            (any::<bool>(), proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..50)), 0..20)
        ) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("log");
            let mut writer = LogWriter::create(&path).unwrap();
            let mut reader = LogReader::open(&path).unwrap();
            let (mut sent, mut got) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
            for (is_stderr, data) in chunks {
                let stream = if is_stderr { Stream::Stderr } else { Stream::Stdout };
                writer.append(stream, &data).unwrap();
                sent[usize::from(is_stderr)].extend(data);
                for entry in reader.read().unwrap() {
                    got[usize::from(entry.stream == Stream::Stderr)].extend(entry.content);
                }
            }
            prop_assert_eq!(sent, got);
        }
    }
}
