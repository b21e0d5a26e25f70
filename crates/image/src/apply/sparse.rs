//! Sparse files as GNU tar writes them into pax archives (tar manual, "Storing Sparse Files"): a file's data without
//! its holes, and a map that says where they were. The form before pax is the tar parser's own affair.

use std::io::Read;

use crate::tap::{Record, value};
use crate::{Error, ErrorKind, Result};

/// A sparse file's name: the path of its entry is one for archivers that do not know the form.
pub(super) const NAME: &str = "GNU.sparse.name";

/// Most extents of one file; a map is kept in memory.
const MAX_EXTENTS: usize = 1 << 16;

/// Longest decimal number in a map.
const MAX_DIGITS: usize = 20;

const BLOCK: u64 = 512;

/// How the map is written, by the version of the form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// 0.0 and 0.1: in the extended header.
    Records,
    /// 1.0: before the data.
    InData,
}

impl Form {
    /// `None` for a file that is not sparse in one of these forms.
    pub(super) fn of(records: &[Record]) -> Result<Option<Self>> {
        let version = (value(records, "GNU.sparse.major"), value(records, "GNU.sparse.minor"));
        match version {
            (Some(b"1"), Some(b"0")) => Ok(Some(Self::InData)),
            (Some(b"0"), Some(b"0" | b"1")) => Ok(Some(Self::Records)),
            (None, None) => {
                let has = |key| value(records, key).is_some();
                let is_sparse = has("GNU.sparse.map") || has("GNU.sparse.offset");
                Ok(is_sparse.then_some(Self::Records))
            }
            _ => {
                let message = "is a sparse file in a form that is not known; pack it without --sparse, or with --sparse-version=1.0";
                Err(Error::new(ErrorKind::Unsupported, message))
            }
        }
    }

    /// Reads the map. `left` is how much data the entry has; what is read of it is taken off.
    pub(super) fn map(self, records: &[Record], data: &mut dyn Read, left: &mut u64) -> Result<Extents> {
        let size = value(records, "GNU.sparse.realsize").or_else(|| value(records, "GNU.sparse.size"));
        let size = size.and_then(number).ok_or_else(malformed)?;
        let extents = match self {
            Self::Records => from_records(records)?,
            Self::InData => from_data(data, left)?,
        };
        Extents::new(extents, size, *left)
    }
}

fn from_records(records: &[Record]) -> Result<Vec<Extent>> {
    let mut numbers = Vec::new();
    if let Some(map) = value(records, "GNU.sparse.map") {
        for text in map.split(|byte| *byte == b',').filter(|text| !text.is_empty()) {
            numbers.push(number(text).ok_or_else(malformed)?);
        }
    } else {
        for record in records {
            let is_offset = match record.key.as_slice() {
                b"GNU.sparse.offset" => true,
                b"GNU.sparse.numbytes" => false,
                _ => continue,
            };
            // Offsets and lengths take turns.
            if is_offset != numbers.len().is_multiple_of(2) {
                return Err(malformed());
            }
            numbers.push(number(&record.value).ok_or_else(malformed)?);
        }
    }
    if !numbers.len().is_multiple_of(2) || numbers.len() / 2 > MAX_EXTENTS {
        return Err(malformed());
    }
    Ok(numbers.chunks_exact(2).map(|pair| Extent { offset: pair[0], length: pair[1] }).collect())
}

/// Decimal numbers, each on a line: how many extents, then offset and length of each; padded to a whole block.
fn from_data(data: &mut dyn Read, left: &mut u64) -> Result<Vec<Extent>> {
    let mut lines = Lines { data, left, block: [0; BLOCK as usize], at: BLOCK as usize };
    let count = lines.number()?;
    if count > MAX_EXTENTS as u64 {
        return Err(malformed());
    }
    let mut extents = Vec::new();
    for _ in 0..count {
        extents.push(Extent { offset: lines.number()?, length: lines.number()? });
    }
    Ok(extents)
}

struct Lines<'a> {
    data: &'a mut dyn Read,
    left: &'a mut u64,
    block: [u8; BLOCK as usize],
    at: usize,
}

impl Lines<'_> {
    fn number(&mut self) -> Result<u64> {
        let mut digits = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => return number(&digits).ok_or_else(malformed),
                byte if digits.len() < MAX_DIGITS => digits.push(byte),
                _ => return Err(malformed()),
            }
        }
    }

    fn byte(&mut self) -> Result<u8> {
        if self.at == self.block.len() {
            *self.left = self.left.checked_sub(BLOCK).ok_or_else(malformed)?;
            let read = self.data.read_exact(&mut self.block);
            read.map_err(|e| Error::stream(ErrorKind::Invalid, "cannot read its map of holes", e))?;
            self.at = 0;
        }
        self.at += 1;
        Ok(self.block[self.at - 1])
    }
}

