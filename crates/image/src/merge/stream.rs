//! The second reading: the merged tar.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::io::{BufWriter, Write};

use rustix::fs::Timespec;

use super::index::{Body, Index, Inode, Node, Origin};
use super::tar_writer::{self, Header};
use crate::apply::{Contents, Destination, Entry, EntryPath, Metadata, Part};
use crate::{Error, ErrorKind, Result};

const BUFFER: usize = 256 << 10;

/// What the reader of the stream can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Everything.
    Whole,
    /// Times are whole seconds from 1970 to 2106, and attributes are of the classes `user`, `trusted` and `security`
    /// (Linux, filesystems/squashfs.rst). What is outside is brought to the nearest time, and left out.
    Squashfs,
}

impl Form {
    /// Whether nothing would be lost.
    pub(super) fn holds(self, metadata: &Metadata) -> bool {
        self.time(metadata.modified) == metadata.modified
            && metadata.attributes().all(|(name, _)| self.takes(name))
    }

    pub(crate) fn time(self, time: Timespec) -> Timespec {
        match self {
            Self::Whole => time,
            Self::Squashfs => Timespec { tv_sec: time.tv_sec.clamp(0, u32::MAX.into()), tv_nsec: 0 },
        }
    }

    fn takes(self, attribute: &str) -> bool {
        self == Self::Whole || !attribute.starts_with("system.")
    }
}

/// Writes the stream: it gets the same layers as the index did, in the same order.
pub(crate) struct Copier<'i, W: Write> {
    index: &'i Index,
    to: BufWriter<W>,
    form: Form,
    /// The files of the index, by where their contents are.
    origins: HashMap<Origin, Inode>,
    /// The first name of everything that is no directory.
    paths: HashMap<Inode, Vec<u8>>,
    /// What comes after the files: an inode's other names, by the name.
    links: Vec<(Vec<u8>, Inode)>,
    layers: u32,
    entries: u64,
    buffer: Vec<u8>,
}

impl<'i, W: Write> Copier<'i, W> {
    /// Writes the directories.
    pub(crate) fn start(index: &'i Index, to: W, form: Form) -> Result<Self> {
        let mut copier = Self {
            index,
            to: BufWriter::with_capacity(BUFFER, to),
            form,
            origins: index.origins(),
            paths: HashMap::new(),
            links: Vec::new(),
            layers: 0,
            entries: 0,
            buffer: vec![0; BUFFER],
        };
        copier.directory(Inode::ROOT, &mut Vec::new())?;
        Ok(copier)
    }

    /// Writes a directory and those below it, in the order of their names.
    fn directory(&mut self, inode: Inode, path: &mut Vec<u8>) -> Result<()> {
        let index = self.index;
        let shown = if path.is_empty() { b"./".to_vec() } else { [path.as_slice(), b"/"].concat() };
        // Squashfs's tool takes the root from its own options, and complains of an entry for it.
        if self.form == Form::Whole || !path.is_empty() {
            self.header(index.node(inode), &shown, b'5', b"")?;
        }
        let length = path.len();
        for (name, found) in index.names(inode).into_iter().flatten() {
            if length > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            if index.names(found.inode).is_some() {
                self.directory(found.inode, path)?;
            } else {
                match self.paths.entry(found.inode) {
                    Slot::Occupied(_) => self.links.push((path.clone(), found.inode)),
                    Slot::Vacant(first) => drop(first.insert(path.clone())),
                }
            }
            path.truncate(length);
        }
        Ok(())
    }

    /// Writes what is left when all layers were read: what has no contents, and further names.
    pub(crate) fn finish(mut self) -> Result<()> {
        if !self.origins.is_empty() {
            return Err(Error::new(ErrorKind::Mismatch, "the image's layers changed while they were read"));
        }
        let index = self.index;
        let mut others: Vec<_> = std::mem::take(&mut self.paths).into_iter().collect();
        others.sort_unstable_by(|a, b| a.1.cmp(&b.1));
        for (inode, path) in &others {
            let node = index.node(*inode);
            let (kind, link): (u8, &[u8]) = match &node.body {
                Body::Directory(_) | Body::File { .. } => continue,
                Body::Symlink(target) => (b'2', target),
                Body::Fifo => (b'6', b""),
                Body::Character(_) => (b'3', b""),
                Body::Block(_) => (b'4', b""),
            };
            self.header(node, path, kind, link)?;
        }
        let first: HashMap<_, _> = others.into_iter().collect();
        let mut links = std::mem::take(&mut self.links);
        links.sort_unstable();
        for (path, inode) in links {
            if let Some(target) = first.get(&inode) {
                self.header(index.node(inode), &path, b'1', target)?;
            }
        }
        tar_writer::end(&mut self.to).and_then(|()| self.to.flush()).map_err(broken)
    }

    fn header(&mut self, node: &Node, path: &[u8], kind: u8, link: &[u8]) -> Result<()> {
        let metadata = &node.metadata;
        let attributes = metadata.attributes().filter(|(name, _)| self.form.takes(name));
        let header = Header {
            path,
            kind,
            link,
            // No file system keeps another mode of a link.
            mode: if matches!(node.body, Body::Symlink(_)) { 0o777 } else { metadata.mode },
            uid: metadata.uid,
            gid: metadata.gid,
            modified: self.form.time(metadata.modified),
            size: match node.body {
                Body::File { size, .. } if kind == b'0' => size,
                _ => 0,
            },
            device: match node.body {
                Body::Character(device) | Body::Block(device) => Some(device),
                _ => None,
            },
            attributes: if kind == b'1' { Vec::new() } else { attributes.collect() },
        };
        header.write(&mut self.to).map_err(broken)
    }

    fn contents(&mut self, contents: &mut Contents<'_>) -> Result<()> {
        loop {
            match contents.next(&mut self.buffer)? {
                Part::Data(count) => self.to.write_all(&self.buffer[..count]).map_err(broken)?,
                Part::Hole(mut bytes) => {
                    self.buffer.fill(0);
                    while bytes > 0 {
                        let count = bytes.min(self.buffer.len() as u64);
                        self.to.write_all(&self.buffer[..count as usize]).map_err(broken)?;
                        bytes -= count;
                    }
                }
                Part::End => return tar_writer::pad(&mut self.to, contents.size).map_err(broken),
            }
        }
    }
}

fn broken(error: std::io::Error) -> Error {
    Error::caused(ErrorKind::Io, "cannot hand over the image's files", error)
}

impl<W: Write> Destination for Copier<'_, W> {
    fn begin_layer(&mut self) {
        self.layers += 1;
        self.entries = 0;
    }

    fn whiteout(&mut self, _: &EntryPath, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn opaque(&mut self, _: &EntryPath) -> Result<()> {
        Ok(())
    }

    fn entry(&mut self, _: &EntryPath, _: Entry, contents: &mut Contents<'_>) -> Result<()> {
        self.entries += 1;
        let origin = Origin { layer: self.layers, entry: self.entries };
        let Some(inode) = self.origins.remove(&origin) else { return Ok(()) };
        let Some(path) = self.paths.get(&inode).cloned() else { return Ok(()) };
        let index = self.index;
        self.header(index.node(inode), &path, b'0', b"")?;
        self.contents(contents)
    }
}
