/// What one image may ask for when it is unpacked. All layers count together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries in the layers. The largest public images have about half a million files.
    pub entries: u64,
    /// Bytes of the decompressed layers and of the files they make, holes of sparse files included.
    pub bytes: u64,
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

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 4_000_000,
            bytes: 256 << 30,
            depth: 200,
            path_bytes: 3072,
            xattrs: 64,
            xattr_bytes: 64 << 10,
        }
    }
}
