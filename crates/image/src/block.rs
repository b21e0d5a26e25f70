//! Read-only block images, one per image, by the best of the programs that are installed: of the merged layers where the
//! program reads a stream, else of the unpacked tree. Nothing is mounted to make one.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use beta9_sys::reaper::Reaper;
use beta9_types::Digest;

use crate::apply::Metadata;
use crate::merge::{Form, Index};
use crate::tool::{self, argument};
use crate::{Error, Result};

/// A file system for read-only images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BlockFormat {
    /// Uncompressed: the quickest to make and to read. Linux 5.4.
    Erofs,
    /// Uncompressed, too; older tools make it of a stream, which keeps whole seconds and no ACLs.
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

/// What a block image is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The layers, merged into a stream of this form. No tree is needed.
    Stream(Form),
    /// The unpacked tree.
    Tree,
}

/// A program that is installed, and what it can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Maker {
    pub(crate) format: BlockFormat,
    pub(crate) program: PathBuf,
    pub(crate) source: Source,
}

/// What can make block images here, the best first: those that need no tree, and among equals the first of `formats`.
pub(crate) fn makers(formats: &[BlockFormat], reaper: Option<&Reaper>) -> Result<Vec<Maker>> {
    let mut makers = Vec::new();
    for format in formats {
        let Some(program) = tool::find(format.program()) else { continue };
        let source = match format {
            // Since 1.7.
            BlockFormat::Erofs if tool::says(&program, "--help", reaper).contains("--tar=") => {
                Source::Stream(Form::Whole)
            }
            // Since 4.5.
            BlockFormat::Squashfs if tool::says(&program, "-help", reaper).contains("-tar\t") => {
                Source::Stream(Form::Squashfs)
            }
            _ => Source::Tree,
        };
        makers.push(Maker { format: *format, program, source });
    }
    if makers.is_empty() {
        let names: Vec<_> = formats.iter().map(|format| format.program()).collect();
        return Err(tool::missing(&names, "erofs-utils, squashfs-tools or e2fsprogs"));
    }
    makers.sort_by_key(|maker| maker.source == Source::Tree);
    Ok(makers)
}

/// The best of `makers` for an image: one that reads a stream, if it loses nothing of the image or there is no other
/// that keeps more.
pub(crate) fn choose<'m>(makers: &'m [Maker], index: &Index) -> Option<&'m Maker> {
    let fits = |maker: &&Maker| match maker.source {
        Source::Stream(form) => index.fits(form),
        // What squashfs cannot hold of a stream it cannot hold of a tree, and ext4's tool copies no parts of seconds.
        Source::Tree => maker.format == BlockFormat::Erofs,
    };
    makers.iter().find(fits).or_else(|| makers.first())
}

/// The command that makes `output`, which must not exist, of a stream on its input.
pub(crate) fn from_stream(maker: &Maker, output: &Path, manifest: &Digest, root: &Metadata) -> Command {
    let mut command = Command::new(&maker.program);
    match maker.format {
        BlockFormat::Squashfs => {
            command.args([Path::new("-"), &argument(output)]);
            command.args(["-tar", "-noappend", "-no-progress", "-quiet", "-xattrs", "-mkfs-time", "0"]);
            // Data as it is: a guest's processor has better things to do, and the host caches what is shared.
            command.args(["-noD", "-noF"]);
            // Of the root this is all that the tool can be told; see `squashfs.rs` for its time.
            command.args(["-root-mode", &format!("{:o}", root.mode), "-noI"]);
        }
        _ => {
            // The file system's own time is that of its making otherwise.
            command.args(["--quiet", "--tar=f", "-E", "force-inode-extended", "-T0", "--mkfs-time"]);
            command.args(["-U", &uuid(manifest)]).arg(argument(output));
        }
    }
    command
}

/// Makes `output`, which must not exist, from `tree`. The image's digest names the file system.
pub(crate) fn from_tree(
    maker: &Maker,
    tree: &Path,
    output: &Path,
    manifest: &Digest,
    reaper: Option<&Reaper>,
) -> Result<()> {
    let mut command = Command::new(&maker.program);
    let (tree, output) = (argument(tree), argument(output));
    match maker.format {
        BlockFormat::Erofs => {
            // Compact inodes have no time of their own and only 16 bits for owners.
            command.args(["--quiet", "-E", "force-inode-extended", "-U", &uuid(manifest)]);
            command.args([&output, &tree]);
        }
        BlockFormat::Squashfs => {
            command.args([&tree, &output]);
            command.args(["-noappend", "-no-progress", "-quiet", "-xattrs", "-mkfs-time", "0"]);
            command.args(["-noD", "-noF"]);
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
    tool::run(command, reaper)
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
