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
//!
//! A log is a sequence of bytes that only grows; its beginning is thrown away when it gets too long. The newest bytes
//! are in `log`; older ones are in `log.<position>`, named by how many bytes of the log came before them, in 20 digits.

mod files;
mod segments;

use std::time::{SystemTime, UNIX_EPOCH};

pub use files::LogFiles;
pub(crate) use segments::{Cursor, LogWriter};

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

/// RFC 3339 in UTC with nanoseconds. The calendar arithmetic is Howard Hinnant's `civil_from_days`.
pub fn timestamp(time: SystemTime) -> String {
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
    /// Bytes of the log before it.
    pub position: u64,
}

impl LogEntry {
    /// Whether a line ends with it.
    pub fn ends_line(&self) -> bool {
        self.content.ends_with(b"\n")
    }
}

/// Turns the bytes of a log into entries, however the bytes are cut.
#[derive(Debug)]
pub struct LogParser {
    position: u64,
    pending: Vec<u8>,
}

impl LogParser {
    /// Longest entry: a piece of output and what the format puts before it. What is longer is no log.
    const MAX_ENTRY: usize = 1 << 20;

    /// A parser for the bytes from `position` on, where an entry begins.
    pub fn at(position: u64) -> Self {
        Self { position, pending: Vec::new() }
    }

    /// Takes more bytes in; returns the entries that are whole now. What is no entry is left out.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<LogEntry> {
        self.pending.extend_from_slice(bytes);
        let whole = self.pending.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        let rest = self.pending.split_off(whole);
        let entries = std::mem::replace(&mut self.pending, rest);
        if self.pending.len() > Self::MAX_ENTRY {
            self.position += self.pending.len() as u64;
            self.pending.clear();
        }
        let mut parsed = Vec::new();
        for line in entries.split_inclusive(|byte| *byte == b'\n') {
            parsed.extend(parse_entry(line, self.position));
            self.position += line.len() as u64;
        }
        parsed
    }

    /// Bytes of the log up to the end of the last whole entry.
    pub fn position(&self) -> u64 {
        self.position
    }
}

fn parse_entry(line: &[u8], position: u64) -> Option<LogEntry> {
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
    Some(LogEntry { time, stream, content: content.to_vec(), position })
}

/// Appends what was read from a stream in the log's format.
fn format_into(buffer: &mut Vec<u8>, time: SystemTime, stream: Stream, data: &[u8]) {
    let prefix = format!("{} {} ", timestamp(time), stream.word());
    for piece in data.split_inclusive(|byte| *byte == b'\n') {
        let (content, mark) = match piece.strip_suffix(b"\n") {
            Some(line) => (line, b"F "),
            None => (piece, b"P "),
        };
        buffer.extend_from_slice(prefix.as_bytes());
        buffer.extend_from_slice(mark);
        buffer.extend_from_slice(content);
        buffer.push(b'\n');
    }
}

#[cfg(test)]
mod tests;
