//! Paths of a layer's entries, checked before anything is looked up.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;

use crate::{Error, ErrorKind, Result};

/// Longest file name that Linux file systems take.
const NAME_MAX: usize = 255;

/// A path below the root: no leading slash, no empty, `.` or `..` component. The root itself is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EntryPath(Vec<u8>);

impl EntryPath {
    /// Checks a path from a layer. An absolute path is one from the image's root; `..` is refused, because no
    /// program that makes layers writes it.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let bad = |rule: &str| {
            let message = format!("layer has an entry {:?}, which {rule}", Shown(bytes));
            Err(Error::new(ErrorKind::Invalid, message))
        };
        if bytes.contains(&0) {
            return bad("contains a null byte");
        }
        let mut path = Vec::with_capacity(bytes.len());
        for component in bytes.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => continue,
                b".." => return bad("climbs out with `..`"),
                long if long.len() > NAME_MAX => return bad("has a name of more than 255 bytes"),
                _ => {}
            }
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(component);
        }
        Ok(Self(path))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The directory, empty for the root, and the last component. The root has neither.
    pub(crate) fn split(&self) -> Option<(&[u8], &[u8])> {
        if self.is_root() {
            return None;
        }
        match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => Some((&self.0[..slash], &self.0[slash + 1..])),
            None => Some((b"", &self.0)),
        }
    }

    /// What the last component asks for. A whiteout's prefix on any other component is refused: no file can live
    /// below a whiteout.
    pub(crate) fn marker(&self) -> Result<Marker<'_>> {
        let Some((directory, name)) = self.split() else { return Ok(Marker::None) };
        for component in directory.split(|byte| *byte == b'/') {
            match component {
                aufs if aufs.starts_with(AUFS) => return Ok(Marker::Ignored),
                whiteout if whiteout.starts_with(WHITEOUT) => {
                    let message = format!("layer has an entry {self} below a whiteout");
                    return Err(Error::new(ErrorKind::Invalid, message));
                }
                _ => {}
            }
        }
        match name {
            OPAQUE => Ok(Marker::Opaque),
            aufs if aufs.starts_with(AUFS) => Ok(Marker::Ignored),
            _ => match name.strip_prefix(WHITEOUT) {
                None => Ok(Marker::None),
                Some(b"" | b"." | b"..") => {
                    let message = format!("layer has a whiteout {self} that names no file");
                    Err(Error::new(ErrorKind::Invalid, message))
                }
                Some(hidden) => Ok(Marker::Whiteout(hidden)),
            },
        }
    }
}

impl fmt::Display for EntryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&Shown(if self.is_root() { b"/" } else { &self.0 }), f)
    }
}

/// How the names start that mean something else than a file.
pub(crate) const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Bookkeeping of aufs, which docker's first storage driver left in layers.
const AUFS: &[u8] = b".wh..wh.";

/// What a file name stands for (OCI image spec, layer.md, "Whiteouts").
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Marker<'a> {
    /// A file.
    None,
    /// This name of the layers below is gone.
    Whiteout(&'a [u8]),
    /// Everything of the layers below is gone from the directory.
    Opaque,
    /// Nothing.
    Ignored,
}

/// Hostile bytes as they may stand in a message: escaped and not too long.
pub(crate) struct Shown<'a>(pub(crate) &'a [u8]);

impl fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 200;
        let text = String::from_utf8_lossy(self.0);
        if text.chars().count() <= SHOWN {
            write!(f, "{text:?}")
        } else {
            write!(f, "{:?}…", text.chars().take(SHOWN).collect::<String>())
        }
    }
}

/// Joins a directory below the root, which may be empty, and a name.
pub(crate) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_owned() } else { [directory, b"/", name].concat() }
}

pub(crate) fn os(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_start_at_the_root_and_stay_below_it() {
        let parsed = |text: &str| EntryPath::parse(text.as_bytes()).map(|path| path.0);
        for (given, kept) in [
            ("./a/b/", "a/b"),
            ("/etc//x", "etc/x"),
            (".", ""),
            ("", ""),
            ("/", ""),
            ("a/./b", "a/b"),
            ("...", "..."),
        ] {
            assert_eq!(parsed(given).unwrap(), kept.as_bytes(), "{given}");
        }
        for bad in ["..", "a/../b", "/..", "a\0b", &"x".repeat(256)] {
            assert!(parsed(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn whiteouts_name_one_file() {
        let path = |text: &str| EntryPath::parse(text.as_bytes()).unwrap();
        assert_eq!(path("a/.wh.b").marker().unwrap(), Marker::Whiteout(b"b"));
        assert_eq!(path("a/.wh..b").marker().unwrap(), Marker::Whiteout(b".b"));
        assert_eq!(path(".wh..wh..opq").marker().unwrap(), Marker::Opaque);
        assert_eq!(path(".wh..wh.plnk/1.2").marker().unwrap(), Marker::Ignored);
        assert_eq!(path("a/.who").marker().unwrap(), Marker::None);
        for bad in ["a/.wh.", "a/.wh..", "a/.wh...", ".wh.a/b"] {
            assert!(path(bad).marker().is_err(), "{bad:?} was accepted");
        }
    }
}