fn number(text: &[u8]) -> Option<u64> {
    let all_digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    all_digits.then(|| std::str::from_utf8(text).ok()?.parse().ok())?
}

fn malformed() -> Error {
    Error::new(ErrorKind::Invalid, "is a sparse file with a malformed map of its holes")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    offset: u64,
    length: u64,
}

/// Where a file has data, from its start to its end.
#[derive(Debug)]
pub(super) struct Extents {
    list: std::vec::IntoIter<Extent>,
    current: Option<Extent>,
    position: u64,
    size: u64,
}

/// What comes next in a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Data(u64),
    Hole(u64),
    End,
}

impl Extents {
    /// Checks that the extents are in order, lie in the file, and are as long as the data.
    fn new(list: Vec<Extent>, size: u64, data: u64) -> Result<Self> {
        let mut position = 0;
        let mut sum: u64 = 0;
        for extent in &list {
            let end = extent.offset.checked_add(extent.length).ok_or_else(malformed)?;
            if extent.offset < position || end > size {
                return Err(malformed());
            }
            position = end;
            sum += extent.length;
        }
        if sum != data {
            return Err(malformed());
        }
        let list = list.into_iter().filter(|extent| extent.length > 0).collect::<Vec<_>>();
        let mut list = list.into_iter();
        let current = list.next();
        Ok(Self { list, current, position: 0, size })
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// What follows: a hole whole, which counts as passed, or some data, of which [`Self::took`] tells.
    pub(super) fn next(&mut self, most: u64) -> Next {
        let start = self.current.map_or(self.size, |extent| extent.offset);
        if start > self.position {
            let hole = start - self.position;
            self.position = start;
            return Next::Hole(hole);
        }
        match self.current {
            None => Next::End,
            Some(extent) => Next::Data(most.min(extent.offset + extent.length - self.position)),
        }
    }

    pub(super) fn took(&mut self, bytes: u64) {
        self.position += bytes;
        if self.current.is_some_and(|extent| extent.offset + extent.length <= self.position) {
            self.current = self.list.next();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &str) -> Record {
        Record { key: key.into(), value: value.into() }
    }

    fn parts(mut extents: Extents) -> Vec<Next> {
        let mut parts = Vec::new();
        loop {
            let next = extents.next(4);
            match next {
                Next::Data(bytes) => extents.took(bytes),
                Next::Hole(_) => {}
                Next::End => return parts,
            }
            parts.push(next);
        }
    }

    #[test]
    fn every_version_says_the_same() {
        let wanted = [Next::Hole(5), Next::Data(4), Next::Data(2), Next::Hole(9)];
        let size = record("GNU.sparse.size", "20");
        let new = [
            record("GNU.sparse.major", "1"),
            record("GNU.sparse.minor", "0"),
            record("GNU.sparse.realsize", "20"),
        ];
        let zero = [
            record("GNU.sparse.offset", "5"),
            record("GNU.sparse.numbytes", "6"),
            record("GNU.sparse.offset", "20"),
            record("GNU.sparse.numbytes", "0"),
            size,
        ];
        let one = [record("GNU.sparse.map", "5,6,20,0"), record("GNU.sparse.size", "20")];
        let mut map = b"2\n5\n6\n20\n0\n".to_vec();
        map.resize(512, 0);
        for (records, data, mut left) in [(&zero[..], &b""[..], 6), (&one, b"", 6), (&new, &map, 518)] {
            let form = Form::of(records).unwrap().unwrap();
            assert_eq!(parts(form.map(records, &mut &data[..], &mut left).unwrap()), wanted);
            assert_eq!(left, 6);
        }
        assert_eq!(Form::of(&[record("path", "x")]).unwrap(), None);
        assert!(Form::of(&[record("GNU.sparse.major", "2")]).is_err());
    }

    #[test]
    fn maps_that_lie_are_refused() {
        for map in ["5", "5,x", "6,5,5,5", "0,5,4,6", "0,21", "18446744073709551615,2", "0,5", "-1,5"] {
            let records = [record("GNU.sparse.map", map), record("GNU.sparse.size", "20")];
            assert!(Form::Records.map(&records, &mut &b""[..], &mut 10).is_err(), "{map} was accepted");
        }
        let records = [record("GNU.sparse.realsize", "20")];
        for map in ["", "9999999\n", "1\n", "1\n999999999999999999999999999999\n"] {
            let mut data = map.as_bytes().to_vec();
            data.resize(data.len().next_multiple_of(512), 0);
            let mut left = data.len() as u64;
            assert!(Form::InData.map(&records, &mut data.as_slice(), &mut left).is_err(), "{map:?}");
        }
    }
}
