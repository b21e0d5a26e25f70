//! One layer: its entries in the order they come.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags, Stat};
use tar::EntryType;

use super::path::{Marker, os};
use super::*;
use crate::tap::{Headers, Record, Tap, value};

const BUFFER: usize = 256 << 10;

impl Applier {
    /// Applies one decompressed layer and reads it to its end.
    pub(crate) fn layer(&mut self, reader: impl Read) -> Result<()> {
        self.fresh.clear();
        let (tap, headers) = Tap::new(reader);
        let mut archive = tar::Archive::new(tap);
        let broken = |e| Error::stream(ErrorKind::Invalid, "cannot read the layer", e);
        let mut entries = archive.entries().map_err(broken)?;
        let mut buffer = vec![0; BUFFER];
        let before = self.bytes;
        loop {
            headers.start(0);
            let Some(entry) = entries.next() else { break };
            let mut entry = entry.map_err(broken)?;
            self.entry(&mut entry, &headers, &mut buffer)?;
            // The headers' watcher counts on data that is read; hard links may have data, too.
            self.drain(&mut entry, &mut buffer)?;
            self.count(before, &headers)?;
        }
        headers.finish()?;
        // What follows the end mark is part of the layer's digest.
        let mut rest = archive.into_inner();
        loop {
            if rest.read(&mut buffer).map_err(broken)? == 0 {
                return Ok(());
            }
            self.count(before, &headers)?;
        }
    }

    fn count(&mut self, before: u64, headers: &Headers) -> Result<()> {
        self.bytes = self.bytes.max(before + headers.position());
        self.check_bytes()
    }

    fn check_bytes(&self) -> Result<()> {
        if self.bytes > self.limits.bytes {
            let message = format!("image unpacks to more than {} bytes", self.limits.bytes);
            return Err(Error::new(ErrorKind::Limit, message));
        }
        Ok(())
    }

    fn drain(&mut self, data: &mut impl Read, buffer: &mut [u8]) -> Result<()> {
        loop {
            let count = data
                .read(buffer)
                .map_err(|e| Error::stream(ErrorKind::Invalid, "cannot read the layer", e))?;
            if count == 0 {
                return Ok(());
            }
            self.bytes += count as u64;
            self.check_bytes()?;
        }
    }

