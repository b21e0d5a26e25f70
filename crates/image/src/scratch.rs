//! The writable layer of one VM container: an empty ext4 file system of a given size, in a sparse file.
//!
//! Making a file system takes tens of milliseconds; copying the few blocks of an empty one takes a few. So one empty
//! file system per size is kept in the store and copied, sharing its blocks where the host's file system can.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use beta9_sys::reaper::Reaper;
use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use rustix::io::Errno;

use crate::layout::Layout;
use crate::lock::Lock;
use crate::tool::{self, argument};
use crate::{Error, ErrorKind, Result};

/// Below this an ext4 file system with a journal has little room left.
const MIN: u64 = 16 << 20;
/// The most that ext4 takes with blocks of 4096 bytes.
const MAX: u64 = 16 << 40;

/// The same for every scratch disk: each is the only one its VM sees.
const UUID: &str = "5c4a7c41-0000-4000-8000-626574613921";

/// Creates `destination`, which must not exist: an empty ext4 file system of `size` bytes, rounded up to whole MiB,
/// that takes up next to nothing until it is written to. The file has mode 0600.
///
/// `store_root` is the one that [`Store::open`](crate::Store::open) takes. In a process with a reaper use
/// [`Store::create_scratch`](crate::Store::create_scratch).
pub fn create(store_root: &Path, destination: &Path, size: u64) -> Result<()> {
    create_in(&Layout::create(store_root)?, destination, size, None)
}

pub(crate) fn create_in(
    layout: &Layout,
    destination: &Path,
    size: u64,
    reaper: Option<&Reaper>,
) -> Result<()> {
    if !(MIN..=MAX).contains(&size) {
        let message = format!("a writable disk of {size} bytes cannot be made; ask for 16 MiB to 16 TiB");
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    let size = size.next_multiple_of(1 << 20);
    let template = template(layout, size, reaper)?;
    let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(destination);
    let copy = created.map_err(|e| Error::io("create", destination, e))?;
    copy_sparse(&template, &copy, size).map_err(|e| {
        // Half a disk is worse than none. If it cannot be removed either, the first error matters.
        let _ = fs::remove_file(destination);
        Error::io("write", destination, e)
    })
}

/// Opens the empty file system of that size, and makes it first where it is missing.
fn template(layout: &Layout, size: u64, reaper: Option<&Reaper>) -> Result<File> {
    let path = layout.scratch(size);
    if let Some(file) = open_if_there(&path)? {
        return Ok(file);
    }
    let _builder = Lock::exclusive(&layout.lock("scratch"))?;
    if let Some(file) = open_if_there(&path)? {
        return Ok(file);
    }
    let program = tool::find("mke2fs").ok_or_else(|| tool::missing(&["mke2fs"], "e2fsprogs"))?;
    let (temporary, file) = layout.temporary_file()?;
    let at = |e| Error::io("write", temporary.path(), e);
    file.set_len(size).map_err(at)?;
    let mut command = Command::new(program);
    command.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-U", UUID]);
    // Room to grow would be megabytes of zeros to copy.
    command.args(["-O", "^resize_inode"]);
    command.args(["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0"]);
    command.arg(argument(temporary.path()));
    tool::run(command, reaper)?;
    file.set_permissions(Permissions::from_mode(0o444)).and_then(|()| file.sync_all()).map_err(at)?;
    temporary.publish(&path)?;
    open_if_there(&path)?.ok_or_else(|| Error::io("open", &path, io::ErrorKind::NotFound))
}

fn open_if_there(path: &Path) -> Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("open", path, error)),
    }
}

/// Shares the blocks if the file system can, else copies those that hold data.
fn copy_sparse(from: &File, to: &File, size: u64) -> io::Result<()> {
    if ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    to.set_len(size)?;
    let mut position = 0;
    while position < size {
        let data = match seek(from, SeekFrom::Data(position)) {
            Ok(data) => data,
            // A hole to the end.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let hole = seek(from, SeekFrom::Hole(data))?;
        copy_range(from, to, data, hole)?;
        position = hole;
    }
    Ok(())
}

fn copy_range(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let (mut read, mut written) = (start, start);
    let mut buffer = Vec::new();
    while written < end {
        let left = usize::try_from(end - written).unwrap_or(usize::MAX);
        match copy_file_range(from, Some(&mut read), to, Some(&mut written), left) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            // Across file systems older kernels leave it to us.
            Err(Errno::XDEV | Errno::NOSYS | Errno::INVAL | Errno::OPNOTSUPP) => {
                buffer.resize(left.min(1 << 20), 0);
                from.read_exact_at(&mut buffer, read)?;
                to.write_all_at(&buffer, written)?;
                read += buffer.len() as u64;
                written += buffer.len() as u64;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
