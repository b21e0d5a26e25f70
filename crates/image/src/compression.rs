//! Compression, told by content: gzip, zstd or none.

use std::io::{self, BufRead, Read};

use crate::{Error, ErrorKind};

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
pub(crate) fn decompressed<'a>(mut reader: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match Compression::detect(&mut reader)? {
        Compression::Plain => Box::new(reader),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        // The library refuses windows over 128 MiB unless told otherwise, which bounds its memory.
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(reader)?),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        decompressed(bytes)?.read_to_end(&mut out)?;
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
    fn what_cannot_be_read_is_named() {
        let error = read(b"\xfd7zXZ\0rest").unwrap_err();
        assert!(error.to_string().contains("xz"), "{error}");
    }
}
