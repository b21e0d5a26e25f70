//! The file system that a guest sees: a directory of exports, each a file system of its own.
//!
//! ```text
//! node 1        the directory of exports; only names of exports can be looked up in it
//! node i+1 | n  node n of export i, with i+1 above bit 48
//! ```
//!
//! A node or handle that a guest makes up is one of an export that it has, or an error. Nothing reaches from one export
//! into another. What is refused here and would not be by the host: device nodes, also the kind that overlayfs makes; and
//! sizes of answers beyond what the kernel's interfaces know.

use std::ffi::CStr;
use std::io;
use std::sync::{OnceLock, PoisonError, RwLock};
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{CreateIn, FsOptions, OpenOptions, SetattrValid, stat64, statvfs64};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, GetxattrReply, ListxattrReply, ROOT_ID, ZeroCopyReader,
    ZeroCopyWriter,
};
use fuse_backend_rs::passthrough::{CachePolicy, Config, PassthroughFs};
use rustix::fs::{FileType, RenameFlags};
use rustix::io::Errno;

use beta9_types::Consistency;

/// Where the number of an export begins in a node's.
const SHIFT: u32 = 48;
/// Where the number of a device begins in a file's that is not on the first one.
const DEVICE_SHIFT: u32 = 56;
/// Most exports: their numbers fit above [`SHIFT`].
pub(super) const MAX_EXPORTS: usize = 4096;
/// Longest value and longest list of names of extended attributes (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const MAX_XATTR: u32 = 64 << 10;
/// How long the guest may go by what it knows where the export's consistency allows that.
const CACHED: Duration = Duration::from_secs(1);
/// The same for the attributes that come with a name where nothing is cached: what looks for the name and then asks for them
/// would ask twice. In the guest it is the rest of a tick.
const ASKED_TOGETHER: Duration = Duration::from_millis(1);

/// What is asked of the guest's kernel beside what [`PassthroughFs`] asks: requests of up to 1 MiB, several at a time.
/// Locks are not among it, so they are the guest's own; neither is a cache for writes.
fn wanted() -> FsOptions {
    FsOptions::ASYNC_READ
        | FsOptions::BIG_WRITES
        | FsOptions::MAX_PAGES
        | FsOptions::ASYNC_DIO
        | FsOptions::PARALLEL_DIROPS
        | FsOptions::AUTO_INVAL_DATA
        | FsOptions::DO_READDIRPLUS
        | FsOptions::READDIRPLUS_AUTO
        | FsOptions::HANDLE_KILLPRIV_V2
        | FsOptions::INIT_EXT
}

/// Every export of one container.
pub(super) struct Exports {
    exports: Vec<PassthroughFs<()>>,
    /// What their guest may cache, in the same order.
    consistencies: Vec<Consistency>,
    /// The devices that files are on, in the order in which they were seen: two files with one number on two devices are
    /// two files to the guest, too, for which there is but one device.
    devices: RwLock<Vec<u64>>,
    begun: OnceLock<()>,
}

