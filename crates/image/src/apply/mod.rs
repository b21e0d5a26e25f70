//! Unpacks layers, which are hostile, into one tree.
//!
//! Layers are applied in order to a directory that nobody else touches. A layer may replace and hide what the layers
//! below it made (OCI image spec, layer.md); it may not name, follow or make anything outside of the root.
//!
//! Refused: `..` in paths, files below files, hard links to what is not in the image, entries of unknown types, and
//! whatever exceeds the [`Limits`]. Dropped: attributes that belong to the host.
//!
//! ```text
//! entries.rs   a layer's tar ──▶ entries, checked ──▶ a Destination: layer.rs (the tree), or the index of `merge`
//! ```
//!
//! Directories get their times, and the ACLs that files would inherit, when all layers are there.

mod entries;
mod layer;
mod limits;
mod metadata;
mod path;
mod rights;
mod root;
mod sparse;

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags};
use rustix::io::Errno;

pub(crate) use entries::{Contents, Destination, Device, Entry, Kind, Part, read_layer};
pub use limits::Limits;
pub(crate) use limits::Spent;
pub(crate) use metadata::{DEFAULT_ACL, Metadata, is_kept};
pub(crate) use path::{EntryPath, Shown, WHITEOUT};
use rights::{Rights, Skipped};
use root::{Parent, Place, Root};

use crate::{Error, ErrorKind, Result};

/// Directories that no entry describes get this time, so that equal layers make equal trees.
pub(crate) const EPOCH: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// A tree under construction.
pub(crate) struct Applier {
    root: Root,
    rights: Rights,
    skipped: Skipped,
    /// What directories get in the end, by resolved path. Some may be gone by then.
    directories: HashMap<Vec<u8>, Late>,
    /// Resolved paths that the current layer has made: its whiteouts only hide what is older.
    fresh: HashSet<Vec<u8>>,
    /// Resolved paths of directories in which only the current layer's files are left. To look again would find nothing,
    /// and a layer may ask for it as often as it likes.
    opaque: HashSet<Vec<u8>>,
    buffer: Vec<u8>,
}

/// What a directory gets when everything in it is there.
#[derive(Debug)]
struct Late {
    modified: Timespec,
    mode: u32,
    default_acl: Option<Vec<u8>>,
}

impl Late {
    fn of(metadata: Metadata) -> Self {
        Self { modified: metadata.modified, mode: metadata.mode, default_acl: metadata.default_acl }
    }

    /// For a directory that no entry describes.
    fn implied() -> Self {
        Self { modified: EPOCH, mode: 0o755, default_acl: None }
    }
}

impl Applier {
    /// Starts with an empty directory.
    pub(crate) fn new(directory: &Path, limits: Limits) -> Result<Self> {
        let root = Root::open(directory, limits)?;
        rustix::fs::fchmod(root.fd(), Mode::from_raw_mode(0o755))
            .map_err(|e| Error::io("set the mode of", directory, e))?;
        let rights = Rights::own();
        Ok(Self {
            root,
            rights,
            skipped: Skipped::new(rights),
            directories: HashMap::from([(Vec::new(), Late::implied())]),
            fresh: HashSet::new(),
            opaque: HashSet::new(),
            buffer: vec![0; BUFFER],
        })
    }

    /// Gives directories their times. Nothing is on the disk for good yet.
    pub(crate) fn finish(self) -> Result<()> {
        let mut directories: Vec<_> = self.directories.iter().collect();
        // A directory's own mode may shut us out of it, so it comes after what is in it.
        directories.sort_unstable_by(|a, b| b.0.cmp(a.0));
        for (path, late) in directories {
            let context = |e: Errno| {
                let message = format!("cannot finish the directory {:?} of the image", Shown(path));
                Error::caused(ErrorKind::Io, message, e)
            };
            let Some(directory) = self.root.reopen(path).map_err(context)? else { continue };
            if let Some(acl) = &late.default_acl {
                rustix::fs::fsetxattr(&directory, DEFAULT_ACL, acl, XattrFlags::empty()).map_err(context)?;
            }
            if self.rights == Rights::Limited {
                rustix::fs::fchmod(&directory, Mode::from_raw_mode(late.mode)).map_err(context)?;
            }
            rustix::fs::futimens(&directory, &times(late.modified)).map_err(context)?;
        }
        self.skipped.tell();
        Ok(())
    }
}

const BUFFER: usize = 256 << 10;

fn times(modified: Timespec) -> Timestamps {
    Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, last_modification: modified }
}

/// The kernel's answer to an operation on an entry; the entry's name is added where it is known.
fn cannot(operation: &str) -> impl Fn(Errno) -> Error + use<> {
    let operation = operation.to_owned();
    move |error| {
        let source = std::io::Error::from(error);
        let (kind, remedy) = Error::kind_of(&source);
        let remedy = match error {
            Errno::PERM | Errno::ACCESS => "; unpacking images needs root with its usual capabilities",
            Errno::OPNOTSUPP => "; the file system of the image store does not have it",
            _ => remedy,
        };
        Error::caused(kind, format!("cannot {operation} it{remedy}"), source)
    }
}

#[cfg(test)]
pub(crate) mod tests;
