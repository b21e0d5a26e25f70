//! From a tree to a tar stream.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use beta9_types::CopyOut;
use rustix::fs::{Dir, FileType, OFlags, Stat, readlinkat};
use tar::{Builder, EntryType, Header};

use crate::path::{join, os, plain, split};
use crate::tree::{Tree, kind, look_at, reopen};
use crate::{Error, ErrorKind, Result};

/// Directories that are open at once, which bounds descriptors and stack. No program nests its files so deep.
const MAX_DEPTH: usize = 256;

/// Writes what the request names as an archive. Devices, sockets and pipes are left out.
pub fn pack(tree: &Tree, request: &CopyOut, to: impl Write) -> Result<()> {
    let path = plain(&request.path)?;
    let inside = request.path.ends_with("/.") || request.path == "." || path.is_empty();
    // With a slash at its end a link to a directory is the directory, as it is to cp(1).
    let follow = request.follow || inside || request.path.ends_with('/');
    let found = tree.look(&path, follow).map_err(|e| Error::file("copy", request.path.as_bytes(), e))?;
    let (found_kind, _) = kind(&found).map_err(|e| Error::file("look at", &path, e))?;
    if (inside || request.path.ends_with('/')) && found_kind != FileType::Directory {
        return Err(Error::file("copy", request.path.as_bytes(), rustix::io::Errno::NOTDIR));
    }
    let name = if inside { b"." } else { split(&path).1 };
    if name == b".." {
        let text = format!("the path {} ends in ..: name the directory itself", crate::error::shown(&path));
        return Err(Error::new(ErrorKind::Refused, text));
    }
    let mut archive = Builder::new(to);
    let packed = add(&mut archive, &found, name, 0)?;
    if !packed {
        let text = format!("{} is a device, socket or pipe, which is not copied", crate::error::shown(&path));
        return Err(Error::new(ErrorKind::Refused, text));
    }
    let finished = archive.into_inner().and_then(|mut to| to.flush());
    finished.map_err(|e| Error::stream("write the archive", e))
}

/// Adds a file, and what is in it if it is a directory. `false` if it is of a kind that is left out.
fn add(archive: &mut Builder<impl Write>, file: &OwnedFd, name: &[u8], depth: usize) -> Result<bool> {
    let failed = |operation: &'static str| move |e| Error::file(operation, name, e);
    let (kind, stat) = kind(file).map_err(failed("look at"))?;
    let mut header = header(&stat);
    match kind {
        FileType::RegularFile => {
            header.set_entry_type(EntryType::Regular);
            // Its size was that a moment ago; what is written to it meanwhile is not part of this copy.
            header.set_size(stat.st_size.unsigned_abs());
            let opened = reopen(file, OFlags::empty()).map_err(failed("read"))?;
            let content = Exactly { file: File::from(opened), left: stat.st_size.unsigned_abs() };
            append(archive, &mut header, name, content)?;
        }
        FileType::Directory => {
            header.set_entry_type(EntryType::Directory);
            header.set_size(0);
            append(archive, &mut header, &[name, b"/"].concat(), io::empty())?;
            if depth == MAX_DEPTH {
                let text = format!("directories are nested more than {MAX_DEPTH} deep: copy a part of them");
                return Err(Error::new(ErrorKind::Refused, text));
            }
            let opened = reopen(file, OFlags::DIRECTORY).map_err(failed("read"))?;
            for child in Dir::read_from(&opened).map_err(failed("read"))? {
                let child = child.map_err(failed("read"))?;
                let child = child.file_name().to_bytes();
                if child == b"." || child == b".." {
                    continue;
                }
                match look_at(opened.as_fd(), child) {
                    Ok(found) => drop(add(archive, &found, &join(name, child), depth + 1)?),
                    // It was removed since the directory was read.
                    Err(rustix::io::Errno::NOENT) => {}
                    Err(e) => return Err(Error::file("look at", &join(name, child), e)),
                }
            }
        }
        FileType::Symlink => {
            let target = readlinkat(file, "", Vec::new()).map_err(failed("read the link"))?;
            header.set_entry_type(EntryType::Symlink);
            header.set_size(0);
            archive
                .append_link(&mut header, Path::new(os(name)), Path::new(os(target.to_bytes())))
                .map_err(|e| Error::stream("write the archive", e))?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn append(
    archive: &mut Builder<impl Write>,
    header: &mut Header,
    name: &[u8],
    content: impl Read,
) -> Result<()> {
    archive.append_data(header, Path::new(os(name)), content).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => Error::file("read all of", name, e),
        _ => Error::stream("write the archive", e),
    })
}

fn header(stat: &Stat) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header
}

/// A file's first bytes, as many as were announced; fewer are an error.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        match self.file.read(&mut buffer[..most])? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was read")),
            count => {
                self.left -= count as u64;
                Ok(count)
            }
        }
    }
}
