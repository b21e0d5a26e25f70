//! Image archives: which files a tar has and where they are in it, so that they can be read in any order.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::content::{Content, missing};
use super::{Target, open};
use crate::blobs::parse_document;
use crate::compression::{Compression, decompressed};
use crate::layout::Temporary;
use crate::tap::{Headers, Tap, value};
use crate::{Error, ErrorKind, Result};

/// Most files of an image archive. More are a root file system's.
const MAX_MEMBERS: usize = 20_000;

/// Directories at the top of a root file system: an image archive has none of these names, so the first one decides.
const ROOT_FS: [&str; 21] = [
    "bin", "boot", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "media", "mnt", "opt", "proc",
    "root", "run", "sbin", "srv", "sys", "tmp", "usr", "var",
];

/// What a tar is.
pub(super) enum Scan {
    RootFs,
    Image(Members),
}

/// The files of an image archive.
pub(super) struct Members {
    path: PathBuf,
    /// The plain tar: the archive itself, or its decompressed copy.
    tar: File,
    by_name: HashMap<String, Member>,
    _copy: Option<Temporary>,
}

#[derive(Debug)]
enum Member {
    File {
        offset: u64,
        size: u64,
    },
    /// Older docker archives link a layer that an image has twice.
    Link(String),
}

/// Finds out what the tar at `path` is.
pub(super) fn scan(target: &Target<'_>, path: &Path) -> Result<Scan> {
    let mut reader = open(path)?;
    let compression = Compression::detect(&mut reader).map_err(|e| not_a_tar(path, e))?;
    if compression == Compression::Plain {
        return scan_plain(path, reader.into_inner(), None);
    }
    // Reading names only is quick for a root file system, which shows itself at once.
    let stream = decompressed(reader, target.limits.ratio).map_err(|e| not_a_tar(path, e))?;
    let (tap, headers) = Tap::new(stream);
    let mut archive = tar::Archive::new(tap);
    let entries = archive.entries().map_err(|e| not_a_tar(path, e))?;
    if collect(entries, &headers, path)?.is_none_or(|members| !is_image(&members)) {
        return Ok(Scan::RootFs);
    }
    let (temporary, mut copy) = target.layout.temporary_file()?;
    let mut stream = decompressed(open(path)?, target.limits.ratio)
        .map_err(|e| not_a_tar(path, e))?
        .take(target.limits.bytes);
    io::copy(&mut stream, &mut copy).map_err(|e| Error::io("decompress", path, e))?;
    if stream.limit() == 0 {
        let message = format!("{} decompresses to more than {} bytes", path.display(), target.limits.bytes);
        return Err(Error::new(ErrorKind::Limit, message));
    }
    scan_plain(path, copy, Some(temporary))
}

fn scan_plain(path: &Path, mut tar: File, copy: Option<Temporary>) -> Result<Scan> {
    io::Seek::rewind(&mut tar).map_err(|e| Error::io("read", path, e))?;
    let (tap, headers) = Tap::new(io::BufReader::new(&tar));
    let mut archive = tar::Archive::new(tap);
    let entries = archive.entries_with_seek().map_err(|e| not_a_tar(path, e))?;
    let found = collect(entries, &headers, path)?;
    drop(archive);
    let Some(by_name) = found.filter(is_image) else { return Ok(Scan::RootFs) };
    let members = Members { path: path.to_owned(), tar, by_name, _copy: copy };
    if !members.is_layout() && !members.has_docker_manifest() {
        return Ok(Scan::RootFs);
    }
    Ok(Scan::Image(members))
}

/// One image of a docker archive, as `manifest.json` lists them.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct DockerImage {
    pub(super) config: String,
    #[serde(default)]
    pub(super) repo_tags: Option<Vec<String>>,
    pub(super) layers: Vec<String>,
}

impl Members {
    /// The images that `manifest.json` lists.
    pub(super) fn docker_images(&self) -> Result<Vec<DockerImage>> {
        let what = format!("the manifest.json of {}", self.path.display());
        parse_document(&self.document("manifest.json")?, &what)
    }

    /// A file of that name may be anybody's.
    fn has_docker_manifest(&self) -> bool {
        self.docker_images().is_ok_and(|images| !images.is_empty())
    }

    fn find(&self, name: &str) -> Option<(u64, u64)> {
        let mut name = normalized("", name)?;
        // A link to a link to … is no archiver's work.
        for _ in 0..8 {
            match self.by_name.get(&name)? {
                Member::File { offset, size } => return Some((*offset, *size)),
                Member::Link(target) => name.clone_from(target),
            }
        }
        None
    }
}

impl Content for Members {
    fn open(&self, name: &str) -> Result<(Box<dyn Read + '_>, u64)> {
        let (offset, size) = self.find(name).ok_or_else(|| missing(name, &self.path))?;
        Ok((Box::new(Section { file: &self.tar, position: offset, left: size }), size))
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }
}

/// A part of a file.
struct Section<'f> {
    file: &'f File,
    position: u64,
    left: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut buffer[..wanted], self.position)?;
        self.position += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

fn is_image(members: &HashMap<String, Member>) -> bool {
    let has = |name| members.contains_key(name);
    has("manifest.json") || (has("oci-layout") && has("index.json"))
}

/// Reads the names. `None` as soon as it is clear that this is a root file system.
fn collect<R: Read>(
    mut entries: tar::Entries<'_, R>,
    headers: &Headers,
    path: &Path,
) -> Result<Option<HashMap<String, Member>>> {
    let mut members = HashMap::new();
    let mut seen = 0;
    let mut unread = 0;
    loop {
        headers.start(unread);
        let Some(entry) = entries.next() else { break };
        let entry = entry.map_err(|e| not_a_tar(path, e))?;
        let records = headers.finish()?;
        seen += 1;
        let name = match value(&records, "path") {
            Some(name) => name.to_owned(),
            None => entry.path_bytes().into_owned(),
        };
        let Some(name) = normalized("", &String::from_utf8_lossy(&name)) else { return Ok(None) };
        let top = name.split('/').next().unwrap_or_default();
        let kind = entry.header().entry_type();
        if ROOT_FS.contains(&top) || kind.is_gnu_sparse() || seen > MAX_MEMBERS {
            return Ok(None);
        }
        if kind.is_file() || kind.is_contiguous() {
            let member = Member::File { offset: entry.raw_file_position(), size: entry.size() };
            members.insert(name, member);
        } else if kind.is_symlink() || kind.is_hard_link() {
            let link = match value(&records, "linkpath") {
                Some(link) => link.to_owned(),
                None => entry.link_name_bytes().unwrap_or_default().into_owned(),
            };
            let directory =
                if kind.is_symlink() { name.rsplit_once('/').map_or("", |(up, _)| up) } else { "" };
            if let Some(link) = normalized(directory, &String::from_utf8_lossy(&link)) {
                members.insert(name, Member::Link(link));
            }
        }
        unread = entry.size();
    }
    if seen == 0 {
        let message = format!("cannot import {}: it is empty, or no tar archive", path.display());
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    Ok(Some(members))
}

/// A name without `.` and `..`; `None` if it climbs out of the archive.
fn normalized(directory: &str, name: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in directory.split('/').chain(name.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

fn not_a_tar(path: &Path, error: io::Error) -> Error {
    let message = format!(
        "cannot import {}: it is neither an image archive nor a root file system's tar",
        path.display()
    );
    Error::stream(ErrorKind::Invalid, message, error)
}
