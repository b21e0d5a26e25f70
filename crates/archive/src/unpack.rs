//! From a tar stream to a tree.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use beta9_types::Placement;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid};
use rustix::fs::{chownat, fchmod, fchown, linkat, mkdirat, openat, symlinkat, unlinkat, utimensat};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use crate::error::shown;
use crate::path::{entry as entry_path, join, os, plain, split};
use crate::tree::{Tree, kind, kind_at, look_at, reopen};
use crate::{Error, ErrorKind, Result};

/// Who owns what is unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// As the archive says, with set-user-id bits.
    Kept,
    /// These ids; without set-user-id bits, which would be somebody else's rights.
    Ids {
        /// User.
        uid: u32,
        /// Group.
        gid: u32,
    },
}

/// How an archive is unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacking {
    /// Where to, in the tree.
    pub path: String,
    /// What that is for what arrives.
    pub placement: Placement,
    /// Who owns it.
    pub owner: Owner,
    /// The name that the copied file has, where it is known: whoever made the archive must not add others.
    pub name: Option<String>,
}

/// Unpacks an archive. What it held that is left out (devices, pipes) is counted.
pub fn unpack(tree: &Tree, request: &Unpacking, from: impl Read) -> Result<u64> {
    let ending = Cell::new(0);
    let mut archive = Archive::new(Watched { from, ending: &ending });
    let mut unpacker: Option<Unpacker<'_>> = None;
    for found in archive.entries().map_err(broken)? {
        let mut found = found.map_err(broken)?;
        let name = entry_path(&found.path_bytes())?;
        let unpacker = match &mut unpacker {
            Some(unpacker) => unpacker,
            empty => empty.insert(Unpacker::begin(tree, request, &found, &name)?),
        };
        unpacker.entry(&mut found, &name)?;
    }
    if ending.get() < BLOCK {
        return Err(Error::new(ErrorKind::Stream, "the archive was cut off: its end is missing"));
    }
    match unpacker {
        Some(unpacker) => unpacker.end(),
        None if request.placement == Placement::Unpacked => {
            // An archive of nothing, which docker takes, too; the destination must be one all the same.
            directory(tree, &plain(&request.path)?)?;
            Ok(0)
        }
        None => Err(Error::new(ErrorKind::Stream, "the archive is empty")),
    }
}

/// The content of an archive that holds one regular file, of which no more than `limit` bytes are taken.
pub fn content(from: impl Read, limit: u64) -> Result<Vec<u8>> {
    let mut archive = Archive::new(from);
    let mut entries = archive.entries().map_err(broken)?;
    let Some(found) = entries.next() else {
        return Err(Error::new(ErrorKind::Stream, "the archive is empty"));
    };
    let found = found.map_err(broken)?;
    if found.header().entry_type() != EntryType::Regular {
        let name = shown(&found.path_bytes());
        return Err(Error::new(ErrorKind::Refused, format!("{name} is not a regular file")));
    }
    let mut content = Vec::new();
    found.take(limit).read_to_end(&mut content).map_err(broken)?;
    Ok(content)
}

/// What an archive ends with: two blocks of zeros, of which one is enough to know it by.
const BLOCK: usize = 512;

/// A stream that counts the zeros at its end so far. The reader of archives takes any end of the stream for the archive's,
/// and the stream of a client that went away ends, too.
struct Watched<'a, R> {
    from: R,
    ending: &'a Cell<usize>,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        let zeros = buffer[..count].iter().rev().take_while(|byte| **byte == 0).count();
        self.ending.set(if zeros == count { self.ending.get().saturating_add(zeros) } else { zeros });
        Ok(count)
    }
}

fn broken(error: io::Error) -> Error {
    Error::stream("read the archive", error)
}

struct Unpacker<'a> {
    tree: &'a Tree,
    owner: Owner,
    /// The directory that everything goes into.
    base: Vec<u8>,
    /// What the first component of every name is replaced by.
    renamed: Option<Vec<u8>>,
    /// The first component that every name has.
    only: Option<Vec<u8>>,
    /// Modes and times of new directories, set when nothing more is made in them.
    directories: Vec<(OwnedFd, u32, Timestamps)>,
    skipped: u64,
}

/// New directories whose metadata waits; descriptors are bounded.
const MAX_WAITING: usize = 256;

