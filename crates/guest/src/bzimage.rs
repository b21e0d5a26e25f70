//! The kernel inside a distribution's `vmlinuz`: a bzImage (Documentation/arch/x86/boot.rst).

use crate::error::{Error, ErrorKind, Result};
use crate::unpack;

/// Whether it is one.
pub(crate) fn is_bzimage(image: &[u8]) -> bool {
    image.get(0x202..0x206) == Some(b"HdrS".as_slice())
}

/// The ELF kernel in it.
pub(crate) fn vmlinux(image: &[u8]) -> Result<Vec<u8>> {
    unpack::elf(payload(image)?, unpack::MAX_KERNEL)
}

fn payload(image: &[u8]) -> Result<&[u8]> {
    let short = || Error::new(ErrorKind::Invalid, "the kernel image is cut short");
    let word = |at: usize| -> Result<usize> {
        let bytes = image.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
        Ok(u32::from_le_bytes(bytes.ok_or_else(short)?) as usize)
    };
    let setup_sectors = match image.get(0x1f1).copied().unwrap_or(0) {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    // The last four bytes of the payload are its uncompressed size.
    let end = start.checked_add(word(0x24c)?).ok_or_else(short)?.saturating_sub(4);
    image.get(start..end).ok_or_else(short)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bzimage_gives_back_its_payload() {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&12u32.to_le_bytes());
        image.extend([0; 16]);
        image.extend(b"\x7fELF1234SIZEafter");
        assert!(is_bzimage(&image));
        assert_eq!(vmlinux(&image).unwrap(), b"\x7fELF1234");
        for length in [1_000_000u32, u32::MAX] {
            image[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
            assert!(vmlinux(&image).is_err());
        }
        assert!(!is_bzimage(b"short"));
    }
}
