//! Stands between a layer and the tar parser, watches the header bytes and repairs what archivers get away with.
//!
//! The parser reads extended headers into memory whole, however long they claim to be, and it splits pax records
//! at newlines, which binary attribute values contain. So the bytes that it reads while it looks for the next
//! entry are counted against a cap, and kept, and the pax records in them are read again by their lengths.
//!
//! Archives in the wild leave numeric fields blank, give sizes to links, and end without padding. Go's reader, which
//! decides what an image may look like, takes all of that; the parser does not, so it is shown what was meant.

use std::cell::RefCell;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::rc::Rc;

use tar::EntryType;

use crate::{Error, ErrorKind, Result};

/// Most header bytes of one entry: some attributes of the kernel's largest size fit.
pub(crate) const MAX_HEADER: usize = 1 << 20;

const BLOCK: usize = 512;

#[derive(Debug, Default)]
struct State {
    recording: bool,
    header: Vec<u8>,
    /// Data of the entry before that was not read: the parser skips it first.
    skip: u64,
    /// Where the next header block starts, if that is known.
    header_at: Option<u64>,
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
        let is_header = state.recording && state.header_at == Some(state.position) && wanted >= BLOCK;
        let count = if is_header {
            let count = read_block(&mut self.reader, &mut buffer[..BLOCK])?;
            if count == BLOCK {
                repair(&mut buffer[..BLOCK]);
                state.header_at = after(&buffer[..BLOCK], state.position);
            }
            count
        } else {
            self.reader.read(&mut buffer[..wanted])?
        };
        let count =
            if count == 0 && state.recording { pad(state.position, &mut buffer[..wanted]) } else { count };
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
        state.header_at =
            state.position.checked_add(unread).and_then(|end| end.checked_next_multiple_of(BLOCK as u64));
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
            if !is_extension(kind) {
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

/// A header that describes the entry after it.
fn is_extension(kind: EntryType) -> bool {
    kind.is_pax_local_extensions() || kind.is_gnu_longname() || kind.is_gnu_longlink()
}

/// Reads a whole block, or what is left of the archive.
fn read_block(reader: &mut impl Read, block: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < block.len() {
        match reader.read(&mut block[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

/// Where the header after this one is, if this one only describes it.
fn after(block: &[u8], position: u64) -> Option<u64> {
    let header = tar::Header::from_byte_slice(block);
    if !is_extension(header.entry_type()) {
        return None;
    }
    let size = header.entry_size().ok()?.checked_next_multiple_of(BLOCK as u64)?;
    position.checked_add(BLOCK as u64)?.checked_add(size)
}

/// The padding of the last entry, where an archive ends without.
fn pad(position: u64, buffer: &mut [u8]) -> usize {
    let missing = (position.next_multiple_of(BLOCK as u64) - position) as usize;
    let count = missing.min(buffer.len());
    buffer[..count].fill(0);
    count
}

/// Fills blank numbers with zeros, and takes the size away from what has no data (links, devices, directories, pipes).
/// A header whose checksum is wrong is left as it is, and refused by the parser.
fn repair(block: &mut [u8]) {
    let mut header = tar::Header::from_byte_slice(block).clone();
    let blank = |field: &[u8]| field.iter().all(|byte| matches!(byte, 0 | b' '));
    let mut changed = false;
    if blank(&block[..BLOCK]) || header.cksum().ok() != Some(checksum(block)) {
        return;
    }
    let size = &mut header.as_old_mut().size;
    if matches!(block[TYPE], b'1'..=b'6') && !size.iter().all(|byte| matches!(byte, 0 | b' ' | b'0')) {
        size.copy_from_slice(b"00000000000\0");
        changed = true;
    }
    let ustar = block[MAGIC].starts_with(b"ustar");
    let fields = NUMBERS.into_iter().chain(DEVICE_NUMBERS.into_iter().filter(|_| ustar));
    for field in fields {
        let bytes = &mut header.as_mut_bytes()[field];
        if blank(bytes) {
            let digits = bytes.len() - 1;
            bytes[..digits].fill(b'0');
            bytes[digits] = 0;
            changed = true;
        }
    }
    if changed {
        header.set_cksum();
        block.copy_from_slice(header.as_bytes());
    }
}

/// Places of fields in a header (POSIX, ustar interchange format).
const TYPE: usize = 156;
const CHECKSUM: Range<usize> = 148..156;
const MAGIC: Range<usize> = 257..263;
/// Mode, owner, group, size, time.
const NUMBERS: [Range<usize>; 5] = [100..108, 108..116, 116..124, 124..136, 136..148];
const DEVICE_NUMBERS: [Range<usize>; 2] = [329..337, 337..345];

/// The sum of all bytes, those of the checksum taken as spaces.
fn checksum(block: &[u8]) -> u32 {
    let others = block[..CHECKSUM.start].iter().chain(&block[CHECKSUM.end..]);
    others.map(|byte| u32::from(*byte)).sum::<u32>() + 8 * u32::from(b' ')
}

/// One pax record: `length key=value\n`, where the length counts everything.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
}

/// The last record of that key: a later one replaces an earlier one, and an empty one takes it away (POSIX, pax).
pub(crate) fn value<'r>(records: &'r [Record], key: &str) -> Option<&'r [u8]> {
    let last = records.iter().rev().find(|record| record.key == key.as_bytes());
    last.map(|record| record.value.as_slice()).filter(|value| !value.is_empty())
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
