//! What an ELF kernel's headers say: for which processor it is, and whether a VMM can enter it.

use std::os::unix::fs::FileExt;

use crate::error::{Error, ErrorKind, Result};

const LOAD: u32 = 1;
const NOTE: u32 = 4;
const X86_64: u16 = 62;
/// More segments than any kernel has.
const MAX_SEGMENTS: u16 = 64;
/// Longest notes that are read.
const MAX_NOTES: u64 = 64 << 10;
/// The note that holds the PVH entry: owner and type (xen/interface/elfnote.h).
const PVH_ENTRY: (&[u8], u32) = (b"Xen\0", 18);

/// Bytes by their place, of a file or of memory.
pub(crate) trait Bytes {
    /// Fills `buffer` from `offset`.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()>;
}

impl Bytes for std::fs::File {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.read_exact_at(buffer, offset)
    }
}

impl Bytes for [u8] {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let part = self.get(start..).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(part.ok_or(std::io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Refuses everything but a kernel of this machine's kind with a PVH entry.
pub(crate) fn check(bytes: &(impl Bytes + ?Sized)) -> Result<()> {
    let short = |e| Error::caused(ErrorKind::Invalid, "the ELF file is cut short", e);
    let mut header = [0; 64];
    let read = bytes.read_at(0, &mut header[..4]);
    if read.is_err() || &header[..4] != b"\x7fELF" {
        let text = "it is neither a kernel's ELF image (vmlinux) nor one packed as a bzImage (vmlinuz)";
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    bytes.read_at(0, &mut header).map_err(short)?;
    let half = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let (class, order, kind, machine) = (header[4], header[5], half(16), half(18));
    if (class, order, machine) != (2, 1, X86_64) {
        let text = format!("it is for another processor (ELF machine {machine}) than x86_64");
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    let mut word = [0; 8];
    word.copy_from_slice(&header[32..40]);
    let (offset, size, count) = (u64::from_le_bytes(word), half(54), half(56));
    // An executable file, or one that can be moved.
    let is_executable = matches!(kind, 2 | 3) && size >= 56 && (1..=MAX_SEGMENTS).contains(&count);
    let mut is_loaded = false;
    let mut has_entry = false;
    for index in 0..if is_executable { u64::from(count) } else { 0 } {
        let mut segment = [0; 56];
        let at = offset.saturating_add(index * u64::from(size));
        bytes.read_at(at, &mut segment).map_err(short)?;
        let long = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&segment[at..at + 8]);
            u64::from_le_bytes(word)
        };
        match u32::from_le_bytes([segment[0], segment[1], segment[2], segment[3]]) {
            LOAD => is_loaded = true,
            NOTE => {
                let mut notes = vec![0; usize::try_from(long(32).min(MAX_NOTES)).unwrap_or(0)];
                bytes.read_at(long(8), &mut notes).map_err(short)?;
                has_entry |= holds_entry(&notes);
            }
            _ => {}
        }
    }
    if !is_loaded {
        return Err(Error::new(
            ErrorKind::Invalid,
            "it is an ELF file and not a program, let alone a kernel",
        ));
    }
    if !has_entry {
        let text =
            "it has no PVH entry, by which a VMM enters a kernel: it is no kernel, or one without CONFIG_PVH";
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    Ok(())
}

/// Whether the PVH entry is among these notes.
fn holds_entry(mut notes: &[u8]) -> bool {
    while let Some((header, rest)) = notes.split_first_chunk::<12>() {
        let word =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (name, contents) = (word(0) as usize, word(4) as usize);
        if rest.get(..name) == Some(PVH_ENTRY.0) && word(8) == PVH_ENTRY.1 {
            return true;
        }
        let length = name.next_multiple_of(4).saturating_add(contents.next_multiple_of(4));
        notes = rest.get(length..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The least that passes: one segment to load, one with the note.
    pub(crate) fn kernel(machine: u16) -> Vec<u8> {
        let mut file = vec![0; 64 + 2 * 56];
        file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        file[16..18].copy_from_slice(&2u16.to_le_bytes());
        file[18..20].copy_from_slice(&machine.to_le_bytes());
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        file[54..56].copy_from_slice(&56u16.to_le_bytes());
        file[56..58].copy_from_slice(&2u16.to_le_bytes());
        file[64..68].copy_from_slice(&LOAD.to_le_bytes());
        let mut notes = Vec::new();
        for (name, kind) in [(b"Xen\0", 6u32), (b"Xen\0", 18)] {
            notes.extend([4u32, 8, kind].map(u32::to_le_bytes).as_flattened());
            notes.extend(name);
            notes.extend([0; 8]);
        }
        let second = 64 + 56;
        let (at, length) = (file.len() as u64, notes.len() as u64);
        file[second..second + 4].copy_from_slice(&NOTE.to_le_bytes());
        file[second + 8..second + 16].copy_from_slice(&at.to_le_bytes());
        file[second + 32..second + 40].copy_from_slice(&length.to_le_bytes());
        file.extend(notes);
        file
    }

    #[test]
    fn a_kernel_passes_and_what_is_none_is_told_why() {
        check(kernel(X86_64).as_slice()).unwrap();
        let refused = |file: &[u8]| check(file).unwrap_err().to_string();
        assert!(refused(b"#!/bin/sh").contains("neither a kernel"));
        assert!(refused(b"").contains("neither a kernel"));
        assert!(refused(&kernel(183)).contains("another processor (ELF machine 183)"));
        let mut without = kernel(X86_64);
        let at = without.windows(4).rposition(|bytes| bytes == 18u32.to_le_bytes()).unwrap();
        without[at] = 17;
        assert!(refused(&without).contains("no PVH entry"));
    }

    #[test]
    fn no_length_of_a_hostile_file_is_trusted() {
        let whole = kernel(X86_64);
        for length in 0..whole.len() {
            assert!(check(&whole[..length]).is_err(), "{length}");
        }
        for at in 0..whole.len() {
            let mut file = whole.clone();
            file[at] = 0xff;
            let _ = check(file.as_slice());
        }
    }

    #[test]
    fn programs_are_not_kernels() {
        let this = std::fs::File::open("/proc/self/exe").unwrap();
        assert!(check(&this).unwrap_err().to_string().contains("no PVH entry"));
    }
}
