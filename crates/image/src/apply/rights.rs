//! What the kernel lets this process do to files, and what is left out where it does not.
//!
//! Root of the machine gets what the image says, or an error. Root of a user namespace and a user without any right
//! get what the kernel gives: files belong to whom they can belong to, and devices become empty files, as other
//! programs without rights do it. What was left out is counted and told.

use std::os::fd::BorrowedFd;

use rustix::fs::{Gid, Mode, Uid, XattrFlags};
use rustix::io::Errno;

use super::metadata::Metadata;
use super::{cannot, times};
use crate::Result;

/// Whether what the image says must be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rights {
    /// Root of the machine: a refusal is an error.
    Full,
    /// Somebody else: what is refused is left out.
    Limited,
}

impl Rights {
    /// Of this process.
    pub(super) fn own() -> Self {
        // The initial user namespace is the one that maps every id to itself.
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let mut words = map.split_ascii_whitespace();
        let initial = ["0", "0", "4294967295"].iter().all(|word| words.next() == Some(*word));
        if initial && rustix::process::geteuid().is_root() { Self::Full } else { Self::Limited }
    }

    /// A directory's mode while its files are still being made in it: without rights over other modes it has to let
    /// us in.
    pub(super) fn early_mode(self, metadata: &Metadata) -> u32 {
        match self {
            Self::Full => metadata.mode,
            Self::Limited => metadata.mode | 0o700,
        }
    }
}

/// What was left out, by kind.
#[derive(Debug)]
pub(super) struct Skipped {
    rights: Rights,
    owners: u64,
    pub(super) devices: u64,
    attributes: u64,
}

impl Skipped {
    pub(super) fn new(rights: Rights) -> Self {
        Self { rights, owners: 0, devices: 0, attributes: 0 }
    }

    /// Judges the attempt to set an owner.
    pub(super) fn owner(&mut self, result: Result<(), Errno>) -> Result<()> {
        match result {
            // An id that this user namespace does not have is invalid to the kernel.
            Err(Errno::PERM | Errno::INVAL) if self.rights == Rights::Limited => {
                self.owners += 1;
                Ok(())
            }
            result => result.map_err(cannot("set the owner of")),
        }
    }

    /// Judges the attempt to set an extended attribute.
    pub(super) fn attribute(&mut self, name: &str, result: Result<(), Errno>) -> Result<()> {
        match result {
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::INVAL) if self.rights == Rights::Limited => {
                self.attributes += 1;
                Ok(())
            }
            result => result.map_err(|e| cannot(&format!("set {name:?} on"))(e)),
        }
    }

    /// Sets what an open file or directory has besides its contents. The order matters: a change of owner takes away
    /// set-user-id bits and capabilities, and any change may touch the times.
    pub(super) fn set_metadata(
        &mut self,
        file: BorrowedFd<'_>,
        metadata: &Metadata,
        mode: u32,
    ) -> Result<()> {
        let (uid, gid) = (Uid::from_raw(metadata.uid), Gid::from_raw(metadata.gid));
        self.owner(rustix::fs::fchown(file, Some(uid), Some(gid)))?;
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode)).map_err(cannot("set the mode of"))?;
        for xattr in &metadata.xattrs {
            let set = rustix::fs::fsetxattr(file, xattr.name.as_str(), &xattr.value, XattrFlags::empty());
            self.attribute(&xattr.name, set)?;
        }
        rustix::fs::futimens(file, &times(metadata.modified)).map_err(cannot("set the time of"))
    }

    /// Tells once what the tree lacks.
    pub(super) fn tell(&self) {
        let Self { owners, devices, attributes, .. } = *self;
        if owners + devices + attributes > 0 {
            tracing::warn!(
                owners,
                devices,
                attributes,
                "image unpacked without rights: some owners, devices or attributes are left out"
            );
        }
    }
}
