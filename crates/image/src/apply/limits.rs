//! What one image may ask for, and what it has asked for so far.

use crate::{Error, ErrorKind, Result};

/// What one image may ask for when it is unpacked. All layers count together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries in the layers. The largest public images have about half a million files.
    pub entries: u64,
    /// Bytes of the decompressed layers and of the files they make, holes of sparse files included.
    pub bytes: u64,
    /// How many times larger than itself a compressed layer may become, beyond its first [`Limits::FREE`] bytes.
    /// Programs and texts shrink to a third or a tenth; what shrinks to less than a hundredth is made to.
    pub ratio: u64,
    /// Bytes of all paths, link targets and attributes together: they are kept in memory while layers are merged.
    pub names_bytes: u64,
    /// Directories above a file, symbolic links resolved.
    pub depth: usize,
    /// Bytes of a file's path below the root, symbolic links resolved. Under `PATH_MAX` (4096), so that a path
    /// stays usable below the store's own directory.
    pub path_bytes: usize,
    /// Extended attributes of one file.
    pub xattrs: usize,
    /// Bytes of one extended attribute's value. The kernel's own limit is 64 KiB.
    pub xattr_bytes: usize,
}

impl Limits {
    /// What a layer may decompress to whatever its ratio is: a file of zeros is honest up to some size.
    pub const FREE: u64 = 1 << 30;
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 4_000_000,
            bytes: 256 << 30,
            ratio: 200,
            names_bytes: 512 << 20,
            depth: 200,
            path_bytes: 3072,
            xattrs: 64,
            xattr_bytes: 64 << 10,
        }
    }
}

/// What an image has used up of its limits.
#[derive(Debug)]
pub(crate) struct Spent {
    limits: Limits,
    entries: u64,
    names: u64,
    bytes: u64,
}

impl Spent {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, entries: 0, names: 0, bytes: 0 }
    }

    pub(crate) fn entry(&mut self) -> Result<()> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            let message = format!("image has more than {} entries", self.limits.entries);
            return Err(Error::new(ErrorKind::Limit, message));
        }
        Ok(())
    }

    /// What an entry says beside its contents.
    pub(crate) fn names(&mut self, bytes: usize) -> Result<()> {
        self.names += bytes as u64;
        if self.names > self.limits.names_bytes {
            let message =
                format!("image has more than {} bytes of names and attributes", self.limits.names_bytes);
            return Err(Error::new(ErrorKind::Limit, message));
        }
        Ok(())
    }

    pub(crate) fn bytes(&mut self, count: u64) -> Result<()> {
        self.at_least(self.bytes.saturating_add(count))
    }

    /// Bytes that are known to be used: what is in both counts, of data and of archive, counts once.
    pub(crate) fn at_least(&mut self, total: u64) -> Result<()> {
        self.bytes = self.bytes.max(total);
        if self.bytes > self.limits.bytes {
            let message = format!("image unpacks to more than {} bytes", self.limits.bytes);
            return Err(Error::new(ErrorKind::Limit, message));
        }
        Ok(())
    }

    pub(crate) fn total(&self) -> u64 {
        self.bytes
    }
}
