//! Paths as bytes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::{Error, ErrorKind, Result};

/// Longest name that Linux file systems take.
const NAME_MAX: usize = 255;
/// Longest path that the kernel takes.
const PATH_MAX: usize = 4095;

pub(crate) fn os(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

pub(crate) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    match (directory, name) {
        (b"", name) => name.to_vec(),
        (directory, b"") => directory.to_vec(),
        (directory, name) => [directory, b"/", name].concat(),
    }
}

/// The directory, empty for the root, and the last component.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// A user's path without empty components and `.`; `..` is left to the kernel.
pub(crate) fn plain(path: &str) -> Result<Vec<u8>> {
    if path.contains('\0') || path.len() > PATH_MAX {
        let text = format!("{} is not a path: it has a null byte or over {PATH_MAX} bytes", shown(path));
        return Err(Error::new(ErrorKind::Refused, text));
    }
    let parts = path.as_bytes().split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
    Ok(parts.collect::<Vec<_>>().join(&b'/'))
}

fn shown(path: &str) -> String {
    crate::error::shown(path.as_bytes())
}

/// An archive's name for a file, below wherever it is unpacked. Empty for that place itself.
pub(crate) fn entry(bytes: &[u8]) -> Result<Vec<u8>> {
    let bad = |rule: &str| {
        let text = format!("archive has an entry {}, which {rule}", crate::error::shown(bytes));
        Err(Error::new(ErrorKind::Refused, text))
    };
    if bytes.contains(&0) || bytes.len() > PATH_MAX {
        return bad("has a null byte or is too long");
    }
    let mut parts = Vec::new();
    for part in bytes.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return bad("climbs out with `..`"),
            long if long.len() > NAME_MAX => return bad("has a name of more than 255 bytes"),
            part => parts.push(part),
        }
    }
    Ok(parts.join(&b'/'))
}
