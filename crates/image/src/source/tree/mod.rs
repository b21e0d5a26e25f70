//! A directory as a root file system: read once, in the order of the names, as the tar that it would be packed into.
//!
//! The directory may be anybody's, and on a file system that a program of theirs makes up. No link is followed, no
//! device is opened, and nothing is found by a path. Other file systems mounted in it are left out: what lies below
//! them stays as an empty directory or file. Sockets are left out, as they are nothing without their process. Equal
//! directories give equal images.
//!
//! Refused: a file that changes while it is read, names that mean a removal in a layer, whatever exceeds [`Limits`],
//! and a directory in which the store itself lies.

mod node;

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Stat, Timespec};
use rustix::io::Errno;

use crate::apply::{Device, Limits, Spent, WHITEOUT};
use crate::merge::{Header, end, pad};
use crate::tap::MAX_HEADER;
use crate::{Error, ErrorKind, Result};
use node::{Node, lies_in, unchanged};

/// A tar in the making: what its reader takes is made at that moment.
pub(super) struct Tree {
    place: PathBuf,
    limits: Limits,
    spent: Spent,
    levels: Vec<Level>,
    /// First names of files that have several.
    linked: HashMap<(u64, u64), Vec<u8>>,
    /// Bytes that are ready, and how many of them are taken.
    ready: (Vec<u8>, usize),
    file: Option<Contents>,
    ended: bool,
}

/// A directory whose files are being packed.
struct Level {
    directory: Node,
    path: Vec<u8>,
    names: std::vec::IntoIter<CString>,
}

/// A file whose contents are being packed.
struct Contents {
    file: File,
    before: Stat,
    path: Vec<u8>,
    left: u64,
}

impl Tree {
    /// Starts with the directory at `place`; `store` must lie elsewhere.
    pub(super) fn open(place: &Path, store: &Path, limits: Limits) -> Result<Self> {
        let looking = |error| Error::io("look up", place, error);
        if lies_in(store, place).map_err(looking)? {
            let message = format!("cannot import {}: the image store itself lies in it", place.display());
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let mut tree = Self {
            place: place.to_owned(),
            limits,
            spent: Spent::new(limits),
            levels: Vec::new(),
            linked: HashMap::new(),
            ready: (Vec::new(), 0),
            file: None,
            ended: false,
        };
        let root = Node::root(place).map_err(looking)?;
        tree.directory(root, Vec::new())?;
        if tree.levels.iter().all(|level| level.names.as_slice().is_empty()) {
            let message = format!("cannot import {}: the directory is empty", place.display());
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        Ok(tree)
    }

    /// Gets the next bytes ready. Called when all others are taken.
    fn advance(&mut self) -> Result<()> {
        self.ready = (Vec::new(), 0);
        if let Some(contents) = self.file.take() {
            return self.close(contents);
        }
        let Some(level) = self.levels.last_mut() else {
            self.ended = true;
            return end(&mut self.ready.0).map_err(|error| self.failed("pack", b"", error));
        };
        let Some(name) = level.names.next() else {
            self.levels.pop();
            return Ok(());
        };
        let mut path = level.path.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name.to_bytes());
        match level.directory.child(&name) {
            Ok(node) => self.entry(node, path),
            Err(Errno::NOENT) => Err(self.changed(&path)),
            Err(error) => Err(self.failed("open", &path, error)),
        }
    }

    fn entry(&mut self, node: Node, path: Vec<u8>) -> Result<()> {
        let kind = node.kind();
        if kind == FileType::Directory {
            return self.directory(node, path);
        }
        let stat = *node.stat();
        if stat.st_nlink > 1 {
            let first = self.linked.entry((stat.st_dev, stat.st_ino)).or_insert_with(|| path.clone());
            if *first != path {
                let first = first.clone();
                return self.header(&node, &path, b'1', &first, 0);
            }
        }
        let size = match kind {
            FileType::RegularFile if !node.is_mounted() => u64::try_from(stat.st_size).unwrap_or(u64::MAX),
            _ => 0,
        };
        match kind {
            FileType::RegularFile => {
                self.spent.bytes(size).map_err(|error| self.refused(&path, error))?;
                self.header(&node, &path, b'0', b"", size)?;
                if !node.is_mounted() {
                    let file = node.contents().map_err(|error| self.failed("open", &path, error))?;
                    self.file = Some(Contents { file, before: stat, path, left: size });
                }
                Ok(())
            }
            FileType::Symlink => {
                let target = node.target().map_err(|error| self.failed("read the link", &path, error))?;
                self.header(&node, &path, b'2', &target, 0)
            }
            FileType::CharacterDevice => self.header(&node, &path, b'3', b"", 0),
            FileType::BlockDevice => self.header(&node, &path, b'4', b"", 0),
            FileType::Fifo => self.header(&node, &path, b'6', b"", 0),
            _ => Ok(()),
        }
    }

    fn directory(&mut self, node: Node, path: Vec<u8>) -> Result<()> {
        if self.levels.len() > self.limits.depth || path.len() > self.limits.path_bytes {
            let message = format!(
                "its path is deeper than {} directories or longer than {} bytes",
                self.limits.depth, self.limits.path_bytes
            );
            return Err(self.refused(&path, Error::new(ErrorKind::Limit, message)));
        }
        let shown = if path.is_empty() { b"./".to_vec() } else { [path.as_slice(), b"/"].concat() };
        self.header(&node, &shown, b'5', b"", 0)?;
        if node.is_mounted() {
            return Ok(());
        }
        let spent = &mut self.spent;
        let names = node.names(|name| {
            if name.to_bytes().starts_with(WHITEOUT) {
                let message =
                    format!("it has a file {name:?}, which an image cannot have: the name means a removal");
                return Err(Stop::Refused(Error::new(ErrorKind::Unsupported, message)));
            }
            spent.entry().and_then(|()| spent.names(path.len() + name.count_bytes())).map_err(Stop::Refused)
        });
        let names = names.map_err(|stop| match stop {
            Stop::Refused(error) => self.refused(&path, error),
            Stop::Failed(error) => self.failed("read the directory", &path, error),
        })?;
        self.levels.push(Level { directory: node, path, names: names.into_iter() });
        Ok(())
    }

    fn header(&mut self, node: &Node, path: &[u8], kind: u8, link: &[u8], size: u64) -> Result<()> {
        let stat = node.stat();
        let attributes = match kind {
            b'1' => Vec::new(),
            _ => node.attributes().map_err(|error| self.failed("read the attributes of", path, error))?,
        };
        for (name, value) in &attributes {
            self.spent.names(name.len() + value.len()).map_err(|error| self.refused(path, error))?;
        }
        self.spent.names(link.len()).map_err(|error| self.refused(path, error))?;
        let is_device = matches!(kind, b'3' | b'4');
        let header = Header {
            path,
            kind,
            link,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            modified: Timespec {
                tv_sec: stat.st_mtime,
                tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0).clamp(0, 999_999_999),
            },
            size,
            device: is_device.then(|| Device {
                major: rustix::fs::major(stat.st_rdev),
                minor: rustix::fs::minor(stat.st_rdev),
            }),
            attributes: attributes.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect(),
        };
        let mut bytes = Vec::new();
        header.write(&mut bytes).map_err(|error| self.failed("pack", path, error))?;
        let name = attributes.iter().find(|(name, _)| name.contains('=')).map(|(name, _)| name);
        let rule = if let Some(name) = name {
            format!("its attribute {name:?} has a name that no archive can carry")
        } else if attributes.len() > self.limits.xattrs
            || attributes.iter().any(|(_, value)| value.len() > self.limits.xattr_bytes)
            || bytes.len() > MAX_HEADER
        {
            "its extended attributes are too many or too long".to_owned()
        } else {
            self.ready.0.append(&mut bytes);
            return Ok(());
        };
        Err(self.refused(path, Error::new(ErrorKind::Limit, rule)))
    }

