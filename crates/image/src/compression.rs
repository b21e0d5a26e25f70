//! Compression, told by content: gzip, zstd or none.

use std::cell::Cell;
use std::io::{self, BufRead, Read};
use std::rc::Rc;

use crate::{Error, ErrorKind, Limits};

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    Plain,
    Gzip,
    Zstd,
}

impl Compression {
    /// Looks at the first bytes without consuming them. What we cannot read is refused by name.
    pub(crate) fn detect(reader: &mut impl BufRead) -> io::Result<Self> {
        let start = reader.fill_buf()?;
        match start {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Self::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Err(unsupported("xz")),
            [b'B', b'Z', b'h', ..] => Err(unsupported("bzip2")),
            _ => Ok(Self::Plain),
        }
    }
}

fn unsupported(name: &str) -> io::Error {
    let message = format!("compression with {name} is not supported, compress with gzip or zstd instead");
    io::Error::other(Error::new(ErrorKind::Unsupported, message))
}

/// The decompressed stream. A compressed stream may have several members or frames; they are one stream.
///
/// It may become `ratio` times as large as what was read, beyond its first [`Limits::FREE`] bytes.
pub(crate) fn decompressed<'a>(reader: impl BufRead + 'a, ratio: u64) -> io::Result<Box<dyn Read + 'a>> {
    let taken = Rc::<Cell<u64>>::default();
    let mut reader = Counted { reader, taken: Rc::clone(&taken) };
    let reader: Box<dyn Read + 'a> = match Compression::detect(&mut reader)? {
        Compression::Plain => return Ok(Box::new(reader)),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        // The library refuses windows over 128 MiB unless told otherwise, which bounds its memory.
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(reader)?),
    };
    Ok(Box::new(Inflated { reader, taken, given: 0, ratio }))
}

/// Counts what is taken out of a reader.
struct Counted<R> {
    reader: R,
    taken: Rc<Cell<u64>>,
}

impl<R: BufRead> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.taken.set(self.taken.get() + count as u64);
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.reader.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.taken.set(self.taken.get() + amount as u64);
        self.reader.consume(amount);
    }
}

/// Compares what comes out of a decompressor with what went in.
struct Inflated<'a> {
    reader: Box<dyn Read + 'a>,
    taken: Rc<Cell<u64>>,
    given: u64,
    ratio: u64,
}

impl Read for Inflated<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.given += count as u64;
        if self.given > Limits::FREE.saturating_add(self.taken.get().saturating_mul(self.ratio)) {
            let message = format!("layer decompresses to more than {} times its size", self.ratio);
            return Err(io::Error::other(Error::new(ErrorKind::Limit, message)));
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        decompressed(bytes, 200)?.read_to_end(&mut out)?;
        Ok(out)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn streams_are_told_apart_by_their_first_bytes() {
        assert_eq!(read(b"plain").unwrap(), b"plain");
        assert_eq!(read(b"").unwrap(), b"");
        assert_eq!(read(&gzip(b"zipped")).unwrap(), b"zipped");
        assert_eq!(read(&[gzip(b"two "), gzip(b"members")].concat()).unwrap(), b"two members");
        let frame = |bytes| zstd::encode_all(bytes, 1).unwrap();
        assert_eq!(read(&[frame(&b"two "[..]), frame(b"frames")].concat()).unwrap(), b"two frames");
    }

    #[test]
    fn a_cut_stream_is_an_error() {
        for whole in [gzip(&[7; 5000]), zstd::encode_all(&[7; 5000][..], 1).unwrap()] {
            assert!(read(&whole[..whole.len() - 3]).is_err());
        }
    }

    #[test]
    fn a_bomb_is_stopped_by_what_it_was_made_of() {
        // A frame of one repeated byte, which takes next to nothing, again and again.
        let frame = zstd::encode_all(io::repeat(0).take(64 << 20), 1).unwrap();
        let bomb = frame.repeat(40);
        let mut reader = decompressed(bomb.as_slice(), 200).unwrap();
        let error = io::copy(&mut reader, &mut io::sink()).unwrap_err();
        assert!(error.to_string().contains("200 times its size"), "{error}");
        // The same much is fine when there is more behind it.
        let mut reader = decompressed(bomb.as_slice(), 100_000).unwrap();
        assert_eq!(io::copy(&mut reader, &mut io::sink()).unwrap(), 40 * (64 << 20));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let error = read(b"\xfd7zXZ\0rest").unwrap_err();
        assert!(error.to_string().contains("xz"), "{error}");
    }
}
