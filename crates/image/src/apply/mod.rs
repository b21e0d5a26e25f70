//! Unpacks layers, which are hostile, into one tree.
//!
//! Layers are applied in order to a directory that nobody else touches. A layer may replace and hide what the layers
//! below it made (OCI image spec, layer.md); it may not name, follow or make anything outside of the root.
//!
//! Refused: `..` in paths, files below files, hard links to what is not in the image, entries of unknown types, sparse
//! files in the pax form, and whatever exceeds the [`Limits`]. Dropped: attributes that belong to the host.
//!
//! Directories get their times, and the ACLs that files would inherit, when all layers are there.

mod layer;
mod limits;
mod metadata;
mod path;
mod root;

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags};
use rustix::io::Errno;

pub use limits::Limits;
use metadata::{DEFAULT_ACL, Metadata};
use path::{EntryPath, Shown};
use root::{Parent, Place, Root};

use crate::{Error, ErrorKind, Result};

/// Directories that no entry describes get this time, so that equal layers make equal trees.
const EPOCH: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// A tree under construction.
pub(crate) struct Applier {
    root: Root,
    limits: Limits,
    entries: u64,
    bytes: u64,
    /// What directories get in the end, by resolved path. Some may be gone by then.
    directories: HashMap<Vec<u8>, Late>,
    /// Resolved paths that the current layer has made: its whiteouts only hide what is older.
    fresh: HashSet<Vec<u8>>,
}

/// What a directory gets when everything in it is there.
#[derive(Debug)]
struct Late {
    modified: Timespec,
    default_acl: Option<Vec<u8>>,
}

impl Applier {
    /// Starts with an empty directory.
    pub(crate) fn new(directory: &Path, limits: Limits) -> Result<Self> {
        let root = Root::open(directory, limits)?;
        rustix::fs::fchmod(root.fd(), Mode::from_raw_mode(0o755))
            .map_err(|e| Error::io("set the mode of", directory, e))?;
        let mut directories = HashMap::new();
        directories.insert(Vec::new(), Late { modified: EPOCH, default_acl: None });
        Ok(Self { root, limits, entries: 0, bytes: 0, directories, fresh: HashSet::new() })
    }

    /// Gives directories their times. Nothing is on the disk for good yet.
    pub(crate) fn finish(self) -> Result<()> {
        for (path, late) in &self.directories {
            let context = |e: Errno| {
                let message = format!("cannot finish the directory {:?} of the image", Shown(path));
                Error::caused(ErrorKind::Io, message, e)
            };
            let Some(directory) = self.root.reopen(path).map_err(context)? else { continue };
            if let Some(acl) = &late.default_acl {
                rustix::fs::fsetxattr(&directory, DEFAULT_ACL, acl, XattrFlags::empty()).map_err(context)?;
            }
            rustix::fs::futimens(&directory, &times(late.modified)).map_err(context)?;
        }
        Ok(())
    }

    /// Makes room for a file at `path`: what was there is gone, unless it is the directory that `keep` spares.
    /// `true` if a directory was kept.
    fn clear(&mut self, place: &Place, keep: Keep) -> Result<bool> {
        let Some(stat) = place.stat().map_err(cannot("look up"))? else { return Ok(false) };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory && keep == Keep::Directory {
            return Ok(true);
        }
        self.remove(place, kind)?;
        Ok(false)
    }

    fn remove(&mut self, place: &Place, kind: FileType) -> Result<()> {
        if matches!(kind, FileType::Directory | FileType::Symlink) {
            self.root.forget();
        }
        root::remove(place, kind).map_err(cannot("replace"))
    }

    /// Hides what older layers have at `place` and spares what this layer made.
    fn hide(&mut self, place: &Place) -> Result<()> {
        let Some(stat) = place.stat().map_err(cannot("look up"))? else { return Ok(()) };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if !self.fresh.contains(&place.resolved()) {
            return self.remove(place, kind);
        }
        if kind == FileType::Directory {
            let resolved = place.resolved();
            if let Some(directory) = self.root.reopen(&resolved).map_err(cannot("open"))? {
                self.hide_children(directory, resolved)?;
            }
        }
        Ok(())
    }

    fn hide_children(&mut self, directory: OwnedFd, resolved: Vec<u8>) -> Result<()> {
        let children = root::children(&directory).map_err(cannot("read"))?;
        let parent = std::rc::Rc::new(Parent::at(directory, resolved));
        for (name, _) in children {
            let name = std::os::unix::ffi::OsStringExt::into_vec(name);
            self.hide(&Place { parent: std::rc::Rc::clone(&parent), name })?;
        }
        Ok(())
    }
}

/// What [`Applier::clear`] spares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    Nothing,
    Directory,
}

fn times(modified: Timespec) -> Timestamps {
    Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, last_modification: modified }
}

/// The kernel's answer to an operation on an entry; the entry's name is added where it is known.
fn cannot(operation: &str) -> impl Fn(Errno) -> Error {
    move |error| {
        let remedy = match error {
            Errno::PERM | Errno::ACCESS => "; unpacking images needs root with its usual capabilities",
            Errno::OPNOTSUPP => "; the file system of the image store does not have it",
            _ => "",
        };
        Error::caused(ErrorKind::Io, format!("cannot {operation} it{remedy}"), error)
    }
}

/// Sets what an open file or directory has besides its contents. The order matters: a change of owner takes away
/// set-user-id bits and capabilities, and any change may touch the times.
fn set_metadata(file: BorrowedFd<'_>, metadata: &Metadata) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(metadata.uid), Gid::from_raw(metadata.gid));
    rustix::fs::fchown(file, Some(uid), Some(gid)).map_err(cannot("set the owner of"))?;
    rustix::fs::fchmod(file, Mode::from_raw_mode(metadata.mode)).map_err(cannot("set the mode of"))?;
    for xattr in &metadata.xattrs {
        rustix::fs::fsetxattr(file, xattr.name.as_str(), &xattr.value, XattrFlags::empty())
            .map_err(|e| cannot(&format!("set {:?} on", xattr.name))(e))?;
    }
    rustix::fs::futimens(file, &times(metadata.modified)).map_err(cannot("set the time of"))
}

/// The same for what must not be opened: links, devices and pipes.
fn set_metadata_unopened(place: &Place, kind: FileType, metadata: &Metadata) -> Result<()> {
    let parent = place.parent.as_fd();
    let name: &OsStr = place.name();
    let (uid, gid) = (Uid::from_raw(metadata.uid), Gid::from_raw(metadata.gid));
    rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(cannot("set the owner of"))?;
    if kind != FileType::Symlink {
        // Not a link: it was made a moment ago, and nobody else works here.
        rustix::fs::chmodat(parent, name, Mode::from_raw_mode(metadata.mode), AtFlags::empty())
            .map_err(cannot("set the mode of"))?;
    }
    for xattr in &metadata.xattrs {
        place
            .set_xattr(&xattr.name, &xattr.value)
            .map_err(|e| cannot(&format!("set {:?} on", xattr.name))(e))?;
    }
    rustix::fs::utimensat(parent, name, &times(metadata.modified), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(cannot("set the time of"))
}

#[cfg(test)]
mod tests;
