//! Content that arrives piece by piece, from a network: what a pull needs of the store.
//!
//! A blob grows in `images/partial/<hex>`, under a lock on that very file, so that everybody who wants the blob waits for
//! the one who fetches it. It is published only when its size and digest are the announced ones. One that is interrupted
//! stays, and the next attempt goes on where it stopped; one that turns out wrong is removed. What nobody came back for
//! within a day is removed by the next pull.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use beta9_types::{Digest, ImageReference, Platform};
use oci_spec::image::{ImageConfiguration, ImageManifest};
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::blobs::{Blobs, MAX_DOCUMENT, parse_document};
use crate::image::Image;
use crate::index::{self, Record};
use crate::layout::{Layout, sync_directory};
use crate::lock::Lock;
use crate::source::{self, check_layer_type, digest_of};
use crate::{Error, ErrorKind, Limits, Result, Store};

/// How long an interrupted blob waits for somebody to go on with it.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// A pull under way. While it lives, nothing that it has brought or found is removed as unused.
pub struct Ingest {
    store: Store,
    _lease: Lock,
}

/// A blob that an image asks for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Wanted {
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
}

/// What a manifest asks for, checked against the store's limits.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The image's configuration.
    pub config: Wanted,
    /// From the lowest to the topmost; equal ones once.
    pub layers: Vec<Wanted>,
    /// Layers with repetitions.
    layer_count: usize,
}

impl Store {
    /// Begins to take in an image piece by piece.
    pub fn ingest(&self) -> Result<Ingest> {
        let directory = partials(self.layout());
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        made.map_err(|e| Error::io("create", &directory, e))?;
        let lease = Lock::shared(&self.layout().lock("content"))?;
        sweep(&directory, KEPT)?;
        Ok(Ingest { store: self.clone(), _lease: lease })
    }

    /// Removes what interrupted pulls left, unless somebody is at work on it. Returns the bytes that this freed.
    pub fn remove_partials(&self) -> Result<u64> {
        sweep(&partials(self.layout()), Duration::ZERO)
    }
}

impl Ingest {
    /// Reads a manifest: what it asks for. Refuses what is no container image, and what is larger than the store's limits.
    pub fn plan(&self, manifest: &[u8]) -> Result<Plan> {
        let manifest: ImageManifest = parse_document(manifest, "the image's manifest")?;
        let config = wanted(manifest.config())?;
        if config.size > MAX_DOCUMENT {
            let message = format!("the image's configuration has {} bytes, more than any needs", config.size);
            return Err(Error::new(ErrorKind::Limit, message));
        }
        let mut layers: Vec<Wanted> = Vec::new();
        let mut sizes: HashMap<Digest, u64> = HashMap::new();
        let mut total = 0u64;
        for layer in manifest.layers() {
            check_layer_type(layer.media_type())?;
            let layer = wanted(layer)?;
            match sizes.insert(layer.digest.clone(), layer.size) {
                Some(size) if size != layer.size => {
                    let message =
                        format!("the image's manifest gives layer {} two different sizes", layer.digest);
                    return Err(Error::new(ErrorKind::Invalid, message));
                }
                Some(_) => continue,
                None => {}
            }
            total = total.saturating_add(layer.size);
            layers.push(layer);
        }
        let limit = self.store.limits().bytes;
        if total > limit {
            let message =
                format!("the image's layers have {total} bytes, and {limit} are the most that is accepted");
            return Err(Error::new(ErrorKind::Limit, message));
        }
        let layer_count = manifest.layers().len();
        source::check_layer_count(layer_count)?;
        Ok(Plan { config, layers, layer_count })
    }