impl<'a> Unpacker<'a> {
    /// Decides by docker's rule from the first entry what the destination is.
    fn begin(tree: &'a Tree, request: &Unpacking, first: &Entry<'_, impl Read>, name: &[u8]) -> Result<Self> {
        let path = plain(&request.path)?;
        let only = match request.placement {
            Placement::Unpacked => None,
            Placement::Named => only(request, name)?,
        };
        let named = |base: &[u8], renamed: Option<&[u8]>| Self {
            tree,
            owner: request.owner,
            base: base.to_vec(),
            renamed: renamed.map(<[u8]>::to_vec),
            only: only.clone(),
            directories: Vec::new(),
            skipped: 0,
        };
        if request.placement == Placement::Unpacked {
            directory(tree, &path)?;
            return Ok(named(&path, None));
        }
        let is_directory = first.header().entry_type() == EntryType::Directory;
        let is_contents = name.is_empty();
        let wants_directory = request.path.ends_with('/') || request.path.ends_with("/.");
        match tree.look(&path, true) {
            Ok(found) => {
                match (kind(&found).map_err(|e| Error::file("look at", &path, e))?.0, is_directory) {
                    (FileType::Directory, _) => Ok(named(&path, None)),
                    (_, true) => {
                        let text = format!("cannot copy a directory onto the file {}", shown(&path));
                        Err(Error::new(ErrorKind::Refused, text))
                    }
                    _ if wants_directory => Err(Error::file("copy into", &path, Errno::NOTDIR)),
                    _ => {
                        let (base, renamed) = split(&path);
                        Ok(named(base, Some(renamed)))
                    }
                }
            }
            Err(Errno::NOENT) if wants_directory && !is_directory => {
                let text = format!("the directory {} does not exist: create it first", shown(&path));
                Err(Error::new(ErrorKind::NotFound, text))
            }
            Err(Errno::NOENT) => {
                let (base, renamed) = split(&path);
                if renamed == b".." {
                    return Err(Error::file("copy to", &path, Errno::NOENT));
                }
                directory(tree, base)?;
                if is_contents {
                    // Its own entry makes it.
                    return Ok(named(&path, None));
                }
                Ok(named(base, Some(renamed)))
            }
            Err(error) => Err(Error::file("copy to", &path, error)),
        }
    }

    /// Where an entry goes: the path of its directory, and its name in it, which is empty for the destination itself.
    fn place(&self, name: &[u8]) -> Result<Vec<u8>> {
        let Some(renamed) = &self.renamed else { return Ok(join(&self.base, name)) };
        let rest = name.splitn(2, |byte| *byte == b'/').nth(1).unwrap_or_default();
        Ok(join(&join(&self.base, renamed), rest))
    }

    fn entry(&mut self, entry: &mut Entry<'_, impl Read>, name: &[u8]) -> Result<()> {
        if self.only.as_deref().is_some_and(|only| first(name) != only) {
            let text = format!("archive has an entry {}, which was not asked for", shown(name));
            return Err(Error::new(ErrorKind::Refused, text));
        }
        let entry_type = entry.header().entry_type();
        let path = self.place(name)?;
        if path.is_empty() || (path == self.base && self.tree.directory(&path).is_ok()) {
            // The destination is there and stays as it is.
            return Ok(());
        }
        let (above, last) = split(&path);
        let failed = |operation: &'static str| {
            let path = path.clone();
            move |e: Errno| Error::file(operation, &path, e)
        };
        let parent = self.tree.make_directory(above).map_err(failed("make the directory of"))?;
        match entry_type {
            EntryType::Directory => self.make_directory(&parent, last, entry, &path)?,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                clear(&parent, last).map_err(failed("replace"))?;
                let flags =
                    OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
                let file =
                    openat(&parent, os(last), flags, Mode::from_raw_mode(0o600)).map_err(failed("create"))?;
                let mut file = File::from(file);
                let written = io::copy(entry, &mut file).map_err(|e| Error::file("write", &path, e))?;
                if written != entry.size() {
                    let text = format!("the archive was cut off in {}", shown(&path));
                    return Err(Error::new(ErrorKind::Stream, text));
                }
                self.finish(file.as_fd(), entry).map_err(failed("set the attributes of"))?;
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                clear(&parent, last).map_err(failed("replace"))?;
                symlinkat(os(&target), &parent, os(last)).map_err(failed("create the link"))?;
                let (uid, gid) = self.ids(entry).map_err(failed("set the owner of"))?;
                chownat(&parent, os(last), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(failed("set the owner of"))?;
                utimensat(&parent, os(last), &times(entry), AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(failed("set the time of"))?;
            }
            EntryType::Link => {
                let target = self.place(&entry_path(&entry.link_name_bytes().unwrap_or_default())?)?;
                let (above, name) = split(&target);
                let from = self.tree.directory(above).map_err(failed("make the hard link"))?;
                let found = look_at(from.as_fd(), name).map_err(failed("make the hard link"))?;
                let is_file = matches!(kind(&found), Ok((FileType::RegularFile, _)));
                if !is_file || target == path {
                    let text = format!("archive has a hard link {} to no file of its own", shown(&path));
                    return Err(Error::new(ErrorKind::Refused, text));
                }
                clear(&parent, last).map_err(failed("replace"))?;
                linkat(&from, os(name), &parent, os(last), AtFlags::empty())
                    .map_err(failed("make the hard link"))?;
            }
            EntryType::XGlobalHeader => {}
            _ => self.skipped += 1,
        }
        Ok(())
    }

