//! Copies what an image has into a directory that nobody else sees yet: files, directories, links and pipes, with
//! owners, modes, times, extended attributes and hard links. Device nodes and sockets are left out.
//!
//! The source is a tree of the image store, which nobody writes to; below its root only real directories are entered.

use std::collections::HashMap;
use std::fs::{self, Metadata, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps};
use rustix::io::Errno;

use crate::{Error, Result};

/// Copies everything in the directory `from`, and its own owner and mode, into the directory `to`.
pub(crate) fn contents(from: &Path, to: &Path) -> Result<()> {
    let mut copy = Copy::default();
    let mut waiting = vec![(from.to_owned(), to.to_owned())];
    let mut directories = Vec::new();
    while let Some((from, to)) = waiting.pop() {
        let listed = fs::read_dir(&from).map_err(|e| Error::file("list", &from, e))?;
        for entry in listed {
            let entry = entry.map_err(|e| Error::file("list", &from, e))?;
            let (source, target) = (entry.path(), to.join(entry.file_name()));
            let meta = fs::symlink_metadata(&source).map_err(|e| Error::file("look at", &source, e))?;
            if meta.is_dir() {
                fs::create_dir(&target).map_err(|e| Error::file("create", &target, e))?;
                waiting.push((source, target));
            } else if copy.one(&source, &target, &meta)? {
                attributes(&source, &target, &meta)?;
            }
        }
        directories.push((from, to));
    }
    // What is made in a directory changes its time, so they come last, the innermost first.
    for (from, to) in directories.into_iter().rev() {
        let meta = fs::symlink_metadata(&from).map_err(|e| Error::file("look at", &from, e))?;
        // The root is a link to what was opened.
        let meta = if meta.is_symlink() {
            from.metadata().map_err(|e| Error::file("look at", &from, e))?
        } else {
            meta
        };
        attributes(&from, &to, &meta)?;
    }
    Ok(())
}

#[derive(Default)]
struct Copy {
    /// The first copy of each file that has several names.
    linked: HashMap<(u64, u64), PathBuf>,
}

impl Copy {
    /// Copies what is no directory; `false` where it has its attributes already, or was left out.
    fn one(&mut self, source: &Path, target: &Path, meta: &Metadata) -> Result<bool> {
        let (kind, failed) = (meta.file_type(), |e| Error::file("write", target, e));
        if kind.is_symlink() {
            let leads = fs::read_link(source).map_err(|e| Error::file("read the link", source, e))?;
            symlink(leads, target).map_err(failed)?;
        } else if kind.is_file() {
            let key = (meta.dev(), meta.ino());
            if let Some(first) = self.linked.get(&key) {
                fs::hard_link(first, target).map_err(failed)?;
                return Ok(false);
            }
            fs::copy(source, target).map_err(failed)?;
            if meta.nlink() > 1 {
                self.linked.insert(key, target.to_owned());
            }
        } else if kind.is_fifo() {
            let mode = Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(CWD, target, FileType::Fifo, mode, 0).map_err(|e| failed(e.into()))?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }
}

fn attributes(source: &Path, target: &Path, meta: &Metadata) -> Result<()> {
    let failed = |e| Error::file("set the attributes of", target, e);
    lchown(target, Some(meta.uid()), Some(meta.gid())).map_err(failed)?;
    if !meta.is_symlink() {
        // After the owner, whose change takes set-user-id bits and capabilities away.
        fs::set_permissions(target, Permissions::from_mode(meta.mode() & 0o7777)).map_err(failed)?;
        extended(source, target).map_err(|e| failed(e.into()))?;
    }
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps {
        last_access: time(meta.atime(), meta.atime_nsec()),
        last_modification: time(meta.mtime(), meta.mtime_nsec()),
    };
    rustix::fs::utimensat(CWD, target, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| failed(e.into()))
}

/// Longest value and longest list of names (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const LONGEST: usize = 64 << 10;

fn extended(source: &Path, target: &Path) -> rustix::io::Result<()> {
    let mut names = vec![0; LONGEST];
    let length = match rustix::fs::listxattr(source, &mut names) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut value = vec![0; LONGEST];
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        // Those of `trusted` are the file system's that the tree is kept in.
        if name.starts_with(b"trusted.") {
            continue;
        }
        let name = std::ffi::OsStr::from_bytes(name);
        let length = rustix::fs::getxattr(source, name, &mut value)?;
        match rustix::fs::setxattr(target, name, &value[..length], rustix::fs::XattrFlags::empty()) {
            // The volume's file system has none, as with a copy by hand.
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