    /// Checks an image's configuration before its layers are fetched.
    pub fn check_config(&self, config: &[u8], plan: &Plan, platform: &Platform) -> Result<()> {
        let config: ImageConfiguration = parse_document(config, "the image's configuration")?;
        let (os, architecture) = (config.os().to_string(), config.architecture().to_string());
        let variant = config.variant().as_deref();
        if !platform.accepts(&os, &architecture, variant) {
            let message = format!("it is an image for {os}/{architecture}, and {platform} was asked for");
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        source::diff_ids(&config, plan.layer_count).map(drop)
    }

    /// Whether the store has that blob already.
    pub fn has(&self, wanted: &Wanted) -> bool {
        self.blobs().has(&wanted.digest, wanted.size)
    }

    /// Refuses early what the disk has no room for.
    pub fn check_space(&self, plan: &Plan) -> Result<()> {
        let missing: u64 = plan.layers.iter().filter(|layer| !self.has(layer)).map(|layer| layer.size).sum();
        let directory = self.store.directory();
        let found = rustix::fs::statvfs(directory).map_err(|e| Error::io("look up", directory, e))?;
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        if missing <= free {
            return Ok(());
        }
        let message = format!(
            "{missing} bytes are to be fetched and {} has {free} bytes free; remove images or give it more room",
            directory.display()
        );
        Err(Error::new(ErrorKind::Full, message))
    }

    /// The place where a blob is put together, with what an earlier attempt left; waits for whoever works on it.
    /// `None` when the store has the blob.
    pub fn partial(&self, wanted: &Wanted) -> Result<Option<Partial>> {
        Partial::open(self.store.layout(), wanted)
    }

    /// Stores a small document that is known whole.
    pub fn write_document(&self, bytes: &[u8]) -> Result<Digest> {
        self.blobs().write_document(bytes)
    }

    /// Reads a small document back.
    pub fn document(&self, digest: &Digest) -> Result<Vec<u8>> {
        self.blobs().document(digest)
    }

    /// Gives the image its name, now that everything of it is here.
    pub fn finish(self, reference: &ImageReference, manifest: &[u8]) -> Result<Image> {
        let plan = self.plan(manifest)?;
        if let Some(missing) = plan.layers.iter().chain([&plan.config]).find(|wanted| !self.has(wanted)) {
            let message = format!("blob {} of image {reference} is missing", missing.digest);
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let digest = self.write_document(manifest)?;
        let record = Record {
            reference: reference.clone(),
            manifest: digest,
            manifest_size: manifest.len() as u64,
            imported: index::now(),
        };
        let image = self.store.load(&record)?;
        index::set(self.store.layout(), record)?;
        Ok(image)
    }

    /// Gives the image up: of what it asked for nothing stays that no other image has. While others pull or import,
    /// blobs stay that they may have found to be here already.
    pub fn abandon(self, wanted: &[Wanted]) -> Result<()> {
        let directory = partials(self.store.layout());
        for wanted in wanted {
            remove_unlocked(&directory.join(wanted.digest.hex()), Duration::ZERO)?;
        }
        let Self { store, _lease: lease } = self;
        drop(lease);
        store.remove_unused(wanted.iter().map(|wanted| wanted.digest.clone()).collect()).map(drop)
    }

    fn blobs(&self) -> Blobs<'_> {
        self.store.blobs()
    }
}

/// A blob that grows. Dropped, it stays for whoever goes on with it.
#[derive(Debug)]
pub struct Partial {
    layout: Layout,
    wanted: Wanted,
    path: PathBuf,
    /// Locked until it is closed.
    file: File,
    hash: Sha256,
    written: u64,
}

impl Partial {
    fn open(layout: &Layout, wanted: &Wanted) -> Result<Option<Self>> {
        let path = partials(layout).join(wanted.digest.hex());
        let is_stored = || Blobs { layout, limits: Limits::default() }.has(&wanted.digest, wanted.size);
        let file = loop {
            if is_stored() {
                return Ok(None);
            }
            let flags = OFlags::NOFOLLOW.bits().cast_signed();
            let opened = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(flags)
                .open(&path);
            let file = opened.map_err(|e| Error::io("open", &path, e))?;
            lock(&file, FlockOperation::LockExclusive).map_err(|e| Error::io("lock", &path, e))?;
            // While we waited it may have become the blob, or have been given up.
            if is_same_file(&file, &path) {
                break file;
            }
        };
        if is_stored() {
            remove(&path)?;
            return Ok(None);
        }
        let mut partial = Self {
            layout: layout.clone(),
            wanted: wanted.clone(),
            path,
            file,
            hash: Sha256::new(),
            written: 0,
        };
        partial.read_back()?;
        Ok(Some(partial))
    }

    /// Digests what an earlier attempt wrote.
    fn read_back(&mut self) -> Result<()> {
        let failed = |e| Error::io("read", &self.path, e);
        let length = self.file.metadata().map_err(failed)?.len();
        // A full one is wrong, or it would have been published.
        if length >= self.wanted.size {
            return self.restart();
        }
        let mut buffer = vec![0; 256 << 10];
        loop {
            match self.file.read(&mut buffer).map_err(failed)? {
                0 => return Ok(()),
                count => {
                    self.hash.update(&buffer[..count]);
                    self.written += count as u64;
                }
            }
        }
    }

