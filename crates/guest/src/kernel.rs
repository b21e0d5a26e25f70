//! A kernel: taken from a file of any usual form, checked, and asked what it is.

use std::fs::{self, File};
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};
use crate::{bzimage, elf, unpack};

/// What every kernel says of itself.
const BANNER: &[u8] = b"Linux version ";
/// Longest version that is believed.
const MAX_VERSION: usize = 64;
/// The driver without which nobody hears of the guest. Its name is in the kernel only if the driver is.
const VSOCK_DRIVER: &[u8] = b"vmw_vsock_virtio_transport\0";
/// What a kernel runs to have a module loaded.
const MODULE_LOADER: &[u8] = b"/sbin/modprobe\0";

/// Where a kernel has what a guest needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drivers {
    /// In itself.
    BuiltIn,
    /// In modules, which have to be in the initramfs.
    Modules,
}

/// A kernel that a microVM can boot.
#[derive(Debug, Clone)]
pub struct Kernel {
    image: Vec<u8>,
    version: String,
    drivers: Drivers,
}

impl Kernel {
    /// Reads a kernel: an ELF image, one that is compressed, or a distribution's `vmlinuz`.
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::file("open", path, e))?;
        let metadata = file.metadata().map_err(|e| Error::file("look at", path, e))?;
        if !metadata.is_file() {
            return Err(Error::new(ErrorKind::Invalid, "it is not a file").of(path));
        }
        if metadata.len() > unpack::MAX_KERNEL {
            return Err(Error::new(ErrorKind::Invalid, "it is too big for a kernel").of(path));
        }
        let bytes = fs::read(path).map_err(|e| Error::file("read", path, e))?;
        Self::of(bytes).map_err(|e| e.of(path))
    }

    fn of(bytes: Vec<u8>) -> Result<Self> {
        let image = if bzimage::is_bzimage(&bytes) {
            bzimage::vmlinux(&bytes)?
        } else if bytes.starts_with(b"\x7fELF") {
            bytes
        } else {
            // Told apart from one that is compressed and damaged.
            let text = "it is neither a kernel's ELF image (vmlinux) nor one packed as a bzImage (vmlinuz)";
            unpack::elf(&bytes, unpack::MAX_KERNEL).map_err(|error| match error.kind() {
                ErrorKind::Unsupported => Error::new(ErrorKind::Invalid, text),
                _ => error,
            })?
        };
        elf::check(image.as_slice())?;
        let version = version(&image)
            .ok_or_else(|| Error::new(ErrorKind::Invalid, "it does not say which version of Linux it is"))?;
        let drivers = match (contains(&image, VSOCK_DRIVER), contains(&image, MODULE_LOADER)) {
            (true, _) => Drivers::BuiltIn,
            (false, true) => Drivers::Modules,
            (false, false) => {
                let text = format!("Linux {version} has no driver for vsock, and loads no modules");
                return Err(Error::new(ErrorKind::Unsupported, text));
            }
        };
        Ok(Self { image, version, drivers })
    }

    /// The ELF image.
    pub fn image(&self) -> &[u8] {
        &self.image
    }

    /// As `uname -r` says it.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Where its drivers are.
    pub fn drivers(&self) -> Drivers {
        self.drivers
    }
}

/// Refuses, by its headers alone, a file that engines cannot boot.
pub fn check_file(path: &Path) -> Result<()> {
    let file = File::open(path).map_err(|e| Error::file("open", path, e))?;
    elf::check(&file).map_err(|e| e.of(path))
}

fn version(image: &[u8]) -> Option<String> {
    let mut rest = image;
    while let Some(at) = find(rest, BANNER) {
        rest = &rest[at + BANNER.len()..];
        let end = rest.iter().take(MAX_VERSION).position(|byte| !byte.is_ascii_graphic());
        let version = end.and_then(|end| std::str::from_utf8(&rest[..end]).ok()).unwrap_or_default();
        // The same words occur as a format.
        if version.starts_with(|first: char| first.is_ascii_digit()) {
            return Some(version.to_owned());
        }
    }
    None
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    find(haystack, needle).is_some()
}

/// Tens of megabytes are searched: by the first byte, then the rest.
fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let (first, _) = needle.split_first()?;
    let mut from = 0;
    while let Some(at) = haystack[from..].iter().position(|byte| byte == first) {
        if haystack[from + at..].starts_with(needle) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::tests::kernel;

    fn with(strings: &[&[u8]]) -> Vec<u8> {
        let mut file = kernel(62);
        strings.iter().for_each(|string| file.extend(*string));
        file
    }

    #[test]
    fn a_kernel_says_what_it_is() {
        let own = with(&[b"Linux version %s\0Linux version 6.1.5-own (who)", VSOCK_DRIVER]);
        let own = Kernel::of(own).unwrap();
        assert_eq!((own.version(), own.drivers()), ("6.1.5-own", Drivers::BuiltIn));
        let stock = Kernel::of(with(&[b"Linux version 6.1.0-1-amd64 ", MODULE_LOADER])).unwrap();
        assert_eq!((stock.version(), stock.drivers()), ("6.1.0-1-amd64", Drivers::Modules));
    }

    #[test]
    fn what_cannot_reach_the_host_or_is_no_kernel_is_refused() {
        let refused = |file: Vec<u8>| Kernel::of(file).unwrap_err().to_string();
        assert!(refused(with(&[b"Linux version 6.1.5 "])).contains("no driver for vsock"));
        assert!(refused(kernel(62)).contains("does not say which version"));
        assert!(refused(b"a text\n".to_vec()).contains("neither a kernel"));
        assert!(refused(vec![0x1f, 0x8b, 8, 0]).contains("damaged"));
        let path = Path::new("/etc/passwd");
        assert!(Kernel::read(path).unwrap_err().to_string().starts_with("/etc/passwd: it is neither"));
        assert!(check_file(path).unwrap_err().to_string().starts_with("/etc/passwd: it is neither"));
    }
}
