//! File operations below a hostile root.
//!
//! Directories are found by `openat2` with `RESOLVE_IN_ROOT`: symbolic links of the image resolve against the
//! image's root, however they are written, and the kernel refuses to leave it. Everything else is done on one name
//! in an open directory and follows no link.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::limits::Limits;
use super::path::{EntryPath, Shown, join, os};
use crate::{Error, ErrorKind, Result};

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

/// An open directory of the image, and where it really is.
#[derive(Debug)]
pub(super) struct Parent {
    fd: OwnedFd,
    /// Path below the root with every symbolic link resolved; empty for the root.
    pub(super) resolved: Vec<u8>,
}

impl Parent {
    /// A directory that is open already.
    pub(super) fn at(fd: OwnedFd, resolved: Vec<u8>) -> Self {
        Self { fd, resolved }
    }
}

impl AsFd for Parent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// One name in an open directory: what every change is made to.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) parent: Rc<Parent>,
    pub(super) name: Vec<u8>,
}

impl Place {
    pub(super) fn name(&self) -> &OsStr {
        os(&self.name)
    }

    /// Path below the root with every symbolic link of its directory resolved: the file's one name in our books.
    pub(super) fn resolved(&self) -> Vec<u8> {
        join(&self.parent.resolved, &self.name)
    }

