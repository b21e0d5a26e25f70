//! A directory and all below it, in which paths are resolved by the kernel and cannot leave.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, mkdirat, openat, openat2, statat,
};
use rustix::io::Errno;

use crate::path::{os, split};
use crate::{Error, Result};

/// What symbolic links in the middle of a path mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// What they mean to a process whose `/` is the tree.
    InRoot,
    /// An error: nobody put them there but the archive that is being unpacked.
    Refused,
}

/// The root that paths are resolved in.
#[derive(Debug)]
pub struct Tree {
    root: OwnedFd,
    resolve: ResolveFlags,
}

impl Tree {
    /// A tree by its open directory.
    pub fn new(root: OwnedFd, links: Links) -> Self {
        let resolve = match links {
            Links::InRoot => ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
            Links::Refused => ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
        };
        Self { root, resolve }
    }

    /// A tree by the path of its directory.
    pub fn open(path: &Path, links: Links) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|e| Error::file("open", path.as_os_str().as_encoded_bytes(), e))?;
        Ok(Self::new(root, links))
    }

    /// What is at `path`, not opened for reading. A link at its end is itself unless it is to be followed.
    pub(crate) fn look(&self, path: &[u8], follow: bool) -> Result<OwnedFd, Errno> {
        let flags = if follow { OFlags::PATH } else { OFlags::PATH | OFlags::NOFOLLOW };
        let path = if path.is_empty() { b"." } else { path };
        openat2(&self.root, os(path), flags | OFlags::CLOEXEC, Mode::empty(), self.resolve)
    }

    /// The directory at `path`.
    pub(crate) fn directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let path = if path.is_empty() { b"." } else { path };
        openat2(&self.root, os(path), flags, Mode::empty(), self.resolve)
    }

    /// The directory at `path`; what is missing of it is made.
    pub(crate) fn make_directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        match self.directory(path) {
            Err(Errno::NOENT) if !path.is_empty() => {}
            found => return found,
        }
        let (above, name) = split(path);
        let parent = self.make_directory(above)?;
        match mkdirat(&parent, os(name), Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => self.directory(path),
            Err(error) => Err(error),
        }
    }
}

/// What an open file is.
pub(crate) fn kind(file: &impl AsFd) -> Result<(FileType, Stat), Errno> {
    let stat = fstat(file)?;
    Ok((FileType::from_raw_mode(stat.st_mode), stat))
}

/// What `name` in a directory is, whatever it points to; `None` when it is missing.
pub(crate) fn kind_at(directory: &impl AsFd, name: &[u8]) -> Result<Option<FileType>, Errno> {
    match statat(directory, os(name), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens for reading what was looked at: this very file, whatever its name means by now.
pub(crate) fn reopen(file: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::open(name, flags | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Looks at `name` in a directory without following it.
pub(crate) fn look_at(directory: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    openat(directory, os(name), OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}