    fn entry(
        &mut self,
        entry: &mut tar::Entry<'_, impl Read>,
        headers: &Headers,
        buffer: &mut [u8],
    ) -> Result<()> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            let message = format!("image has more than {} entries", self.limits.entries);
            return Err(Error::new(ErrorKind::Limit, message));
        }
        let records = headers.finish()?;
        if entry.header().entry_type().is_pax_global_extensions() {
            // Comments of the archiver, as git writes them.
            return Ok(());
        }
        let path = match value(&records, "path") {
            Some(path) => EntryPath::parse(path)?,
            None => EntryPath::parse(&entry.path_bytes())?,
        };
        let applied = self.apply(entry, &path, &records, buffer);
        applied.map_err(|e| {
            let message = format!("cannot unpack the layer's entry {path}");
            Error::caused(e.kind(), message, e)
        })
    }

    fn apply(
        &mut self,
        entry: &mut tar::Entry<'_, impl Read>,
        path: &EntryPath,
        records: &[Record],
        buffer: &mut [u8],
    ) -> Result<()> {
        match path.marker()? {
            Marker::None => {}
            Marker::Ignored => return Ok(()),
            Marker::Whiteout(hidden) => {
                return match self.root.existing(path)? {
                    Some(Place { parent, .. }) => self.hide(&Place { parent, name: hidden.to_owned() }),
                    None => Ok(()),
                };
            }
            Marker::Opaque => return self.opaque(path),
        }
        if records.iter().any(|record| record.key.starts_with(b"GNU.sparse.")) {
            let message =
                "is a sparse file in the pax form, which is not supported; pack it without --sparse";
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let metadata = Metadata::read(entry.header(), records, &self.limits)?;
        let kind = match entry.header().entry_type() {
            // How directories were told before there was a type for them.
            EntryType::Regular if entry.path_bytes().ends_with(b"/") => EntryType::Directory,
            kind => kind,
        };
        if path.is_root() {
            return self.root_itself(kind, metadata);
        }
        let mut made = Vec::new();
        let place = self.root.place(path, |directory| made.push(directory))?;
        for directory in made {
            self.directories.insert(directory.clone(), Late { modified: EPOCH, default_acl: None });
            self.fresh.insert(directory);
        }
        match kind {
            EntryType::Directory => self.directory(&place, metadata)?,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.file(&place, entry, &metadata, buffer)?;
            }
            EntryType::Symlink => {
                let target = target(entry, records)?;
                self.clear(&place, Keep::Nothing)?;
                rustix::fs::symlinkat(os(&target), &*place.parent, place.name()).map_err(cannot("make"))?;
                set_metadata_unopened(&place, FileType::Symlink, &metadata)?;
            }
            EntryType::Link => self.hard_link(&place, &target(entry, records)?)?,
            EntryType::Fifo => self.node(&place, FileType::Fifo, 0, &metadata)?,
            EntryType::Char => {
                self.node(&place, FileType::CharacterDevice, device(entry.header())?, &metadata)?;
            }
            EntryType::Block => {
                self.node(&place, FileType::BlockDevice, device(entry.header())?, &metadata)?;
            }
            other => {
                let message =
                    format!("has the type {:?}, which no layer may contain", char::from(other.as_byte()));
                return Err(Error::new(ErrorKind::Invalid, message));
            }
        }
        self.fresh.insert(place.resolved());
        Ok(())
    }

    fn root_itself(&mut self, kind: EntryType, metadata: Metadata) -> Result<()> {
        if kind != EntryType::Directory {
            return Err(Error::new(ErrorKind::Invalid, "is the root and no directory"));
        }
        metadata::clear_xattrs(self.root.fd()).map_err(cannot("clear the attributes of"))?;
        set_metadata(self.root.fd(), &metadata)?;
        let late = Late { modified: metadata.modified, default_acl: metadata.default_acl };
        self.directories.insert(Vec::new(), late);
        Ok(())
    }

    fn directory(&mut self, place: &Place, metadata: Metadata) -> Result<()> {
        let kept = self.clear(place, Keep::Directory)?;
        if !kept {
            rustix::fs::mkdirat(&*place.parent, place.name(), Mode::RWXU).map_err(cannot("make"))?;
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&*place.parent, place.name(), flags, Mode::empty());
        let opened = opened.map_err(cannot("open"))?;
        if kept {
            metadata::clear_xattrs(opened.as_fd()).map_err(cannot("clear the attributes of"))?;
        }
        set_metadata(opened.as_fd(), &metadata)?;
        let late = Late { modified: metadata.modified, default_acl: metadata.default_acl };
        self.directories.insert(place.resolved(), late);
        Ok(())
    }

    fn file(
        &mut self,
        place: &Place,
        entry: &mut tar::Entry<'_, impl Read>,
        metadata: &Metadata,
        buffer: &mut [u8],
    ) -> Result<()> {
        self.clear(place, Keep::Nothing)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&*place.parent, place.name(), flags, Mode::RUSR | Mode::WUSR);
        let mut file = File::from(opened.map_err(cannot("make"))?);
        let holes = entry.header().entry_type().is_gnu_sparse();
        let size = entry.size();
        let mut copied = 0;
        loop {
            let count = entry
                .read(buffer)
                .map_err(|e| Error::stream(ErrorKind::Invalid, "cannot read its data", e))?;
            if count == 0 {
                break;
            }
            copied += count as u64;
            self.bytes += count as u64;
            self.check_bytes()?;
            let chunk = &buffer[..count];
            write(&mut file, chunk, holes)?;
        }
        if copied != size {
            let message = format!("ends after {copied} of its {size} bytes");
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        if holes {
            file.set_len(size).map_err(failed_write)?;
        }
        set_metadata(file.as_fd(), metadata)
    }

    fn hard_link(&mut self, place: &Place, target: &[u8]) -> Result<()> {
        let shown = Shown(target);
        let missing = || {
            let message = format!("is a hard link to {shown:?}, which is not in the image");
            Error::new(ErrorKind::Invalid, message)
        };
        let source = self.root.existing(&EntryPath::parse(target)?)?.ok_or_else(missing)?;
        let found: Stat = source.stat().map_err(cannot("look up"))?.ok_or_else(missing)?;
        if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
            let message = format!("is a hard link to {shown:?}, which is a directory");
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        if source.resolved() == place.resolved() {
            return Ok(());
        }
        if let Some(there) = place.stat().map_err(cannot("look up"))?
            && (there.st_dev, there.st_ino) == (found.st_dev, found.st_ino)
        {
            return Ok(());
        }
        self.clear(place, Keep::Nothing)?;
        // The directory that had to give way may have held the target.
        if source.stat().map_err(cannot("look up"))?.is_none() {
            return Err(missing());
        }
        rustix::fs::linkat(&*source.parent, source.name(), &*place.parent, place.name(), AtFlags::empty())
            .map_err(cannot("make"))
    }

    fn node(&mut self, place: &Place, kind: FileType, device: u64, metadata: &Metadata) -> Result<()> {
        self.clear(place, Keep::Nothing)?;
        let what = match kind {
            FileType::Fifo => "make the pipe of",
            _ => "make the device of",
        };
        rustix::fs::mknodat(&*place.parent, place.name(), kind, Mode::RUSR | Mode::WUSR, device)
            .map_err(cannot(what))?;
        set_metadata_unopened(place, kind, metadata)
    }

    fn opaque(&mut self, path: &EntryPath) -> Result<()> {
        // The directory's own entry may still follow, so one that is missing hides nothing.
        let Some(Place { parent, .. }) = self.root.existing(path)? else { return Ok(()) };
        let resolved = parent.resolved.clone();
        match self.root.reopen(&resolved).map_err(cannot("open"))? {
            Some(directory) => self.hide_children(directory, resolved),
            None => Ok(()),
        }
    }
}

