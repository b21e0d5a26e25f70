//! Reads a layer's entries in the order they come, checks them, and hands each to whoever makes something of it.
//!
//! What is made of a layer, a tree on the disk or an index in memory, is a [`Destination`]. Both hear the same.

use std::io::{self, Read};

use tar::EntryType;

use super::limits::{Limits, Spent};
use super::metadata::Metadata;
use super::path::{EntryPath, Marker, Shown};
use super::sparse::{self, Extents};
use crate::tap::{Headers, Record, Tap, value};
use crate::{Error, ErrorKind, Result};

const BUFFER: usize = 256 << 10;

/// Longest path that Linux takes, without the null byte.
const PATH_MAX: usize = 4095;

/// Who gets a layer's entries.
pub(crate) trait Destination {
    /// A layer above all that came before begins.
    fn begin_layer(&mut self);

    /// The file `hidden`, in the directory that `path` lies in, is gone from older layers.
    fn whiteout(&mut self, path: &EntryPath, hidden: &[u8]) -> Result<()>;

    /// Everything is gone from older layers in the directory that `path` lies in.
    fn opaque(&mut self, path: &EntryPath) -> Result<()>;

    /// There is a file, a directory or a link at `path`. What is left of its contents afterwards is skipped.
    fn entry(&mut self, path: &EntryPath, entry: Entry, contents: &mut Contents<'_>) -> Result<()>;
}

/// What a layer says about one path.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) metadata: Metadata,
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
    /// Whatever a symbolic link says.
    Symlink(Vec<u8>),
    /// Another name of a file of the image.
    HardLink(EntryPath),
    Fifo,
    Character(Device),
    Block(Device),
}

/// Major and minor number, both as large as Linux has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

/// A file's contents, to be read once from the start.
pub(crate) struct Contents<'a> {
    reader: &'a mut dyn Read,
    /// Bytes of data that the entry has, and what is not read of them.
    data: u64,
    left: u64,
    /// Size of the file, holes included.
    pub(crate) size: u64,
    extents: Option<Extents>,
    /// The archiver marked holes, which arrive as zeros.
    zeros_are_holes: bool,
    spent: &'a mut Spent,
}

/// The next part of a file's contents.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// So many bytes in the buffer.
    Data(usize),
    /// So many zeros that take no space.
    Hole(u64),
    /// There is no more.
    End,
}

impl Contents<'_> {
    /// Reads on, at most a buffer full. A file that is shorter than announced is an error.
    pub(crate) fn next(&mut self, buffer: &mut [u8]) -> Result<Part> {
        let room = match &mut self.extents {
            None => buffer.len() as u64,
            Some(extents) => match extents.next(buffer.len() as u64) {
                sparse::Next::Hole(bytes) => {
                    self.spent.bytes(bytes)?;
                    return Ok(Part::Hole(bytes));
                }
                sparse::Next::Data(bytes) => bytes,
                sparse::Next::End => return Ok(Part::End),
            },
        };
        let room = usize::try_from(room.min(self.left)).unwrap_or(buffer.len());
        if room == 0 {
            return if self.extents.is_none() { Ok(Part::End) } else { Err(self.cut()) };
        }
        let count = self.reader.read(&mut buffer[..room]).map_err(unreadable)?;
        if count == 0 {
            return Err(self.cut());
        }
        self.left -= count as u64;
        self.spent.bytes(count as u64)?;
        if let Some(extents) = &mut self.extents {
            extents.took(count as u64);
        } else if self.zeros_are_holes && buffer[..count].iter().all(|byte| *byte == 0) {
            return Ok(Part::Hole(count as u64));
        }
        Ok(Part::Data(count))
    }

    fn cut(&self) -> Error {
        let message = format!("ends after {} of its {} bytes", self.data - self.left, self.data);
        Error::new(ErrorKind::Invalid, message)
    }
}

fn unreadable(error: io::Error) -> Error {
    Error::stream(ErrorKind::Invalid, "cannot read its data", error)
}

/// Reads one decompressed layer to its end.
pub(crate) fn read_layer(
    reader: impl Read,
    limits: &Limits,
    spent: &mut Spent,
    destination: &mut dyn Destination,
) -> Result<()> {
    destination.begin_layer();
    let (tap, headers) = Tap::new(reader);
    let mut archive = tar::Archive::new(tap);
    let broken = |e| Error::stream(ErrorKind::Invalid, "cannot read the layer", e);
    let mut entries = archive.entries().map_err(broken)?;
    let mut buffer = vec![0; BUFFER];
    let before = spent.total();
    loop {
        headers.start(0);
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(broken)?;
        spent.entry()?;
        read_entry(&mut entry, &headers, limits, spent, destination)?;
        // The headers' watcher counts on data that is read; hard links may have data, too.
        while entry.read(&mut buffer).map_err(broken)? > 0 {
            spent.at_least(before + headers.position())?;
        }
        spent.at_least(before + headers.position())?;
    }
    headers.finish()?;
    // What follows the end mark is part of the layer's digest.
    let mut rest = archive.into_inner();
    while rest.read(&mut buffer).map_err(broken)? > 0 {
        spent.at_least(before + headers.position())?;
    }
    Ok(())
}

