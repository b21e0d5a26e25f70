//! What a layer says about a file besides its contents.

use std::os::fd::BorrowedFd;

use rustix::fs::Timespec;
use rustix::io::Errno;

use super::limits::Limits;
use super::path::Shown;
use crate::tap::{Record, value};
use crate::{Error, ErrorKind, Result};

/// A default ACL is set when everything is unpacked: files made below it would inherit it otherwise.
pub(crate) const DEFAULT_ACL: &str = "system.posix_acl_default";

/// Owner, mode, time and extended attributes of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Metadata {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Permission bits with set-user-id, set-group-id and sticky.
    pub(crate) mode: u32,
    pub(crate) modified: Timespec,
    pub(crate) xattrs: Vec<Xattr>,
    pub(crate) default_acl: Option<Vec<u8>>,
}

/// An extended attribute that a file of an image may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Xattr {
    pub(crate) name: String,
    pub(crate) value: Vec<u8>,
}

impl Metadata {
    /// Of a directory that no entry describes.
    pub(crate) fn implied() -> Self {
        Self { uid: 0, gid: 0, mode: 0o755, modified: super::EPOCH, xattrs: Vec::new(), default_acl: None }
    }

    pub(super) fn read(header: &tar::Header, records: &[Record], limits: &Limits) -> Result<Self> {
        let broken = |e| Error::stream(ErrorKind::Invalid, "has a broken header field", e);
        let id = |key: &str, field: u64| {
            let id = match number(records, key)? {
                Some(id) => id,
                None => field,
            };
            // The largest id means "leave unchanged" to the kernel.
            u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or_else(|| {
                Error::new(ErrorKind::Invalid, format!("has the {key} {id}, which Linux does not have"))
            })
        };
        let uid = id("uid", header.uid().map_err(broken)?)?;
        let gid = id("gid", header.gid().map_err(broken)?)?;
        let modified = match value(records, "mtime") {
            Some(text) => parse_time(text).ok_or_else(|| {
                Error::new(ErrorKind::Invalid, format!("has the unreadable time {:?}", Shown(text)))
            })?,
            None => Timespec { tv_sec: header.mtime().map_err(broken)?.cast_signed(), tv_nsec: 0 },
        };
        let mut metadata = Self {
            uid,
            gid,
            mode: header.mode().map_err(broken)? & 0o7777,
            modified,
            xattrs: Vec::new(),
            default_acl: None,
        };
        metadata.read_xattrs(records, limits)?;
        Ok(metadata)
    }

    /// Name and value of every attribute, in the order of the names.
    pub(crate) fn attributes(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let default_acl = self.default_acl.as_deref().map(|acl| (DEFAULT_ACL, acl));
        let others = self.xattrs.iter().map(|xattr| (xattr.name.as_str(), xattr.value.as_slice()));
        others.chain(default_acl).collect::<std::collections::BTreeMap<_, _>>().into_iter()
    }

    fn read_xattrs(&mut self, records: &[Record], limits: &Limits) -> Result<()> {
        let mut count = 0;
        for record in records {
            let Some(name) = record.key.strip_prefix(b"SCHILY.xattr.") else { continue };
            count += 1;
            if count > limits.xattrs {
                let message = format!("has more than {} extended attributes", limits.xattrs);
                return Err(Error::new(ErrorKind::Limit, message));
            }
            if record.value.len() > limits.xattr_bytes {
                let message = format!(
                    "has {} bytes in the extended attribute {:?}, more than {}",
                    record.value.len(),
                    Shown(name),
                    limits.xattr_bytes
                );
                return Err(Error::new(ErrorKind::Limit, message));
            }
            let Some(name) = std::str::from_utf8(name).ok().filter(|name| !name.contains('\0')) else {
                let message = format!("has an extended attribute with the name {:?}", Shown(name));
                return Err(Error::new(ErrorKind::Invalid, message));
            };
            if name == DEFAULT_ACL {
                self.default_acl = Some(record.value.clone());
            } else if is_kept(name) {
                self.xattrs.push(Xattr { name: name.to_owned(), value: record.value.clone() });
            }
        }
        Ok(())
    }
}

/// Takes away what an image may set: an entry describes a directory whole, whatever a lower layer said of it.
pub(super) fn clear_xattrs(directory: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut names = vec![0; 64 << 10];
    let length = match rustix::fs::flistxattr(directory, names.as_mut_slice()) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error),
    };
    for name in names[..length].split(|byte| *byte == 0).filter_map(|name| std::str::from_utf8(name).ok()) {
        if is_kept(name) {
            rustix::fs::fremovexattr(directory, name)?;
        }
    }
    Ok(())
}

/// Which attributes an image may set. Labels of a security module are the host's own, and overlayfs reads its
/// attributes as instructions about other files when the tree is one of its layers.
pub(crate) fn is_kept(name: &str) -> bool {
    let overlay = name.starts_with("trusted.overlay.") || name.starts_with("user.overlay.");
    let known = name.starts_with("user.")
        || name.starts_with("trusted.")
        || matches!(name, "security.capability" | "system.posix_acl_access");
    known && !overlay
}

fn number(records: &[Record], key: &str) -> Result<Option<u64>> {
    let Some(text) = value(records, key) else { return Ok(None) };
    let parsed = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    parsed
        .map(Some)
        .ok_or_else(|| Error::new(ErrorKind::Invalid, format!("has the unreadable {key} {:?}", Shown(text))))
}

/// Seconds since the epoch with an optional fraction, as pax writes them: `-1.25` is a quarter before -1.
fn parse_time(text: &[u8]) -> Option<Timespec> {
    let text = std::str::from_utf8(text).ok()?;
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if !whole.bytes().chain(fraction.bytes()).all(|c| c.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    // More digits than nanoseconds are cut off, fewer are filled up.
    let nanoseconds: i64 = format!("{fraction:0<9}")[..9].parse().ok()?;
    Some(match (negative, nanoseconds) {
        (false, _) => Timespec { tv_sec: seconds, tv_nsec: nanoseconds },
        (true, 0) => Timespec { tv_sec: -seconds, tv_nsec: 0 },
        (true, _) => Timespec { tv_sec: -seconds - 1, tv_nsec: 1_000_000_000 - nanoseconds },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_fractions_and_signs() {
        let time = |text: &str| parse_time(text.as_bytes()).map(|time| (time.tv_sec, time.tv_nsec));
        for (text, parsed) in [
            ("12", (12, 0)),
            ("12.5", (12, 500_000_000)),
            ("12.0000000019", (12, 1)),
            ("-1.25", (-2, 750_000_000)),
            ("-3", (-3, 0)),
            ("0.", (0, 0)),
        ] {
            assert_eq!(time(text), Some(parsed), "{text}");
        }
        for bad in ["", "x", "1.x", "--1", "99999999999999999999", "+1"] {
            assert_eq!(time(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_hosts_own_attributes_are_not_an_images_to_set() {
        for kept in ["user.x", "trusted.x", "security.capability", "system.posix_acl_access"] {
            assert!(is_kept(kept), "{kept}");
        }
        for dropped in
            ["trusted.overlay.redirect", "user.overlay.opaque", "security.selinux", "security.ima", "x"]
        {
            assert!(!is_kept(dropped), "{dropped}");
        }
    }
}
