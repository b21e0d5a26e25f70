//! Getting disk space back: images that nobody needs, and what no image needs.
//!
//! Who makes a container holds a [`Lease`] on its image until the container is on record, and an image is only taken
//! while no lease on it is held and no container on record has it. So a start that races with a prune either gets the
//! image, or finds it gone and says so. A lease also remembers when an image was used last, for those that are taken
//! when the store is larger than it may be.
//!
//! A name goes first, then what was made of the image, then its blobs: what is left of an interrupted prune is without
//! a name, and the next one takes it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use beta9_types::{Digest, ImageReference};

use crate::block::BlockFormat;
use crate::index::{self, Record};
use crate::lock::Lock;
use crate::{Error, ErrorKind, Image, Result, Store};

/// An image that is in use. Dropped, it is free again.
#[derive(Debug)]
pub struct Lease {
    _lock: Lock,
}

/// What may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unused {
    /// What has no name.
    Dangling,
    /// Every image that no container has, too.
    All,
}

/// What is gone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Names that were taken away.
    pub images: Vec<ImageReference>,
    /// Bytes on the disk that are free again.
    pub bytes: u64,
}

/// Tells which images the containers on record have. It is asked again and again, each time for what is so just then.
pub type InUse<'a> = &'a dyn Fn() -> Result<HashSet<Digest>, Box<dyn std::error::Error + Send + Sync>>;

impl Store {
    /// The image of that name, and the promise that it stays until the lease is dropped.
    pub fn claim(&self, reference: &ImageReference) -> Result<(Image, Lease)> {
        loop {
            let image = self.get(reference)?;
            let path = self.use_lock(&image.digest);
            let lease = Lease { _lock: Lock::shared(&path)? };
            // The file's time is that of the last use. It is a hint, and no reason to fail.
            let _ = fs::File::options()
                .write(true)
                .open(&path)
                .and_then(|file| file.set_modified(SystemTime::now()));
            // It may have been taken, or have got another meaning, before we had the lease.
            if self.get(reference)?.digest == image.digest {
                return Ok((image, lease));
            }
        }
    }

    /// Removes what nobody needs. Nothing is removed while an image is being pulled or imported, which is an error:
    /// that image may have found a blob to be here already.
    pub fn prune(&self, unused: Unused, in_use: InUse<'_>) -> Result<Pruned> {
        let Some(_alone) = Lock::try_exclusive(&self.layout().lock("content"))? else {
            let message =
                "cannot prune while an image is being pulled or imported; try again when that is done";
            return Err(Error::new(ErrorKind::Busy, message));
        };
        let mut pruned = Pruned::default();
        if unused == Unused::All {
            for (digest, _) in self.by_last_use()? {
                self.take(&digest, in_use, &mut pruned)?;
            }
        }
        pruned.bytes += self.sweep_content(in_use)?;
        pruned.bytes += self.remove_partials()?;
        self.layout().sweep()?;
        Ok(pruned)
    }

    /// Removes images that no container has, the one that was used longest ago first, until the store takes up no more
    /// than `limit` bytes, or none is left that may go. While an image is being pulled or imported nothing is removed.
    pub fn evict(&self, limit: u64, in_use: InUse<'_>) -> Result<Pruned> {
        let mut pruned = Pruned::default();
        if self.disk_usage()? <= limit {
            return Ok(pruned);
        }
        let Some(_alone) = Lock::try_exclusive(&self.layout().lock("content"))? else { return Ok(pruned) };
        pruned.bytes += self.sweep_content(in_use)?;
        for (digest, _) in self.by_last_use()? {
            if self.disk_usage()? <= limit {
                break;
            }
            if self.take(&digest, in_use, &mut pruned)? {
                pruned.bytes += self.sweep_content(in_use)?;
            }
        }
        if !pruned.images.is_empty() {
            tracing::info!(limit, freed = pruned.bytes, images = pruned.images.len(), "images evicted");
        }
        Ok(pruned)
    }

    /// Bytes that the images take up on the disk, in every form. Empty file systems to copy do not count.
    pub fn disk_usage(&self) -> Result<u64> {
        let mut sum = 0;
        for directory in ["blobs", "partial", "accounts", "block"] {
            sum += size_of(&self.layout().directory().join(directory))?;
        }
        for hex in self.hexes("trees")? {
            sum += self.tree_size(&hex)?;
        }
        Ok(sum)
    }

    /// Takes an image's names away, unless somebody uses it. `false` if somebody does.
    fn take(&self, digest: &Digest, in_use: InUse<'_>, pruned: &mut Pruned) -> Result<bool> {
        let Some(_unleased) = Lock::try_exclusive(&self.use_lock(digest))? else { return Ok(false) };
        // Asked after the lock is held: who let go of a lease has a container on record.
        if used(in_use)?.contains(digest) {
            return Ok(false);
        }
        for reference in self.names(digest)? {
            if let (Some(record), _) = index::remove(self.layout(), &reference)? {
                pruned.images.push(record.reference);
            }
        }
        Ok(true)
    }

    /// Every named image, the one that was used longest ago first.
    fn by_last_use(&self) -> Result<Vec<(Digest, SystemTime)>> {
        let mut last: BTreeMap<Digest, SystemTime> = BTreeMap::new();
        for Record { manifest, imported, .. } in index::read(self.layout())? {
            let used = fs::metadata(self.use_lock(&manifest)).and_then(|found| found.modified());
            let used = used.unwrap_or(imported).max(imported);
            let known = last.entry(manifest).or_insert(used);
            *known = used.max(*known);
        }
        let mut images: Vec<_> = last.into_iter().collect();
        images.sort_by_key(|(_, used)| *used);
        Ok(images)
    }