fn failed_write(error: io::Error) -> Error {
    Error::caused(ErrorKind::Io, "cannot write its data", error)
}

fn write(file: &mut File, chunk: &[u8], holes: bool) -> Result<()> {
    if holes && chunk.iter().all(|byte| *byte == 0) {
        file.seek(SeekFrom::Current(chunk.len() as i64)).map_err(failed_write)?;
        return Ok(());
    }
    file.write_all(chunk).map_err(failed_write)
}

/// What a link names.
fn target(entry: &tar::Entry<'_, impl Read>, records: &[Record]) -> Result<Vec<u8>> {
    let target = match value(records, "linkpath") {
        Some(target) => target.to_owned(),
        None => entry.link_name_bytes().map(|name| name.into_owned()).unwrap_or_default(),
    };
    if target.is_empty() || target.contains(&0) || target.len() > 4095 {
        let message = format!("is a link to {:?}, which is no path", Shown(&target));
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    Ok(target)
}

fn device(header: &tar::Header) -> Result<u64> {
    let broken = |e| Error::stream(ErrorKind::Invalid, "has a broken device number", e);
    let major = header.device_major().map_err(broken)?.unwrap_or_default();
    let minor = header.device_minor().map_err(broken)?.unwrap_or_default();
    // The kernel has 12 bits for the major and 20 for the minor number.
    if major >= 1 << 12 || minor >= 1 << 20 {
        let message = format!("is the device {major}:{minor}, which Linux does not have");
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    Ok(rustix::fs::makedev(major, minor))
}