    pub(super) fn stat(&self) -> Result<Option<Stat>, Errno> {
        match rustix::fs::statat(&*self.parent, self.name(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets an attribute without following a link: the directory by its descriptor, the name in it as it is.
    pub(super) fn set_xattr(&self, name: &str, value: &[u8]) -> Result<(), Errno> {
        let directory = format!("/proc/self/fd/{}", self.parent.fd.as_raw_fd());
        let path = Path::new(&directory).join(self.name());
        rustix::fs::lsetxattr(&path, name, value, rustix::fs::XattrFlags::empty())
    }
}

/// The root of a tree under construction. Nobody else changes it meanwhile.
pub(super) struct Root {
    fd: OwnedFd,
    /// Where the root is on the host, to tell where in it an open directory is.
    location: Vec<u8>,
    limits: Limits,
    /// The last directory that was asked for: entries of a directory follow each other.
    last: RefCell<Option<(Vec<u8>, Rc<Parent>)>>,
}

impl Root {
    pub(super) fn open(path: &Path, limits: Limits) -> Result<Self> {
        let fd = rustix::fs::open(path, DIRECTORY | OFlags::RDONLY, Mode::empty())
            .map_err(|e| Error::io("open", path, e))?;
        let location = location(&fd).map_err(|e| Error::io("find out the place of", path, e))?;
        Ok(Self { fd, location, limits, last: RefCell::new(None) })
    }

    #[cfg(test)]
    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Finds the directory that `path`, which is not the root, lies in. Missing directories are made; each new
    /// one's resolved path goes to `made`.
    pub(super) fn place(&self, path: &EntryPath, mut made: impl FnMut(Vec<u8>)) -> Result<Place> {
        let Some((directory, name)) = path.split() else {
            return Err(Error::new(ErrorKind::Invalid, "replaces the root itself"));
        };
        let parent = match self.lookup(directory) {
            Ok(parent) => parent,
            Err(Errno::NOENT) => self.make_directories(directory, &mut made)?,
            Err(error) => return Err(unreachable(directory, error)),
        };
        let place = Place { parent, name: name.to_owned() };
        self.check(&place)?;
        Ok(place)
    }

    /// Finds the directory that an existing file lies in; `None` if there is no such directory.
    pub(super) fn existing(&self, path: &EntryPath) -> Result<Option<Place>> {
        let Some((directory, name)) = path.split() else { return Ok(None) };
        match self.lookup(directory) {
            Ok(parent) => Ok(Some(Place { parent, name: name.to_owned() })),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(unreachable(directory, error)),
        }
    }

    /// Opens a directory of the image by a resolved path; `None` if it is none any more.
    pub(super) fn reopen(&self, resolved: &[u8]) -> Result<Option<OwnedFd>, Errno> {
        let path = if resolved.is_empty() { b"." } else { resolved };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        match rustix::fs::openat2(&self.fd, os(path), DIRECTORY | OFlags::RDONLY, Mode::empty(), resolve) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Forgets what was looked up: a directory or a link is about to be replaced.
    pub(super) fn forget(&self) {
        self.last.replace(None);
    }

    fn lookup(&self, directory: &[u8]) -> Result<Rc<Parent>, Errno> {
        if let Some((path, parent)) = &*self.last.borrow()
            && path == directory
        {
            return Ok(Rc::clone(parent));
        }
        let parent = Rc::new(self.open_parent(directory)?);
        self.last.replace(Some((directory.to_owned(), Rc::clone(&parent))));
        Ok(parent)
    }

    fn open_parent(&self, directory: &[u8]) -> Result<Parent, Errno> {
        let path = if directory.is_empty() { b"." } else { directory };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let fd = rustix::fs::openat2(&self.fd, os(path), DIRECTORY | OFlags::PATH, Mode::empty(), resolve)?;
        let location = location(&fd)?;
        let resolved = match location.strip_prefix(self.location.as_slice()) {
            Some(b"") => Vec::new(),
            Some([b'/', below @ ..]) => below.to_owned(),
            // The kernel's promise is that this cannot be; it is cheap to check.
            _ => return Err(Errno::XDEV),
        };
        Ok(Parent { fd, resolved })
    }

    fn make_directories(&self, directory: &[u8], made: &mut dyn FnMut(Vec<u8>)) -> Result<Rc<Parent>> {
        let ends = (0..directory.len()).filter(|at| directory[*at] == b'/').chain([directory.len()]);
        let mut start = 0;
        for end in ends {
            match self.lookup(&directory[..end]) {
                Ok(_) => {}
                Err(Errno::NOENT) => {
                    let above = directory[..start].strip_suffix(b"/").unwrap_or_default();
                    let parent = self.lookup(above).map_err(|e| unreachable(above, e))?;
                    let place = Place { parent, name: directory[start..end].to_owned() };
                    self.check(&place)?;
                    match rustix::fs::mkdirat(&*place.parent, place.name(), Mode::from_raw_mode(0o755)) {
                        Ok(()) => {
                            own(&place).map_err(|e| unreachable(&directory[..end], e))?;
                            made(place.resolved());
                        }
                        Err(Errno::EXIST) => {
                            let shown = Shown(&directory[..end]);
                            let message = format!("is below {shown:?}, a symbolic link to nothing");
                            return Err(Error::new(ErrorKind::Invalid, message));
                        }
                        Err(error) => return Err(unreachable(&directory[..end], error)),
                    }
                }
                Err(error) => return Err(unreachable(&directory[..end], error)),
            }
            start = end + 1;
        }
        self.lookup(directory).map_err(|e| unreachable(directory, e))
    }

    fn check(&self, place: &Place) -> Result<()> {
        let above = &place.parent.resolved;
        let depth = if above.is_empty() { 0 } else { above.iter().filter(|byte| **byte == b'/').count() + 1 };
        if depth > self.limits.depth {
            let message = format!("is more than {} directories deep", self.limits.depth);
            return Err(Error::new(ErrorKind::Limit, message));
        }
        if above.len() + 1 + place.name.len() > self.limits.path_bytes {
            let message = format!("has a path of more than {} bytes", self.limits.path_bytes);
            return Err(Error::new(ErrorKind::Limit, message));
        }
        Ok(())
    }
}

/// A new directory inherits its parent's group and set-group-id bit, and the umask takes from its mode; one that no
/// entry describes is to be root's, and the same everywhere.
fn own(place: &Place) -> Result<(), Errno> {
    let gid = rustix::process::getegid();
    rustix::fs::chownat(&*place.parent, place.name(), None, Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    rustix::fs::chmodat(&*place.parent, place.name(), Mode::from_raw_mode(0o755), AtFlags::empty())
}

/// Where an open directory is, by the kernel's own account.
fn location(fd: &OwnedFd) -> Result<Vec<u8>, Errno> {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    Ok(rustix::fs::readlink(link.as_str(), Vec::new())?.into_bytes())
}

fn unreachable(directory: &[u8], error: Errno) -> Error {
    let shown = Shown(directory);
    match error {
        Errno::NOTDIR => Error::new(ErrorKind::Invalid, format!("is below {shown:?}, which is no directory")),
        Errno::LOOP => {
            Error::new(ErrorKind::Invalid, format!("is below {shown:?}, where symbolic links form a loop"))
        }
        Errno::NAMETOOLONG => {
            Error::new(ErrorKind::Limit, format!("is below {shown:?}, a path that is too long"))
        }
        error => Error::caused(ErrorKind::Io, format!("is below {shown:?}, which cannot be opened"), error),
    }
}

/// Removes a file, or a directory with all that is in it. Follows no link. How deep it goes is bounded by the depth
/// of paths.
pub(super) fn remove(place: &Place, kind: FileType) -> Result<(), Errno> {
    remove_at(place.parent.as_fd(), place.name(), kind)
}

fn remove_at(directory: BorrowedFd<'_>, name: &OsStr, kind: FileType) -> Result<(), Errno> {
    if kind != FileType::Directory {
        return rustix::fs::unlinkat(directory, name, AtFlags::empty());
    }
    let opened =
        rustix::fs::openat(directory, name, DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW, Mode::empty())?;
    for (name, kind) in children(&opened)? {
        remove_at(opened.as_fd(), &name, kind)?;
    }
    rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR)
}

/// The names in a directory and what they are.
pub(super) fn children(directory: &OwnedFd) -> Result<Vec<(std::ffi::OsString, FileType)>, Errno> {
    let mut found = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => {
                let stat = rustix::fs::statat(directory, os(name), AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode)
            }
            kind => kind,
        };
        found.push((OsStr::from_bytes(name).to_owned(), kind));
    }
    Ok(found)
}
