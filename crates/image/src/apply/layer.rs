//! Makes a layer's entries in the tree.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::rc::Rc;

use rustix::fs::{Mode, OFlags, Stat};

use super::entries::{Contents, Destination, Device, Entry, Kind, Part};
use super::path::os;
use super::*;

impl Destination for Applier {
    fn begin_layer(&mut self) {
        self.fresh.clear();
        self.opaque.clear();
    }

    fn whiteout(&mut self, path: &EntryPath, hidden: &[u8]) -> Result<()> {
        match self.root.existing(path)? {
            Some(Place { parent, .. }) => self.hide(&Place { parent, name: hidden.to_owned() }),
            None => Ok(()),
        }
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

    fn entry(&mut self, path: &EntryPath, entry: Entry, contents: &mut Contents<'_>) -> Result<()> {
        let Entry { kind, metadata } = entry;
        if path.is_root() {
            return self.root_itself(metadata);
        }
        let mut made = Vec::new();
        let place = self.root.place(path, |directory| made.push(directory))?;
        for directory in made {
            self.directories.insert(directory.clone(), Late::implied());
            self.fresh.insert(directory);
        }
        match kind {
            Kind::Directory => self.directory(&place, metadata)?,
            Kind::File => self.file(&place, contents, &metadata)?,
            Kind::Symlink(target) => {
                self.clear(&place, Keep::Nothing)?;
                rustix::fs::symlinkat(os(&target), &*place.parent, place.name()).map_err(cannot("make"))?;
                self.set_metadata_unopened(&place, FileType::Symlink, &metadata)?;
            }
            Kind::HardLink(target) => self.hard_link(&place, &target)?,
            Kind::Fifo => self.node(&place, FileType::Fifo, 0, &metadata)?,
            Kind::Character(device) => {
                self.node(&place, FileType::CharacterDevice, device.number(), &metadata)?;
            }
            Kind::Block(device) => self.node(&place, FileType::BlockDevice, device.number(), &metadata)?,
        }
        self.fresh.insert(place.resolved());
        Ok(())
    }
}

impl Device {
    fn number(self) -> u64 {
        rustix::fs::makedev(self.major, self.minor)
    }
}

impl Applier {
    fn root_itself(&mut self, metadata: Metadata) -> Result<()> {
        metadata::clear_xattrs(self.root.fd()).map_err(cannot("clear the attributes of"))?;
        self.skipped.set_metadata(self.root.fd(), &metadata, self.rights.early_mode(&metadata))?;
        self.directories.insert(Vec::new(), Late::of(metadata));
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
        self.skipped.set_metadata(opened.as_fd(), &metadata, self.rights.early_mode(&metadata))?;
        self.directories.insert(place.resolved(), Late::of(metadata));
        Ok(())
    }

    fn file(&mut self, place: &Place, contents: &mut Contents<'_>, metadata: &Metadata) -> Result<()> {
        self.clear(place, Keep::Nothing)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&*place.parent, place.name(), flags, Mode::RUSR | Mode::WUSR);
        let mut file = File::from(opened.map_err(cannot("make"))?);
        let mut ends_in_hole = false;
        loop {
            match contents.next(&mut self.buffer)? {
                Part::Data(count) => {
                    file.write_all(&self.buffer[..count]).map_err(failed_write)?;
                    ends_in_hole = false;
                }
                Part::Hole(bytes) => {
                    file.seek(SeekFrom::Current(bytes.cast_signed())).map_err(failed_write)?;
                    ends_in_hole = true;
                }
                Part::End => break,
            }
        }
        if ends_in_hole {
            file.set_len(contents.size).map_err(failed_write)?;
        }
        self.skipped.set_metadata(file.as_fd(), metadata, metadata.mode)
    }