impl Exports {
    /// Prepares them while `/proc` is still there; `roots` are where they will be.
    pub(super) fn prepare<'a>(roots: impl Iterator<Item = (String, Consistency)> + 'a) -> io::Result<Self> {
        let mut consistencies = Vec::new();
        let one = |(root_dir, consistency)| {
            consistencies.push(consistency);
            let (timeout, cache_policy) = match consistency {
                Consistency::Consistent => (Duration::ZERO, CachePolicy::Never),
                Consistency::Cached => (CACHED, CachePolicy::Auto),
            };
            PassthroughFs::new(Config {
                root_dir,
                entry_timeout: timeout,
                attr_timeout: timeout,
                cache_policy,
                writeback: false,
                xattr: true,
                killpriv_v2: true,
                allow_direct_io: false,
                do_import: true,
                ..Config::default()
            })
        };
        let exports = roots.map(one).collect::<io::Result<_>>()?;
        Ok(Self { exports, consistencies, devices: RwLock::default(), begun: OnceLock::new() })
    }

    /// Opens the roots, which must be in place by now.
    pub(super) fn import(&self) -> io::Result<()> {
        self.exports.iter().try_for_each(PassthroughFs::import)
    }

    /// The export of a node, and what the node is there.
    fn at(&self, node: u64) -> io::Result<(usize, &PassthroughFs<()>, u64)> {
        let place = usize::try_from(node >> SHIFT).ok().and_then(|number| number.checked_sub(1));
        let inner = node & ((1 << SHIFT) - 1);
        let found = place.and_then(|place| Some((place, self.exports.get(place)?, inner)));
        found.ok_or_else(|| match node {
            ROOT_ID => error(Errno::ROFS),
            _ => error(Errno::BADF),
        })
    }

    /// The same, for what the directory of exports has no answer to either.
    fn export(&self, node: u64) -> io::Result<(&PassthroughFs<()>, u64)> {
        self.at(node).map(|(_, export, inner)| (export, inner))
    }

    /// What an export says of a file, in the guest's numbers.
    fn entry(&self, place: usize, mut entry: Entry) -> Entry {
        entry.inode = outer(place, entry.inode);
        entry.attr_timeout = entry.attr_timeout.max(ASKED_TOGETHER);
        self.number(&mut entry.attr);
        entry
    }

    /// Makes the numbers of files on several devices differ.
    fn number(&self, attributes: &mut stat64) {
        let known = |devices: &[u64]| devices.iter().position(|device| *device == attributes.st_dev);
        let found = known(&self.devices.read().unwrap_or_else(PoisonError::into_inner));
        let class = found.unwrap_or_else(|| {
            let mut devices = self.devices.write().unwrap_or_else(PoisonError::into_inner);
            known(&devices).unwrap_or_else(|| {
                devices.push(attributes.st_dev);
                devices.len() - 1
            })
        });
        attributes.st_ino ^= (class as u64) << DEVICE_SHIFT;
    }
}

fn outer(place: usize, inner: u64) -> u64 {
    ((place as u64 + 1) << SHIFT) | inner
}

fn error(errno: Errno) -> io::Error {
    errno.into()
}

/// The directory of exports itself.
fn directory() -> stat64 {
    let mut attributes = Entry::default().attr;
    attributes.st_ino = ROOT_ID;
    attributes.st_mode = 0o040_555;
    attributes.st_nlink = 2;
    attributes
}

/// A guest's kernel resolves these itself; the file system would follow them.
fn is_plain(name: &CStr) -> bool {
    let name = name.to_bytes();
    !name.is_empty() && name != b"." && name != b".." && !name.contains(&b'/')
}

fn plain(name: &CStr) -> io::Result<()> {
    if is_plain(name) { Ok(()) } else { Err(error(Errno::INVAL)) }
}

type Opened = (Option<u64>, OpenOptions, Option<u32>);

