//! Writes entries of a tar as POSIX has them (pax): the old header where its fields are large enough, extended records
//! where not.

use std::io::{self, Write};

use rustix::fs::Timespec;

use crate::apply::Device;

const BLOCK: usize = 512;

/// One entry's header.
#[derive(Debug)]
pub(crate) struct Header<'a> {
    pub(crate) path: &'a [u8],
    /// The type flag (POSIX, ustar interchange format).
    pub(crate) kind: u8,
    pub(crate) link: &'a [u8],
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) modified: Timespec,
    pub(crate) size: u64,
    pub(crate) device: Option<Device>,
    /// Name and value of each.
    pub(crate) attributes: Vec<(&'a str, &'a [u8])>,
}

impl Header<'_> {
    pub(crate) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let records = self.records();
        if !records.is_empty() {
            to.write_all(&block(b"pax", b'x', &[], 0o644, 0, 0, 0, records.len() as u64, None))?;
            to.write_all(&records)?;
            pad(to, records.len() as u64)?;
        }
        let field = |value: u64, most: u64| if value <= most { value } else { 0 };
        let seconds = u64::try_from(self.modified.tv_sec).unwrap_or(0);
        to.write_all(&block(
            self.path,
            self.kind,
            self.link,
            self.mode.into(),
            field(self.uid.into(), OCTAL_7),
            field(self.gid.into(), OCTAL_7),
            field(seconds, OCTAL_11),
            field(self.size, OCTAL_11),
            self.device,
        ))
    }

    /// What the old header has no room for.
    fn records(&self) -> Vec<u8> {
        let mut records = Vec::new();
        let mut number = |key: &str, value: u64, most: u64| {
            if value > most {
                record(&mut records, key, value.to_string().as_bytes());
            }
        };
        number("uid", self.uid.into(), OCTAL_7);
        number("gid", self.gid.into(), OCTAL_7);
        number("size", self.size, OCTAL_11);
        let Timespec { tv_sec: seconds, tv_nsec: nanoseconds } = self.modified;
        if nanoseconds != 0 || !(0..=OCTAL_11.cast_signed()).contains(&seconds) {
            record(&mut records, "mtime", time(self.modified).as_bytes());
        }
        if self.path.len() > NAME {
            record(&mut records, "path", self.path);
        }
        if self.link.len() > NAME {
            record(&mut records, "linkpath", self.link);
        }
        for (name, value) in &self.attributes {
            record(&mut records, &format!("SCHILY.xattr.{name}"), value);
        }
        records
    }
}

/// Fills up to whole blocks.
pub(crate) fn pad(to: &mut impl Write, size: u64) -> io::Result<()> {
    let missing = (size.next_multiple_of(BLOCK as u64) - size) as usize;
    to.write_all(&[0; BLOCK][..missing])
}

/// The end of the archive.
pub(crate) fn end(to: &mut impl Write) -> io::Result<()> {
    to.write_all(&[0; 2 * BLOCK])
}

/// The most that fits into a field of so many octal digits.
const OCTAL_7: u64 = 0o777_7777;
const OCTAL_11: u64 = 0o777_7777_7777;

/// The longest name in the old header.
const NAME: usize = 100;

/// Seconds with a fraction, which pax counts towards zero's other side for times before 1970.
fn time(time: Timespec) -> String {
    let Timespec { tv_sec: seconds, tv_nsec: nanoseconds } = time;
    if seconds < 0 && nanoseconds > 0 {
        format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds)
    } else if nanoseconds > 0 {
        format!("{seconds}.{nanoseconds:09}")
    } else {
        seconds.to_string()
    }
}

/// `length key=value\n`, where the length counts everything, itself too.
fn record(records: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length.to_string().len() + rest != length {
        length = length.to_string().len() + rest;
    }
    records.extend_from_slice(format!("{length} {key}=").as_bytes());
    records.extend_from_slice(value);
    records.push(b'\n');
}

#[expect(clippy::too_many_arguments, reason = "these are the header's fields")]
fn block(
    path: &[u8],
    kind: u8,
    link: &[u8],
    mode: u64,
    uid: u64,
    gid: u64,
    seconds: u64,
    size: u64,
    device: Option<Device>,
) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8], room: usize| {
        let length = bytes.len().min(room);
        block[at..at + length].copy_from_slice(&bytes[..length]);
    };
    put(0, path, NAME);
    put(100, format!("{mode:07o}").as_bytes(), 8);
    put(108, format!("{uid:07o}").as_bytes(), 8);
    put(116, format!("{gid:07o}").as_bytes(), 8);
    put(124, format!("{size:011o}").as_bytes(), 12);
    put(136, format!("{seconds:011o}").as_bytes(), 12);
    put(148, b"        ", 8);
    put(156, &[kind], 1);
    put(157, link, NAME);
    put(257, b"ustar\x0000", 8);
    if let Some(Device { major, minor }) = device {
        put(329, format!("{major:07o}").as_bytes(), 8);
        put(337, format!("{minor:07o}").as_bytes(), 8);
    }
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_itself() {
        let mut records = Vec::new();
        record(&mut records, "a", b"1");
        assert_eq!(records, b"6 a=1\n");
        let mut records = Vec::new();
        record(&mut records, "path", &[b'x'; 90]);
        assert_eq!(records.len(), 99);
        assert!(records.starts_with(b"99 path="), "{:?}", String::from_utf8_lossy(&records));
        let mut records = Vec::new();
        record(&mut records, "path", &[b'x'; 91]);
        assert_eq!(records.len(), 101);
        assert!(records.starts_with(b"101 path="));
    }

    #[test]
    fn times_are_written_as_they_are_read() {
        let text = |tv_sec, tv_nsec| time(Timespec { tv_sec, tv_nsec });
        assert_eq!(text(12, 500_000_000), "12.500000000");
        assert_eq!(text(-2, 750_000_000), "-1.250000000");
        assert_eq!(text(-1, 750_000_000), "-0.250000000");
        assert_eq!(text(-3, 0), "-3");
    }
}
