//! One file of a directory tree, held by a descriptor: what is looked at is what is read, whatever its name stands for
//! meanwhile.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::apply::{DEFAULT_ACL, is_kept};

/// What is opened is named, not read: no device wakes, no pipe waits, and no link is followed.
const NAMED: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A list of attributes' names, and one value: the kernel gives no more.
const ATTRIBUTE_BYTES: usize = 64 << 10;

pub(super) struct Node {
    fd: OwnedFd,
    stat: Stat,
    mounted: bool,
}

impl Node {
    /// The directory to start from. A link to it is followed: it is the user's own word.
    pub(super) fn root(path: &Path) -> Result<Self, Errno> {
        let fd = rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Self::of(fd, false)
    }

    /// The file of that name in this directory.
    pub(super) fn child(&self, name: &CStr) -> Result<Self, Errno> {
        let stay = ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(&self.fd, name, NAMED, Mode::empty(), stay) {
            Ok(fd) => Self::of(fd, false),
            Err(Errno::XDEV) => Self::of(rustix::fs::openat(&self.fd, name, NAMED, Mode::empty())?, true),
            Err(error) => Err(error),
        }
    }

    fn of(fd: OwnedFd, mounted: bool) -> Result<Self, Errno> {
        let stat = rustix::fs::fstat(&fd)?;
        Ok(Self { fd, stat, mounted })
    }

    pub(super) fn stat(&self) -> &Stat {
        &self.stat
    }

    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Whether another file system lies on it.
    pub(super) fn is_mounted(&self) -> bool {
        self.mounted
    }

    /// The names in this directory. `charge` hears of each as it comes, and can refuse to hear more.
    pub(super) fn names<E: From<Errno>>(
        &self,
        mut charge: impl FnMut(&CStr) -> Result<(), E>,
    ) -> Result<Vec<CString>, E> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut names = Vec::new();
        for entry in Dir::new(rustix::fs::openat(&self.fd, c".", flags, Mode::empty())?)? {
            let entry = entry?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                charge(name)?;
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Where this link points to.
    pub(super) fn target(&self) -> Result<Vec<u8>, Errno> {
        Ok(rustix::fs::readlinkat(&self.fd, c"", Vec::new())?.into_bytes())
    }

    /// This file's contents, to be read once.
    pub(super) fn contents(&self) -> Result<File, Errno> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::open(self.handle(), flags, Mode::empty())?))
    }

    /// The attributes that an image can have, in the order of their names.
    pub(super) fn attributes(&self) -> Result<Vec<(String, Vec<u8>)>, Errno> {
        let path = self.handle();
        let mut buffer = vec![0; ATTRIBUTE_BYTES];
        let length = match rustix::fs::listxattr(&path, buffer.as_mut_slice()) {
            Err(Errno::OPNOTSUPP) => 0,
            length => length?,
        };
        let mut found = Vec::new();
        for name in
            buffer[..length].split(|byte| *byte == 0).filter_map(|name| std::str::from_utf8(name).ok())
        {
            if !is_kept(name) && name != DEFAULT_ACL {
                continue;
            }
            let mut value = vec![0; ATTRIBUTE_BYTES];
            let length = rustix::fs::getxattr(&path, name, value.as_mut_slice())?;
            value.truncate(length);
            found.push((name.to_owned(), value));
        }
        found.sort_unstable();
        Ok(found)
    }

    /// A path to this very file, link or not.
    fn handle(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_fd().as_raw_fd()))
    }
}

/// Whether a file is still what it was: its size and times.
pub(super) fn unchanged(before: &Stat, file: BorrowedFd<'_>) -> Result<bool, Errno> {
    let now = rustix::fs::fstat(file)?;
    let key = |stat: &Stat| {
        (stat.st_ino, stat.st_size, stat.st_mtime, stat.st_mtime_nsec, stat.st_ctime, stat.st_ctime_nsec)
    };
    Ok(key(before) == key(&now))
}

/// Whether one directory is another one, or lies in it.
pub(super) fn lies_in(inner: &Path, outer: &Path) -> Result<bool, Errno> {
    let resolved = |path: &Path| -> Result<Vec<u8>, Errno> {
        let fd = rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let path = rustix::fs::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())?;
        Ok(path.into_bytes())
    };
    let (inner, outer) = (resolved(inner)?, resolved(outer)?);
    Ok(Path::new(std::ffi::OsStr::from_bytes(&inner)).starts_with(std::ffi::OsStr::from_bytes(&outer)))
}
