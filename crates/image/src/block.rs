//! Read-only block images of a tree, one per image, made by the first program that is installed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use beta9_sys::reaper::Reaper;
use beta9_types::Digest;

use crate::tool::{self, argument};
use crate::{Error, Result};

/// A file system for read-only images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BlockFormat {
    /// Uncompressed: the quickest to make and to read. Linux 5.4.
    Erofs,
    /// Compressed for speed, not for size.
    Squashfs,
    /// Where neither is installed; any kernel reads it.
    Ext4,
}

impl BlockFormat {
    /// In order of preference.
    pub const ALL: [Self; 3] = [Self::Erofs, Self::Squashfs, Self::Ext4];

    /// The type to mount it as, and the extension of its file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Erofs => "erofs",
            Self::Squashfs => "squashfs",
            Self::Ext4 => "ext4",
        }
    }

    /// The program that makes it.
    pub fn program(self) -> &'static str {
        match self {
            Self::Erofs => "mkfs.erofs",
            Self::Squashfs => "mksquashfs",
            Self::Ext4 => "mke2fs",
        }
    }
}

impl std::fmt::Display for BlockFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An image's root file system as one read-only file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockImage {
    /// The file, of mode 0444. It is shared by every VM and never changes.
    pub path: PathBuf,
    /// What to mount it as.
    pub format: BlockFormat,
}

/// The first of `formats` that can be made here, and the program for it.
pub(crate) fn choose(formats: &[BlockFormat]) -> Result<(BlockFormat, PathBuf)> {
    let found = formats.iter().find_map(|format| Some((*format, tool::find(format.program())?)));
    found.ok_or_else(|| {
        let names: Vec<_> = formats.iter().map(|format| format.program()).collect();
        tool::missing(&names, "erofs-utils, squashfs-tools or e2fsprogs")
    })
}

/// Makes `output`, which must not exist, from `tree`. The image's digest names the file system.
pub(crate) fn build(
    (format, program): (BlockFormat, &Path),
    tree: &Path,
    output: &Path,
    manifest: &Digest,
    reaper: Option<&Reaper>,
) -> Result<()> {
    let mut command = Command::new(program);
    let (tree, output) = (argument(tree), argument(output));
    match format {
        BlockFormat::Erofs => {
            // Compact inodes have no time of their own and only 16 bits for owners.
            command.args(["--quiet", "-E", "force-inode-extended", "-U", &uuid(manifest)]);
            command.args([&output, &tree]);
        }
        BlockFormat::Squashfs => {
            command.args([&tree, &output]);
            command.args(["-noappend", "-no-progress", "-quiet", "-xattrs", "-mkfs-time", "0"]);
            command.args(["-comp", "zstd", "-Xcompression-level", "1"]);
        }
        BlockFormat::Ext4 => {
            let room = Room::of(&tree)?;
            command.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0"]);
            // Nothing is ever written to it: no journal, no room to grow.
            command.args(["-O", "^has_journal,^resize_inode", "-U", &uuid(manifest)]);
            command.args(["-E", "lazy_itable_init=1", "-N", &room.inodes.to_string(), "-d"]);
            command.args([&tree, &output]);
            command.arg(format!("{}k", room.kibibytes));
        }
    }
    tool::run(&mut command, reaper)
}

/// A UUID that is the same for the same image.
fn uuid(manifest: &Digest) -> String {
    let hex = manifest.hex();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..32])
}

/// What an ext4 file system needs to hold a tree. The file is sparse, so being generous costs nothing.
struct Room {
    inodes: u64,
    kibibytes: u64,
}

impl Room {
    const BLOCK: u64 = 4096;

    fn of(tree: &Path) -> Result<Self> {
        let mut inodes: u64 = 0;
        let mut blocks = 0;
        let mut left = vec![tree.to_owned()];
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(&directory).map_err(|e| Error::io("read", &directory, e))? {
                let entry = entry.map_err(|e| Error::io("read", &directory, e))?;
                let found = entry.metadata().map_err(|e| Error::io("look up", &entry.path(), e))?;
                inodes += 1;
                // One more for a directory's or an attribute's block, or for the extents of a large file.
                blocks += found.size().div_ceil(Self::BLOCK) + 1;
                if found.is_dir() {
                    left.push(entry.path());
                }
            }
        }
        let inodes = inodes + inodes / 16 + 1024;
        let inode_blocks = inodes.div_ceil(Self::BLOCK / 256);
        let blocks = blocks + blocks / 16 + inode_blocks + 4096;
        Ok(Self { inodes, kibibytes: blocks * Self::BLOCK / 1024 })
    }
}