    /// Ends a file, if it is still the one that was announced.
    fn close(&mut self, contents: Contents) -> Result<()> {
        let Contents { mut file, before, path, left } = contents;
        let is_longer = file.read(&mut [0]).map_err(|error| self.failed("read", &path, error))? > 0;
        let is_same =
            unchanged(&before, file.as_fd()).map_err(|error| self.failed("look up", &path, error))?;
        if left > 0 || is_longer || !is_same {
            return Err(self.changed(&path));
        }
        let size = u64::try_from(before.st_size).unwrap_or(0);
        pad(&mut self.ready.0, size).map_err(|error| self.failed("pack", &path, error))
    }

    fn changed(&self, path: &[u8]) -> Error {
        let message = format!(
            "cannot import {:?}: it changed while it was read; import a snapshot, or what nobody writes to",
            self.shown(path)
        );
        Error::new(ErrorKind::Busy, message)
    }

    fn failed(&self, operation: &str, path: &[u8], error: impl Into<io::Error>) -> Error {
        Error::caused(ErrorKind::Io, format!("cannot {operation} {:?}", self.shown(path)), error.into())
    }

    fn refused(&self, path: &[u8], rule: Error) -> Error {
        Error::caused(rule.kind(), format!("cannot import {:?}", self.shown(path)), rule)
    }

    fn shown(&self, path: &[u8]) -> PathBuf {
        if path.is_empty() { self.place.clone() } else { self.place.join(OsStr::from_bytes(path)) }
    }
}

impl Read for Tree {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let (bytes, taken) = &mut self.ready;
            if *taken < bytes.len() {
                let count = buffer.len().min(bytes.len() - *taken);
                buffer[..count].copy_from_slice(&bytes[*taken..*taken + count]);
                *taken += count;
                return Ok(count);
            }
            if let Some(contents) = self.file.as_mut().filter(|contents| contents.left > 0) {
                let wanted = buffer.len().min(usize::try_from(contents.left).unwrap_or(usize::MAX));
                let read = contents.file.read(&mut buffer[..wanted]);
                let path = contents.path.clone();
                match read {
                    Ok(0) => return Err(io::Error::other(self.changed(&path))),
                    Ok(count) => {
                        contents.left -= count as u64;
                        return Ok(count);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(io::Error::other(self.failed("read", &path, error))),
                }
            }
            if self.ended {
                return Ok(0);
            }
            self.advance().map_err(io::Error::other)?;
        }
    }
}

/// Why a directory's names are not all there.
enum Stop {
    Refused(Error),
    Failed(Errno),
}

impl From<Errno> for Stop {
    fn from(error: Errno) -> Self {
        Self::Failed(error)
    }
}
