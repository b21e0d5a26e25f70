//! Compressed kernels and modules, uncompressed; never to more than a limit.

use std::io::{Cursor, Read, Write};
use std::process::{Command, Stdio};

use crate::error::{Error, ErrorKind, Result};

/// The largest kernel that is unpacked. Those of distributions are a tenth of it.
pub(crate) const MAX_KERNEL: u64 = 512 << 20;
/// The largest module.
pub(crate) const MAX_MODULE: u64 = 64 << 20;

/// Blocks of LZ4's legacy format unpack to at most this.
const LZ4_BLOCK: usize = 8 << 20;

/// How something is compressed, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    Gzip,
    Xz,
    Zstd,
    /// The legacy format, without checksums and sizes.
    Lz4,
}

impl Compression {
    fn of(bytes: &[u8]) -> Option<Self> {
        Some(match bytes {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            [0x02, 0x21, 0x4c, 0x18, ..] => Self::Lz4,
            _ => return None,
        })
    }
}

/// The ELF file that `packed` is, as it is or compressed.
pub(crate) fn elf(packed: &[u8], limit: u64) -> Result<Vec<u8>> {
    if packed.starts_with(b"\x7fELF") {
        return Ok(packed.to_vec());
    }
    let Some(compression) = Compression::of(packed) else {
        let text = "it is compressed in a way that is not known here: gzip, xz, zstd and lz4 are";
        return Err(Error::new(ErrorKind::Unsupported, text));
    };
    let damaged = |e| Error::caused(ErrorKind::Invalid, "it cannot be unpacked, so it is damaged", e);
    let unpacked = match compression {
        // A kernel's own size, or padding, may follow.
        Compression::Gzip => bounded(flate2::bufread::GzDecoder::new(Cursor::new(packed)), limit),
        Compression::Zstd => zstd::stream::read::Decoder::with_buffer(packed)
            .and_then(|decoder| bounded(decoder.single_frame(), limit)),
        Compression::Lz4 => lz4(&packed[4..], limit),
        Compression::Xz => return xz(packed, limit),
    };
    let unpacked = unpacked.map_err(damaged)?;
    if unpacked.starts_with(b"\x7fELF") {
        return Ok(unpacked);
    }
    Err(Error::new(ErrorKind::Invalid, "what it holds is not an ELF file"))
}

fn too_big(limit: u64) -> std::io::Error {
    std::io::Error::other(format!("it unpacks to more than {} MiB", limit >> 20))
}

fn bounded(from: impl Read, limit: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { Err(too_big(limit)) } else { Ok(bytes) }
}

/// Blocks, each behind its size; what follows the last one is a size that does not fit.
fn lz4(mut packed: &[u8], limit: u64) -> std::io::Result<Vec<u8>> {
    let mut unpacked = Vec::new();
    let mut block = vec![0; LZ4_BLOCK];
    while let Some((size, rest)) = packed.split_first_chunk::<4>() {
        let size = u32::from_le_bytes(*size) as usize;
        let Some((body, rest)) = rest.split_at_checked(size) else { break };
        let length = lz4_flex::block::decompress_into(body, &mut block).map_err(std::io::Error::other)?;
        unpacked.extend_from_slice(&block[..length]);
        if unpacked.len() as u64 > limit {
            return Err(too_big(limit));
        }
        packed = rest;
        if length < LZ4_BLOCK {
            break;
        }
    }
    Ok(unpacked)
}

/// By the program, because the kernel's own way of packing needs its filter for machine code.
fn xz(packed: &[u8], limit: u64) -> Result<Vec<u8>> {
    let failed = |e| Error::caused(ErrorKind::Missing, "run xz, which unpacks it: install xz-utils", e);
    let mut child = Command::new("xz")
        .args(["--decompress", "--stdout", "--single-stream"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let unpacked = std::thread::scope(|scope| {
        // A program that stops early says so by its status.
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(packed)));
        let unpacked = stdout.map_or(Ok(Vec::new()), |stdout| bounded(stdout, limit));
        if unpacked.is_err() {
            let _ = child.kill();
        }
        unpacked
    });
    let _ = child.wait();
    let unpacked = unpacked
        .map_err(|e| Error::caused(ErrorKind::Invalid, "it cannot be unpacked, so it is damaged", e))?;
    // xz complains of what follows a kernel's stream, and has given everything by then.
    if unpacked.starts_with(b"\x7fELF") {
        return Ok(unpacked);
    }
    Err(Error::new(ErrorKind::Invalid, "what it holds is not an ELF file"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn legacy_lz4(blocks: &[&[u8]]) -> Vec<u8> {
        let mut packed = vec![0x02, 0x21, 0x4c, 0x18];
        for block in blocks {
            let body = lz4_flex::block::compress(block);
            packed.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
            packed.extend(body);
        }
        packed
    }

    #[test]
    fn every_compression_gives_the_same_file_whatever_follows_it() {
        let file: Vec<u8> =
            b"\x7fELF".iter().copied().chain((0..300_000u32).map(|n| (n % 251) as u8)).collect();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&file).unwrap();
        let cases = [
            gzip.finish().unwrap(),
            zstd::stream::encode_all(&*file, 1).unwrap(),
            legacy_lz4(&[&file]),
            file.clone(),
        ];
        for (index, mut packed) in cases.into_iter().enumerate() {
            assert_eq!(elf(&packed, MAX_KERNEL).unwrap(), file, "case {index}");
            if index < 3 {
                packed.extend([0x44, 0x33, 0x22, 0x11]);
                assert_eq!(elf(&packed, MAX_KERNEL).unwrap(), file, "case {index} with its size");
                assert!(elf(&packed, 1000).is_err(), "case {index} over the limit");
                assert!(elf(&packed[..packed.len() / 2], MAX_KERNEL).is_err(), "case {index} cut short");
            }
        }
    }

    #[test]
    fn several_blocks_of_lz4_are_joined() {
        let mut first = b"\x7fELF".to_vec();
        first.resize(LZ4_BLOCK, 7);
        let packed = legacy_lz4(&[&first, b"the end"]);
        let unpacked = elf(&packed, MAX_KERNEL).unwrap();
        assert_eq!(unpacked.len(), LZ4_BLOCK + 7);
        assert!(unpacked.ends_with(b"the end"));
    }

    #[test]
    fn what_is_not_an_elf_file_is_refused_packed_or_not() {
        for packed in [b"text".to_vec(), zstd::stream::encode_all(&b"text"[..], 1).unwrap()] {
            assert!(elf(&packed, MAX_KERNEL).is_err());
        }
    }
}