    /// The bytes that are there.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// The bytes that are missing.
    pub fn missing(&self) -> u64 {
        self.wanted.size - self.written
    }

    /// Forgets what is there.
    pub fn restart(&mut self) -> Result<()> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.rewind());
        emptied.map_err(|e| Error::io("empty", &self.path, e))?;
        self.hash = Sha256::new();
        self.written = 0;
        Ok(())
    }

    /// Adds bytes. More than the blob may have are refused.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.len() as u64 > self.missing() {
            let message =
                format!("blob {} has more than the {} bytes announced", self.wanted.digest, self.wanted.size);
            return Err(Error::new(ErrorKind::Mismatch, message));
        }
        self.file.write_all(bytes).map_err(|e| write_error(&self.path, e))?;
        self.hash.update(bytes);
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Checks size and digest and lets everybody see the blob. A wrong one is removed.
    pub fn finish(self) -> Result<()> {
        let Wanted { digest, size } = &self.wanted;
        let found = Digest::from_sha256(self.hash.clone().finalize().into());
        let wrong = if self.written != *size {
            Some(format!("blob {digest} has {} bytes where {size} were announced", self.written))
        } else if found != *digest {
            Some(format!("content announced as {digest} is {found}; the image is damaged"))
        } else {
            None
        };
        if let Some(message) = wrong {
            self.discard()?;
            return Err(Error::new(ErrorKind::Mismatch, message));
        }
        let sealed = self.file.set_permissions(Permissions::from_mode(0o444));
        if let Err(error) = sealed.and_then(|()| self.file.sync_all()) {
            let error = write_error(&self.path, error);
            self.discard()?;
            return Err(error);
        }
        let place = self.layout.blob(digest);
        fs::rename(&self.path, &place).map_err(|e| Error::io("create", &place, e))?;
        sync_directory(place.parent().unwrap_or(Path::new("/")))
    }

    /// Gives the blob up: nothing of it stays.
    pub fn discard(self) -> Result<()> {
        remove(&self.path)
    }
}

fn partials(layout: &Layout) -> PathBuf {
    layout.directory().join("partial")
}

/// Removes what is older than that and nobody holds.
fn sweep(directory: &Path, age: Duration) -> Result<u64> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(Error::io("read", directory, error)),
    };
    let mut freed = 0;
    for entry in entries {
        let path = entry.map_err(|e| Error::io("read", directory, e))?.path();
        freed += remove_unlocked(&path, age)?;
    }
    Ok(freed)
}

/// Removes one that is older than that, unless somebody holds it. Returns the bytes that this freed.
fn remove_unlocked(path: &Path, age: Duration) -> Result<u64> {
    let flags = OFlags::NOFOLLOW.bits().cast_signed();
    let Ok(file) = OpenOptions::new().write(true).custom_flags(flags).open(path) else { return Ok(0) };
    let Ok(found) = file.metadata() else { return Ok(0) };
    // A clock that was set back makes nothing old.
    let elapsed = found.modified().ok().and_then(|time| SystemTime::now().duration_since(time).ok());
    let is_old = age.is_zero() || elapsed.is_some_and(|elapsed| elapsed >= age);
    let is_ours = lock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() && is_same_file(&file, path);
    if !is_old || !is_ours {
        return Ok(0);
    }
    remove(path)?;
    Ok(found.len())
}

fn lock(file: &File, operation: FlockOperation) -> rustix::io::Result<()> {
    loop {
        match flock(file, operation) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

fn is_same_file(file: &File, path: &Path) -> bool {
    let (Ok(ours), Ok(theirs)) = (file.metadata(), fs::symlink_metadata(path)) else { return false };
    (ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino())
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, error)),
        _ => Ok(()),
    }
}

fn write_error(path: &Path, error: io::Error) -> Error {
    let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded].contains(&error.kind());
    if full {
        let message = format!("cannot write {}: remove images or give the disk more room", path.display());
        return Error::caused(ErrorKind::Full, message, error);
    }
    Error::io("write", path, error)
}

fn wanted(descriptor: &oci_spec::image::Descriptor) -> Result<Wanted> {
    Ok(Wanted { digest: digest_of(descriptor)?, size: descriptor.size() })
}