    /// Removes everything that no name and no container needs, for whoever holds the lock on the content.
    fn sweep_content(&self, in_use: InUse<'_>) -> Result<u64> {
        let named: HashSet<Digest> =
            index::read(self.layout())?.into_iter().map(|record| record.manifest).collect();
        let mut freed = 0;
        let mut kept = named.clone();
        kept.extend(used(in_use)?);
        for (digest, made) in self.made()? {
            if named.contains(&digest) {
                continue;
            }
            // Held until all of it is gone.
            let Some(_unleased) = Lock::try_exclusive(&self.use_lock(&digest))? else {
                kept.insert(digest);
                continue;
            };
            if used(in_use)?.contains(&digest) {
                kept.insert(digest);
                continue;
            }
            for path in made {
                freed += self.discard(&path, &digest)?;
            }
        }
        Ok(freed + self.sweep_blobs(&kept)?)
    }

    /// Removes blobs that none of these manifests needs.
    fn sweep_blobs(&self, manifests: &HashSet<Digest>) -> Result<u64> {
        let mut needed: HashSet<Digest> = HashSet::new();
        for manifest in manifests {
            match self.needed_by(manifest) {
                Ok(blobs) => needed.extend(blobs),
                // A container's image whose name and blobs are gone needs none.
                Err(error) if error.kind() == ErrorKind::Io => drop(needed.insert(manifest.clone())),
                Err(error) => {
                    tracing::warn!(image = %manifest, error = error.chain(), "image is damaged; no blobs are removed");
                    return Ok(0);
                }
            }
        }
        let mut freed = 0;
        for hex in self.hexes("blobs/sha256")? {
            let Ok(digest) = Digest::parse(&format!("sha256:{hex}")) else { continue };
            if !needed.contains(&digest) {
                let path = self.layout().blob(&digest);
                let size = size_of(&path)?;
                fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
                freed += size;
            }
        }
        Ok(freed)
    }

    /// Trees, block images and the like, by the image that they were made of.
    fn made(&self) -> Result<BTreeMap<Digest, Vec<std::path::PathBuf>>> {
        let mut made: BTreeMap<Digest, Vec<_>> = BTreeMap::new();
        for directory in ["block", "accounts", "trees"] {
            for name in self.hexes(directory)? {
                let hex = name.split('.').next().unwrap_or_default();
                if let Ok(digest) = Digest::parse(&format!("sha256:{hex}")) {
                    made.entry(digest)
                        .or_default()
                        .push(self.layout().directory().join(directory).join(name));
                }
            }
        }
        Ok(made)
    }

    /// Removes a tree, an image or the like. It is out of sight before the first part of it is gone.
    fn discard(&self, path: &Path, digest: &Digest) -> Result<u64> {
        let size =
            if *path == self.layout().tree(digest) { self.tree_size(digest.hex())? } else { size_of(path)? };
        let doomed = self.layout().temporary_directory()?;
        fs::rename(path, doomed.path().join("doomed")).map_err(|e| Error::io("remove", path, e))?;
        let _ = fs::remove_file(self.layout().size(digest.hex()));
        Ok(size)
    }

    /// What a tree takes up: as it was counted once, since a tree never changes.
    fn tree_size(&self, hex: &str) -> Result<u64> {
        let path = self.layout().size(hex);
        if let Some(size) = fs::read_to_string(&path).ok().and_then(|text| text.parse().ok()) {
            return Ok(size);
        }
        let size = size_of(&self.layout().directory().join("trees").join(hex))?;
        // Counted again next time if it cannot be kept.
        let _ = fs::write(&path, size.to_string());
        Ok(size)
    }

    pub(crate) fn use_lock(&self, digest: &Digest) -> std::path::PathBuf {
        self.layout().lock(&format!("use-{}", digest.hex()))
    }

    /// The names in a directory of the store.
    fn hexes(&self, directory: &str) -> Result<BTreeSet<String>> {
        let path = self.layout().directory().join(directory);
        let failed = |e| Error::io("read", &path, e);
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(&path).map_err(failed)? {
            names.extend(entry.map_err(failed)?.file_name().into_string());
        }
        Ok(names)
    }

    /// Removes everything that was made of an image, for whoever knows that nobody uses it.
    pub(crate) fn discard_made(&self, digest: &Digest) -> Result<u64> {
        let blocks = BlockFormat::ALL.map(|format| self.layout().block(digest, format.as_str()));
        let mut freed = 0;
        for path in blocks.into_iter().chain([self.layout().accounts(digest), self.layout().tree(digest)]) {
            if path.exists() {
                freed += self.discard(&path, digest)?;
            }
        }
        Ok(freed)
    }
}

fn used(in_use: InUse<'_>) -> Result<HashSet<Digest>> {
    in_use().map_err(|e| Error::caused(ErrorKind::Io, "cannot find out which images the containers have", e))
}

/// What a file, or a directory with all that is in it, takes up on the disk. Hard links count once; what goes away
/// meanwhile does not count.
fn size_of(path: &Path) -> Result<u64> {
    let mut sum = 0;
    let mut linked = HashSet::new();
    let mut left = vec![path.to_owned()];
    while let Some(path) = left.pop() {
        let found = match fs::symlink_metadata(&path) {
            Ok(found) => found,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::io("look up", &path, error)),
        };
        if found.is_dir() {
            for entry in fs::read_dir(&path).map_err(|e| Error::io("read", &path, e))? {
                left.push(entry.map_err(|e| Error::io("read", &path, e))?.path());
            }
        } else if found.nlink() > 1 && !linked.insert(found.ino()) {
            continue;
        }
        sum += found.blocks() * 512;
    }
    Ok(sum)
}