    fn hard_link(&mut self, place: &Place, target: &EntryPath) -> Result<()> {
        let missing = || {
            let message = format!("is a hard link to {target}, which is not in the image");
            Error::new(ErrorKind::Invalid, message)
        };
        let source = self.root.existing(target)?.ok_or_else(missing)?;
        let found: Stat = source.stat().map_err(cannot("look up"))?.ok_or_else(missing)?;
        if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
            let message = format!("is a hard link to {target}, which is a directory");
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
        let make = |kind, device| {
            rustix::fs::mknodat(&*place.parent, place.name(), kind, Mode::RUSR | Mode::WUSR, device)
        };
        match make(kind, device) {
            Err(Errno::PERM) if self.rights == Rights::Limited => {
                // An empty file keeps the name, the mode and the owner.
                self.skipped.devices += 1;
                make(FileType::RegularFile, 0).map_err(cannot("make a file in place of"))?;
            }
            made => made.map_err(cannot(what))?,
        }
        self.set_metadata_unopened(place, kind, metadata)
    }

    /// [`Skipped::set_metadata`] for what must not be opened: links, devices and pipes.
    fn set_metadata_unopened(&mut self, place: &Place, kind: FileType, metadata: &Metadata) -> Result<()> {
        let parent = place.parent.as_fd();
        let name: &OsStr = place.name();
        let (uid, gid) = (Uid::from_raw(metadata.uid), Gid::from_raw(metadata.gid));
        let owned = rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW);
        self.skipped.owner(owned)?;
        if kind != FileType::Symlink {
            // Not a link: it was made a moment ago, and nobody else works here.
            rustix::fs::chmodat(parent, name, Mode::from_raw_mode(metadata.mode), AtFlags::empty())
                .map_err(cannot("set the mode of"))?;
        }
        for xattr in &metadata.xattrs {
            self.skipped.attribute(&xattr.name, place.set_xattr(&xattr.name, &xattr.value))?;
        }
        rustix::fs::utimensat(parent, name, &times(metadata.modified), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(cannot("set the time of"))
    }

    fn hide_children(&mut self, directory: OwnedFd, resolved: Vec<u8>) -> Result<()> {
        if !self.opaque.insert(resolved.clone()) {
            return Ok(());
        }
        let children = root::children(&directory).map_err(cannot("read"))?;
        let parent = Rc::new(Parent::at(directory, resolved));
        for (name, _) in children {
            let name = std::os::unix::ffi::OsStringExt::into_vec(name);
            self.hide(&Place { parent: Rc::clone(&parent), name })?;
        }
        Ok(())
    }

    /// Hides what older layers have at `place` and spares what this layer made.
    fn hide(&mut self, place: &Place) -> Result<()> {
        let Some(stat) = place.stat().map_err(cannot("look up"))? else { return Ok(()) };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if !self.fresh.contains(&place.resolved()) {
            return self.remove(place, kind);
        }
        if kind == FileType::Directory {
            let resolved = place.resolved();
            if let Some(directory) = self.root.reopen(&resolved).map_err(cannot("open"))? {
                self.hide_children(directory, resolved)?;
            }
        }
        Ok(())
    }

    /// Makes room for a file at `path`: what was there is gone, unless it is the directory that `keep` spares.
    /// `true` if a directory was kept.
    fn clear(&mut self, place: &Place, keep: Keep) -> Result<bool> {
        let Some(stat) = place.stat().map_err(cannot("look up"))? else { return Ok(false) };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory && keep == Keep::Directory {
            return Ok(true);
        }
        self.remove(place, kind)?;
        Ok(false)
    }

    fn remove(&mut self, place: &Place, kind: FileType) -> Result<()> {
        if matches!(kind, FileType::Directory | FileType::Symlink) {
            self.root.forget();
        }
        root::remove(place, kind).map_err(cannot("replace"))
    }
}

/// What [`Applier::clear`] spares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    Nothing,
    Directory,
}

fn failed_write(error: io::Error) -> Error {
    let (kind, remedy) = Error::kind_of(&error);
    Error::caused(kind, format!("cannot write its data{remedy}"), error)
}