impl FileSystem for Exports {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        // A kernel does so once, before everything else.
        self.begun.set(()).map_err(|()| error(Errno::ALREADY))?;
        let wanted = wanted();
        for export in &self.exports {
            export.init(capable & wanted)?;
        }
        Ok(capable & wanted)
    }

    fn lookup(&self, context: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        plain(name)?;
        if parent == ROOT_ID {
            let number =
                name.to_str().ok().filter(|text| !text.starts_with('+')).and_then(|text| text.parse().ok());
            let place = number.filter(|place: &usize| {
                *place < self.exports.len() && place.to_string().as_bytes() == name.to_bytes()
            });
            let place = place.ok_or_else(|| error(Errno::NOENT))?;
            let (attr, timeout) = self.exports[place].getattr(context, ROOT_ID, None)?;
            let entry = Entry {
                inode: ROOT_ID,
                attr,
                attr_timeout: timeout,
                entry_timeout: timeout,
                ..Entry::default()
            };
            return Ok(self.entry(place, entry));
        }
        let (place, export, inner) = self.at(parent)?;
        Ok(self.entry(place, export.lookup(context, inner, name)?))
    }

    fn forget(&self, context: &Context, node: u64, count: u64) {
        if let Ok((export, inner)) = self.export(node) {
            export.forget(context, inner, count);
        }
    }

    fn batch_forget(&self, context: &Context, requests: Vec<(u64, u64)>) {
        for (node, count) in requests {
            self.forget(context, node, count);
        }
    }

    fn getattr(&self, context: &Context, node: u64, handle: Option<u64>) -> io::Result<(stat64, Duration)> {
        if node == ROOT_ID {
            return Ok((directory(), Duration::ZERO));
        }
        let (export, inner) = self.export(node)?;
        let (mut attributes, timeout) = export.getattr(context, inner, handle)?;
        self.number(&mut attributes);
        Ok((attributes, timeout))
    }

    fn setattr(
        &self,
        context: &Context,
        node: u64,
        attr: stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        let (export, inner) = self.export(node)?;
        let (mut attributes, timeout) = export.setattr(context, inner, attr, handle, valid)?;
        self.number(&mut attributes);
        Ok((attributes, timeout))
    }

    fn readlink(&self, context: &Context, node: u64) -> io::Result<Vec<u8>> {
        let (export, inner) = self.export(node)?;
        export.readlink(context, inner)
    }

    fn symlink(&self, context: &Context, leads: &CStr, parent: u64, name: &CStr) -> io::Result<Entry> {
        let (place, export, inner) = self.at(parent)?;
        Ok(self.entry(place, export.symlink(context, leads, inner, name)?))
    }

    fn mknod(
        &self,
        context: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        device: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        let (place, export, inner) = self.at(parent)?;
        match FileType::from_raw_mode(mode) {
            FileType::RegularFile | FileType::Fifo | FileType::Socket => {}
            // A type of 0 is a regular file, too: mknod(2).
            _ if mode & 0o170_000 == 0 => {}
            _ => return Err(error(Errno::PERM)),
        }
        Ok(self.entry(place, export.mknod(context, inner, name, mode, device, umask)?))
    }

    fn mkdir(&self, context: &Context, parent: u64, name: &CStr, mode: u32, umask: u32) -> io::Result<Entry> {
        let (place, export, inner) = self.at(parent)?;
        Ok(self.entry(place, export.mkdir(context, inner, name, mode, umask)?))
    }

    fn unlink(&self, context: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        let (export, inner) = self.export(parent)?;
        export.unlink(context, inner, name)
    }

    fn rmdir(&self, context: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        let (export, inner) = self.export(parent)?;
        export.rmdir(context, inner, name)
    }

    fn rename(
        &self,
        context: &Context,
        old_parent: u64,
        old_name: &CStr,
        new_parent: u64,
        new_name: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        let ((place, export, old), (other, _, new)) = (self.at(old_parent)?, self.at(new_parent)?);
        if place != other {
            return Err(error(Errno::XDEV));
        }
        // The third flag leaves a device node behind.
        if flags & !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).bits() != 0 {
            return Err(error(Errno::INVAL));
        }
        export.rename(context, old, old_name, new, new_name, flags)
    }

    fn link(&self, context: &Context, node: u64, parent: u64, name: &CStr) -> io::Result<Entry> {
        let ((place, export, inner), (other, _, parent)) = (self.at(node)?, self.at(parent)?);
        if place != other {
            return Err(error(Errno::XDEV));
        }
        Ok(self.entry(place, export.link(context, inner, parent, name)?))
    }

    fn open(&self, context: &Context, node: u64, flags: u32, fuse_flags: u32) -> io::Result<Opened> {
        let (export, inner) = self.export(node)?;
        export.open(context, inner, flags, fuse_flags)
    }

    fn create(
        &self,
        context: &Context,
        parent: u64,
        name: &CStr,
        args: CreateIn,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)> {
        let (place, export, inner) = self.at(parent)?;
        let (entry, handle, options, backing) = export.create(context, inner, name, args)?;
        Ok((self.entry(place, entry), handle, options, backing))
    }

    fn read(
        &self,
        context: &Context,
        node: u64,
        handle: u64,
        to: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        flags: u32,
    ) -> io::Result<usize> {
        let (export, inner) = self.export(node)?;
        export.read(context, inner, handle, to, size, offset, lock_owner, flags)
    }

    fn write(
        &self,
        context: &Context,
        node: u64,
        handle: u64,
        from: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        delayed: bool,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<usize> {
        let (export, inner) = self.export(node)?;
        export.write(context, inner, handle, from, size, offset, lock_owner, delayed, flags, fuse_flags)
    }

    fn flush(&self, context: &Context, node: u64, handle: u64, lock_owner: u64) -> io::Result<()> {
        let (export, inner) = self.export(node)?;
        export.flush(context, inner, handle, lock_owner)
    }

    fn fsync(&self, context: &Context, node: u64, data_only: bool, handle: u64) -> io::Result<()> {
        let (export, inner) = self.export(node)?;
        export.fsync(context, inner, data_only, handle)
    }

    fn fallocate(
        &self,
        context: &Context,
        node: u64,
        handle: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        let (export, inner) = self.export(node)?;
        export.fallocate(context, inner, handle, mode, offset, length)
    }

    fn release(
        &self,
        context: &Context,
        node: u64,
        flags: u32,
        handle: u64,
        flush: bool,
        unlock: bool,
        lock_owner: Option<u64>,
    ) -> io::Result<()> {
        let (export, inner) = self.export(node)?;
        export.release(context, inner, flags, handle, flush, unlock, lock_owner)
    }

    fn statfs(&self, context: &Context, node: u64) -> io::Result<statvfs64> {
        let (export, inner) = self.export(node)?;
        export.statfs(context, inner)
    }

    fn setxattr(
        &self,
        context: &Context,
        node: u64,
        name: &CStr,
        value: &[u8],
        flags: u32,
    ) -> io::Result<()> {
        let (export, inner) = self.export(node)?;
        export.setxattr(context, inner, name, value, flags)
    }

    fn getxattr(&self, context: &Context, node: u64, name: &CStr, size: u32) -> io::Result<GetxattrReply> {
        let (export, inner) = self.export(node)?;
        export.getxattr(context, inner, name, size.min(MAX_XATTR))
    }

    fn listxattr(&self, context: &Context, node: u64, size: u32) -> io::Result<ListxattrReply> {
        let (export, inner) = self.export(node)?;
        export.listxattr(context, inner, size.min(MAX_XATTR))
    }

    fn removexattr(&self, context: &Context, node: u64, name: &CStr) -> io::Result<()> {
        let (export, inner) = self.export(node)?;
        export.removexattr(context, inner, name)
    }

    fn opendir(&self, context: &Context, node: u64, flags: u32) -> io::Result<(Option<u64>, OpenOptions)> {
        let (export, inner) = self.export(node)?;
        export.opendir(context, inner, flags)
    }

    fn readdir(
        &self,
        context: &Context,
        node: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>,
    ) -> io::Result<()> {
        let (export, inner) = self.export(node)?;
        export.readdir(context, inner, handle, size, offset, add)
    }

    fn readdirplus(
        &self,
        context: &Context,
        node: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        let (place, export, inner) = self.at(node)?;
        if self.consistencies[place] == Consistency::Consistent {
            // What it would know of each name it has to ask for again: so it gets the names, and no more.
            return export
                .readdir(context, inner, handle, size, offset, &mut |listed| add(listed, Entry::default()));
        }
        export.readdirplus(context, inner, handle, size, offset, &mut |listed, entry| {
            let entry = self.entry(place, entry);
            add(DirEntry { ino: entry.attr.st_ino, ..listed }, entry)
        })
    }

    fn fsyncdir(&self, context: &Context, node: u64, data_only: bool, handle: u64) -> io::Result<()> {
        let (export, inner) = self.export(node)?;
        export.fsyncdir(context, inner, data_only, handle)
    }

    fn releasedir(&self, context: &Context, node: u64, flags: u32, handle: u64) -> io::Result<()> {
        let (export, inner) = self.export(node)?;
        export.releasedir(context, inner, flags, handle)
    }

    fn access(&self, context: &Context, node: u64, mask: u32) -> io::Result<()> {
        let (export, inner) = self.export(node)?;
        export.access(context, inner, mask)
    }

    fn lseek(&self, context: &Context, node: u64, handle: u64, offset: u64, whence: u32) -> io::Result<u64> {
        let (export, inner) = self.export(node)?;
        export.lseek(context, inner, handle, offset, whence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exports() -> (Exports, [tempfile::TempDir; 2]) {
        let hosts = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let roots =
            hosts.each_ref().map(|host| (host.path().to_str().unwrap().to_owned(), Consistency::Consistent));
        let exports = Exports::prepare(roots.into_iter()).unwrap();
        exports.import().unwrap();
        (exports, hosts)
    }

    #[test]
    fn nodes_are_those_of_their_export_or_none() {
        let (exports, hosts) = exports();
        std::fs::write(hosts[1].path().join("file"), "").unwrap();
        let context = Context::default();
        let second = exports.lookup(&context, ROOT_ID, c"1").unwrap().inode;
        let file = exports.lookup(&context, second, c"file").unwrap().inode;
        assert_eq!(file >> SHIFT, 2);
        let errno = |result: io::Result<Entry>| result.unwrap_err().raw_os_error().unwrap();
        let first = exports.lookup(&context, ROOT_ID, c"0").unwrap().inode;
        assert_eq!(errno(exports.lookup(&context, first, c"file")), Errno::NOENT.raw_os_error());
        for name in [c"2", c"01", c"+1", c"-1", c"x", c"99999999999999999999999"] {
            assert_eq!(
                errno(exports.lookup(&context, ROOT_ID, name)),
                Errno::NOENT.raw_os_error(),
                "{name:?}"
            );
        }
        for forged in [0, 2, 3 << SHIFT | 1, u64::MAX, first | 77] {
            assert_eq!(
                errno(exports.lookup(&context, forged, c"file")),
                Errno::BADF.raw_os_error(),
                "{forged:x}"
            );
        }
        for name in [c"", c".", c"..", c"a/b"] {
            assert_eq!(
                errno(exports.lookup(&context, second, name)),
                Errno::INVAL.raw_os_error(),
                "{name:?}"
            );
        }
        let moved = exports.rename(&context, second, c"file", first, c"file", 0);
        assert_eq!(moved.unwrap_err().raw_os_error(), Some(Errno::XDEV.raw_os_error()));
        assert_eq!(errno(exports.link(&context, file, first, c"file")), Errno::XDEV.raw_os_error());
        let whiteout = exports.rename(&context, second, c"file", second, c"other", 4);
        assert_eq!(whiteout.unwrap_err().raw_os_error(), Some(Errno::INVAL.raw_os_error()));
        assert!(hosts[1].path().join("file").exists());
    }

    #[test]
    fn files_of_two_devices_have_two_numbers() {
        let (exports, _hosts) = exports();
        let mut numbers = std::collections::HashSet::new();
        for (device, number) in [(5, 7), (6, 7), (5, 8), (6, 8)] {
            let mut attributes = directory();
            (attributes.st_dev, attributes.st_ino) = (device, number);
            exports.number(&mut attributes);
            assert!(numbers.insert(attributes.st_ino));
            let again = attributes.st_ino;
            (attributes.st_dev, attributes.st_ino) = (device, number);
            exports.number(&mut attributes);
            assert_eq!(attributes.st_ino, again);
        }
        assert!(numbers.contains(&7), "the first device's are the host's");
    }

    #[test]
    fn a_kernel_begins_once_and_gets_large_requests() {
        let (exports, _hosts) = exports();
        let agreed = exports.init(FsOptions::all()).unwrap();
        assert!(agreed.contains(FsOptions::BIG_WRITES | FsOptions::MAX_PAGES | FsOptions::PARALLEL_DIROPS));
        for never in [FsOptions::WRITEBACK_CACHE, FsOptions::POSIX_LOCKS, FsOptions::FLOCK_LOCKS] {
            assert!(!agreed.intersects(never), "{never:?}");
        }
        assert!(exports.init(FsOptions::all()).is_err());
    }
}
