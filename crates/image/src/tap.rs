//! Watches the header bytes that the tar parser reads.
//!
//! The parser reads extended headers into memory whole, however long they claim to be, and it splits pax records
//! at newlines, which binary attribute values contain. So the bytes that it reads while it looks for the next
//! entry are counted against a cap, and kept, and the pax records in them are read again by their lengths.

use std::cell::RefCell;
use std::io::{self, Read, Seek, SeekFrom};
use std::rc::Rc;

use crate::{Error, ErrorKind, Result};

/// Most header bytes of one entry: some attributes of the kernel's largest size fit.
const MAX_HEADER: usize = 1 << 20;

const BLOCK: usize = 512;

#[derive(Debug, Default)]
struct State {
    recording: bool,
    header: Vec<u8>,
    /// Data of the entry before that was not read: the parser skips it first.
    skip: u64,
    /// Bytes read in all, which the parser's position follows.
    position: u64,
}

/// The reader's end, which the parser gets.
pub(crate) struct Tap<R> {
    reader: R,
    state: Rc<RefCell<State>>,
}

/// The watcher's end.
#[derive(Debug, Clone)]
pub(crate) struct Headers {
    state: Rc<RefCell<State>>,
}

impl<R: Read> Tap<R> {
    pub(crate) fn new(reader: R) -> (Self, Headers) {
        let state = Rc::<RefCell<State>>::default();
        (Self { reader, state: Rc::clone(&state) }, Headers { state })
    }
}

impl<R: Read> Read for Tap<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.state.borrow_mut();
        let mut wanted = buffer.len();
        if state.skip > 0 {
            wanted = wanted.min(usize::try_from(state.skip).unwrap_or(usize::MAX));
            let count = self.reader.read(&mut buffer[..wanted])?;
            state.skip -= count as u64;
            state.position += count as u64;
            return Ok(count);
        }
        if state.recording {
            wanted = wanted.min(MAX_HEADER - state.header.len());
            if wanted == 0 && !buffer.is_empty() {
                let message = format!("layer has an entry with headers of more than {MAX_HEADER} bytes");
                return Err(io::Error::other(Error::new(ErrorKind::Limit, message)));
            }
        }
        let count = self.reader.read(&mut buffer[..wanted])?;
        state.position += count as u64;
        if state.recording {
            state.header.extend_from_slice(&buffer[..count]);
        }
        Ok(count)
    }
}

impl<R: Seek> Seek for Tap<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = self.reader.seek(to)?;
        let mut state = self.state.borrow_mut();
        state.position = position;
        state.skip = 0;
        Ok(position)
    }
}

impl Headers {
    /// From here on the parser looks for the next entry. `unread` is how much data of the one before was not read.
    pub(crate) fn start(&self, unread: u64) {
        let mut state = self.state.borrow_mut();
        state.recording = true;
        state.skip = unread;
        state.header.clear();
    }

    /// Bytes read so far.
    pub(crate) fn position(&self) -> u64 {
        self.state.borrow().position
    }

    /// The parser has found an entry: its pax records, in the order they stand.
    pub(crate) fn finish(&self) -> Result<Vec<Record>> {
        let mut state = self.state.borrow_mut();
        state.recording = false;
        let start = state.position - state.header.len() as u64;
        let padding = (start.next_multiple_of(BLOCK as u64) - start) as usize;
        let mut rest = state.header.get(padding..).unwrap_or_default();
        while let Some((block, after)) = rest.split_at_checked(BLOCK) {
            let header = tar::Header::from_byte_slice(block);
            let kind = header.entry_type();
            if !(kind.is_pax_local_extensions() || kind.is_gnu_longname() || kind.is_gnu_longlink()) {
                break;
            }
            let broken = |e| Error::stream(ErrorKind::Invalid, "layer has a broken extended header", e);
            let size = usize::try_from(header.entry_size().map_err(broken)?).unwrap_or(usize::MAX);
            let Some(data) = after.get(..size) else { break };
            if kind.is_pax_local_extensions() {
                return records(data);
            }
            rest = after.get(size.next_multiple_of(BLOCK)..).unwrap_or_default();
        }
        Ok(Vec::new())
    }
}

/// One pax record: `length key=value\n`, where the length counts everything.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
}

/// The last record of that key: a later one replaces an earlier one (POSIX, pax).
pub(crate) fn value<'r>(records: &'r [Record], key: &str) -> Option<&'r [u8]> {
    records.iter().rev().find(|record| record.key == key.as_bytes()).map(|record| record.value.as_slice())
}

fn records(mut data: &[u8]) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    while !data.is_empty() {
        let (record, rest) = split_record(data)
            .ok_or_else(|| Error::new(ErrorKind::Invalid, "layer has a malformed pax record"))?;
        records.push(record);
        data = rest;
    }
    Ok(records)
}

fn split_record(data: &[u8]) -> Option<(Record, &[u8])> {
    let space = data.iter().position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&data[..space]).ok()?.parse().ok()?;
    let (record, rest) = data.split_at_checked(length)?;
    let body = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    Some((Record { key: body[..equals].to_owned(), value: body[equals + 1..].to_owned() }, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_may_contain_newlines_and_equals() {
        let data = b"12 a=b=c\nx\n\n13 key=value\n";
        let parsed = records(data).unwrap();
        assert_eq!(parsed[0], Record { key: b"a".to_vec(), value: b"b=c\nx\n".to_vec() });
        assert_eq!(parsed[1], Record { key: b"key".to_vec(), value: b"value".to_vec() });
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        for bad in
            ["5 a=b\n", "7 a=b\n", "x a=b\n", "6 ab\n", "99999999999999999999 a=b\n", "0 \n", "1 a=b\n"]
        {
            assert!(records(bad.as_bytes()).is_err(), "{bad:?} was accepted");
        }
    }
}
