//! What an image is imported from, told by content and never by name.
//!
//! | kind | how it is told |
//! |---|---|
//! | OCI image layout | a directory, or a tar, with `oci-layout` and `index.json` |
//! | docker archive | a tar with a `manifest.json` that lists configurations and layers |
//! | root file system | any other tar, or any other directory |
//!
//! Newer docker archives are OCI layouts too, and are read as such. A tar may be compressed.

mod content;
mod docker;
mod members;
mod oci;
mod rootfs;
mod tree;

use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;

use beta9_types::{Digest, ImageReference};

use crate::apply::Limits;
use crate::blobs::Blobs;
use crate::layout::Layout;
use crate::progress::Progress;
use crate::{Error, ErrorKind, Result};
use content::{Content, Directory};
use members::{Members, Scan};
#[cfg(fuzzing)]
pub(crate) use oci::fuzz_index;
pub(crate) use oci::{FULL_NAME, check_layer_count, check_layer_type, diff_ids, digest as digest_of};

/// Where an import goes: the store's blobs, what they may hold, and who watches.
pub(crate) struct Target<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) limits: Limits,
    pub(crate) progress: &'a dyn Progress,
}

impl Target<'_> {
    fn blobs(&self) -> Blobs<'_> {
        Blobs { layout: self.layout, limits: self.limits }
    }
}

/// What an import brought: a manifest in the store, and the name it should go by.
#[derive(Debug)]
pub(crate) struct Imported {
    pub(crate) manifest: Digest,
    pub(crate) manifest_size: u64,
    pub(crate) reference: ImageReference,
}

/// Copies an image from `path` into the store's blobs.
pub(crate) fn import(target: &Target<'_>, path: &Path, wanted: Option<&ImageReference>) -> Result<Imported> {
    let found = std::fs::metadata(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::new(
            ErrorKind::NotFound,
            format!("cannot import {}: there is no such file", path.display()),
        ),
        _ => Error::io("look up", path, error),
    })?;
    if found.is_dir() {
        let directory = Directory::new(path);
        if !directory.is_layout() {
            // A layout that lost its index is no root file system.
            return match directory.has("oci-layout") {
                true => Err(content::missing("index.json", path)),
                false => rootfs::import_tree(target, path, wanted),
            };
        }
        return oci::import(target, &directory, path, wanted);
    }
    if !found.is_file() {
        let message = format!("cannot import {}: it is neither a file nor a directory", path.display());
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    match members::scan(target, path)? {
        Scan::RootFs => rootfs::import(target, path, wanted),
        Scan::Image(members) => import_members(target, &members, path, wanted),
    }
}

fn import_members(
    target: &Target<'_>,
    members: &Members,
    path: &Path,
    wanted: Option<&ImageReference>,
) -> Result<Imported> {
    if members.is_layout() {
        oci::import(target, members, path, wanted)
    } else {
        docker::import(target, members, path, wanted)
    }
}

fn open(path: &Path) -> Result<BufReader<File>> {
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    Ok(BufReader::with_capacity(256 << 10, file))
}

/// A name from an archive, if it is one.
fn named(name: &str) -> Option<ImageReference> {
    ImageReference::parse(name).ok()
}

/// A name after the file, for an archive that does not say: `debian 12.tar.gz` is `debian-12`.
fn named_after(path: &Path, tag: &str) -> Result<ImageReference> {
    let file = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let mut stem = file.as_str();
    while let Some(shorter) = EXTENSIONS.iter().find_map(|extension| stem.strip_suffix(extension)) {
        stem = shorter;
    }
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_');
    let name: String = stem.chars().map(|c| if allowed(c) { c } else { '-' }).collect();
    let name = name.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    ImageReference::parse(&format!("{name}:{tag}")).map_err(|e| {
        let message = format!("{} does not say how its image is called; give it a name", path.display());
        Error::caused(ErrorKind::Ambiguous, message, e)
    })
}

const EXTENSIONS: [&str; 7] = [".tar", ".gz", ".tgz", ".zst", ".tzst", ".oci", ".img"];

/// The processor's name in OCI documents, which use Go's.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_lend_their_names() {
        let name = |file: &str| named_after(Path::new(file), "latest").map(|name| name.to_string());
        assert_eq!(name("/x/Debian 12.tar.gz").unwrap(), "debian-12:latest");
        assert_eq!(name("rootfs.tzst").unwrap(), "rootfs:latest");
        assert_eq!(name("a_b").unwrap(), "a_b:latest");
        assert_eq!(name("/x/.tar").unwrap_err().kind(), ErrorKind::Ambiguous);
    }
}
