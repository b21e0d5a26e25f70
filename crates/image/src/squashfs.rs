//! The one thing that squashfs's tool cannot be told about an image that it makes of a stream: the root's time.
//!
//! It takes the time of its run, which would make every image of the same layers another. So the four bytes are written
//! afterwards, into an inode table that is not compressed (Linux, fs/squashfs/squashfs_fs.h: `squashfs_super_block`,
//! `squashfs_dir_inode`).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::Timespec;

use crate::merge::Form;
use crate::{Error, ErrorKind, Result};

const MAGIC: [u8; 4] = *b"hsqs";

/// Places in the superblock.
const ROOT_INODE: u64 = 32;
const INODE_TABLE: u64 = 64;

/// Set in the length of a block of metadata that is not compressed.
const PLAIN: u16 = 1 << 15;

/// Kinds of inodes: a directory, and one with room for more.
const DIRECTORIES: [u16; 2] = [1, 8];

/// Place of the time in an inode of either kind.
const TIME: u64 = 8;

/// Sets the root's time in a finished image.
pub(crate) fn set_root_time(image: &Path, time: Timespec) -> Result<()> {
    let opened = OpenOptions::new().read(true).write(true).open(image);
    let file = opened.map_err(|e| Error::io("open", image, e))?;
    let seconds = u32::try_from(Form::Squashfs.time(time).tv_sec).unwrap_or(0);
    let root = root(&file).map_err(|e| Error::io("read", image, e))?;
    let root = root.ok_or_else(|| {
        let message = format!("{} is not the squashfs that its tool was asked for", image.display());
        Error::new(ErrorKind::Tool, message)
    })?;
    file.write_all_at(&seconds.to_le_bytes(), root + TIME).map_err(|e| Error::io("write", image, e))
}

/// Where the root's inode is; `None` if it is not where it should be.
fn root(file: &File) -> io::Result<Option<u64>> {
    if read::<4>(file, 0)? != MAGIC {
        return Ok(None);
    }
    let reference = u64::from_le_bytes(read(file, ROOT_INODE)?);
    let table = u64::from_le_bytes(read(file, INODE_TABLE)?);
    // A block's place in the table, and a place in the block.
    let block = table + (reference >> 16);
    let inode = block + 2 + (reference & 0xffff);
    let is_plain = u16::from_le_bytes(read(file, block)?) & PLAIN != 0;
    let is_directory = DIRECTORIES.contains(&u16::from_le_bytes(read(file, inode)?));
    Ok((is_plain && is_directory).then_some(inode))
}

fn read<const N: usize>(file: &File, at: u64) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}