fn read_entry(
    entry: &mut tar::Entry<'_, impl Read>,
    headers: &Headers,
    limits: &Limits,
    spent: &mut Spent,
    destination: &mut dyn Destination,
) -> Result<()> {
    let records = headers.finish()?;
    if entry.header().entry_type().is_pax_global_extensions() {
        // Comments of the archiver, as git writes them.
        return Ok(());
    }
    let path = match value(&records, sparse::NAME).or_else(|| value(&records, "path")) {
        Some(path) => EntryPath::parse(path)?,
        None => EntryPath::parse(&entry.path_bytes())?,
    };
    pass_on(entry, &path, &records, limits, spent, destination).map_err(|e| {
        let message = format!("cannot unpack the layer's entry {path}");
        Error::caused(e.kind(), message, e)
    })
}

fn pass_on(
    entry: &mut tar::Entry<'_, impl Read>,
    path: &EntryPath,
    records: &[Record],
    limits: &Limits,
    spent: &mut Spent,
    destination: &mut dyn Destination,
) -> Result<()> {
    match path.marker()? {
        Marker::None => {}
        Marker::Ignored => return Ok(()),
        Marker::Whiteout(hidden) => return destination.whiteout(path, hidden),
        Marker::Opaque => return destination.opaque(path),
    }
    let metadata = Metadata::read(entry.header(), records, limits)?;
    let kind = kind(entry, records)?;
    let target = match &kind {
        Kind::Symlink(target) => target.len(),
        _ => 0,
    };
    let attributes = metadata.attributes().map(|(name, value)| name.len() + value.len()).sum::<usize>();
    spent.names(path.as_bytes().len() + target + attributes)?;
    if path.is_root() && kind != Kind::Directory {
        return Err(Error::new(ErrorKind::Invalid, "is the root and no directory"));
    }
    let zeros_are_holes = entry.header().entry_type().is_gnu_sparse();
    let mut left = entry.size();
    let mut size = left;
    let mut extents = None;
    if kind == Kind::File
        && let Some(form) = sparse::Form::of(records)?
    {
        let map = form.map(records, entry, &mut left)?;
        (size, extents) = (map.size(), Some(map));
    }
    let mut contents = Contents { reader: entry, data: left, left, size, extents, zeros_are_holes, spent };
    destination.entry(path, Entry { kind, metadata }, &mut contents)
}

fn kind(entry: &tar::Entry<'_, impl Read>, records: &[Record]) -> Result<Kind> {
    let header = entry.header();
    Ok(match header.entry_type() {
        // How directories were told before there was a type for them.
        EntryType::Regular if entry.path_bytes().ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink(target(entry, records)?),
        EntryType::Link => Kind::HardLink(EntryPath::parse(&target(entry, records)?)?),
        EntryType::Fifo => Kind::Fifo,
        EntryType::Char => Kind::Character(device(header)?),
        EntryType::Block => Kind::Block(device(header)?),
        other => {
            let message =
                format!("has the type {:?}, which no layer may contain", char::from(other.as_byte()));
            return Err(Error::new(ErrorKind::Invalid, message));
        }
    })
}

/// What a link names.
fn target(entry: &tar::Entry<'_, impl Read>, records: &[Record]) -> Result<Vec<u8>> {
    let target = match value(records, "linkpath") {
        Some(target) => target.to_owned(),
        None => entry.link_name_bytes().map(|name| name.into_owned()).unwrap_or_default(),
    };
    if target.is_empty() || target.contains(&0) || target.len() > PATH_MAX {
        let message = format!("is a link to {:?}, which is no path", Shown(&target));
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    Ok(target)
}

fn device(header: &tar::Header) -> Result<Device> {
    let broken = |e| Error::stream(ErrorKind::Invalid, "has a broken device number", e);
    let major = header.device_major().map_err(broken)?.unwrap_or_default();
    let minor = header.device_minor().map_err(broken)?.unwrap_or_default();
    // The kernel has 12 bits for the major and 20 for the minor number.
    if major >= 1 << 12 || minor >= 1 << 20 {
        let message = format!("is the device {major}:{minor}, which Linux does not have");
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    Ok(Device { major, minor })
}