    fn make_directory(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        entry: &Entry<'_, impl Read>,
        path: &[u8],
    ) -> Result<()> {
        let failed = |operation: &'static str| move |e| Error::file(operation, path, e);
        match kind_at(parent, name).map_err(failed("look at"))? {
            // What is there stays as it is. A link to a directory is one to a container.
            Some(FileType::Directory) => return Ok(()),
            Some(FileType::Symlink) if self.tree.directory(path).is_ok() => return Ok(()),
            Some(_) => {
                let text = format!("cannot copy a directory onto the file {}", shown(path));
                return Err(Error::new(ErrorKind::Refused, text));
            }
            None => {}
        }
        mkdirat(parent, os(name), Mode::from_raw_mode(0o700)).map_err(failed("make the directory"))?;
        let made = look_at(parent.as_fd(), name).and_then(|made| reopen(&made, OFlags::DIRECTORY));
        let made = made.map_err(failed("open the directory"))?;
        let (uid, gid) = self.ids(entry).map_err(failed("set the owner of"))?;
        fchown(&made, Some(uid), Some(gid)).map_err(failed("set the owner of"))?;
        if self.directories.len() == MAX_WAITING {
            self.settle().map_err(failed("set the attributes of"))?;
        }
        self.directories.push((made, self.mode(entry), times(entry)));
        Ok(())
    }

    fn finish(&self, file: BorrowedFd<'_>, entry: &Entry<'_, impl Read>) -> Result<(), Errno> {
        let (uid, gid) = self.ids(entry)?;
        // The order matters: a change of owner takes set-user-id bits away.
        fchown(file, Some(uid), Some(gid))?;
        fchmod(file, Mode::from_raw_mode(self.mode(entry)))?;
        rustix::fs::futimens(file, &times(entry))
    }

    fn ids(&self, entry: &Entry<'_, impl Read>) -> Result<(Uid, Gid), Errno> {
        let (uid, gid) = match self.owner {
            Owner::Ids { uid, gid } => (uid, gid),
            Owner::Kept => {
                // The largest id means "leave unchanged" to the kernel.
                let id = |field: io::Result<u64>| {
                    let id = field.ok().and_then(|id| u32::try_from(id).ok());
                    id.filter(|id| *id != u32::MAX).ok_or(Errno::INVAL)
                };
                (id(entry.header().uid())?, id(entry.header().gid())?)
            }
        };
        Ok((Uid::from_raw(uid), Gid::from_raw(gid)))
    }

    fn mode(&self, entry: &Entry<'_, impl Read>) -> u32 {
        let kept = if self.owner == Owner::Kept { 0o7777 } else { 0o1777 };
        entry.header().mode().unwrap_or(0o644) & kept
    }

    /// Gives new directories their modes and times, the innermost first.
    fn settle(&mut self) -> Result<(), Errno> {
        while let Some((directory, mode, times)) = self.directories.pop() {
            fchmod(&directory, Mode::from_raw_mode(mode))?;
            rustix::fs::futimens(&directory, &times)?;
        }
        Ok(())
    }

    fn end(mut self) -> Result<u64> {
        let base = self.base.clone();
        self.settle().map_err(|e| Error::file("set the attributes of directories in", &base, e))?;
        Ok(self.skipped)
    }
}

/// The first component that the archive's names must have; `None` where it holds what is in a directory.
fn only(request: &Unpacking, name: &[u8]) -> Result<Option<Vec<u8>>> {
    let wanted = request.name.as_deref().unwrap_or_default();
    match (&request.name, first(name)) {
        (None, b"") => Ok(None),
        (None, first) => Ok(Some(first.to_vec())),
        (Some(_), b"") if wanted.is_empty() => Ok(None),
        (Some(_), first) if first == wanted.as_bytes() => Ok(Some(first.to_vec())),
        _ => {
            let text = format!("archive begins with {}, which was not asked for", shown(name));
            Err(Error::new(ErrorKind::Refused, text))
        }
    }
}

fn first(name: &[u8]) -> &[u8] {
    name.split(|byte| *byte == b'/').next().unwrap_or_default()
}

fn directory(tree: &Tree, path: &[u8]) -> Result<OwnedFd> {
    tree.directory(path).map_err(|e| match e {
        Errno::NOENT => {
            let text = format!("the directory {} does not exist: create it first", shown(path));
            Error::new(ErrorKind::NotFound, text)
        }
        e => Error::file("copy into", path, e),
    })
}

/// Makes room for a file: what has its name goes, unless it is a directory.
fn clear(parent: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    match unlinkat(parent, os(name), AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

fn times(entry: &Entry<'_, impl Read>) -> Timestamps {
    let seconds = entry.header().mtime().unwrap_or(0);
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: i64::try_from(seconds).unwrap_or(0), tv_nsec: 0 },
    }
}
