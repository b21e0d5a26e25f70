//! Where things are below `<root>/images`, and how something unfinished stays apart from what is finished.
//!
//! ```text
//! images/            0711   also an OCI image layout: other programs can read it
//!   oci-layout, index.json  reference -> manifest
//!   blobs/sha256/    0700   content by digest
//!   trees/<hex>/     0700   one unpacked tree per manifest
//!   block/<hex>.<fs> 0755   one read-only image per manifest; the VMs' users read it
//!   accounts/<hex>/  0700   etc/passwd and etc/group of an image that has no tree
//!   sizes/<hex>      0700   what a tree takes up
//!   scratch/         0700   empty file systems, one per size
//!   locks/           0700   never removed
//!   tmp/             0700   everything unfinished
//! ```
//!
//! Finished things appear by a rename and are never changed in place.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::ErrorKind as IoKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use beta9_types::Digest;

use crate::lock::Lock;
use crate::{Error, Result};

#[derive(Debug, Clone)]
pub(crate) struct Layout {
    directory: PathBuf,
}

impl Layout {
    /// Names the places below `<root>/images` and makes the missing ones.
    pub(crate) fn create(root: &Path) -> Result<Self> {
        let layout = Self { directory: root.join("images") };
        make_directory(&layout.directory, 0o711)?;
        make_directory(&layout.blobs(), 0o700)?;
        for (name, mode) in [
            ("trees", 0o700),
            ("accounts", 0o700),
            ("sizes", 0o700),
            ("block", 0o755),
            ("scratch", 0o700),
            ("locks", 0o700),
            ("tmp", 0o700),
        ] {
            make_directory(&layout.directory.join(name), mode)?;
        }
        Ok(layout)
    }

    /// `<root>/images`.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn index(&self) -> PathBuf {
        self.directory.join("index.json")
    }

    pub(crate) fn marker(&self) -> PathBuf {
        self.directory.join("oci-layout")
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.directory.join("blobs/sha256")
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    pub(crate) fn tree(&self, manifest: &Digest) -> PathBuf {
        self.directory.join("trees").join(manifest.hex())
    }

    pub(crate) fn size(&self, hex: &str) -> PathBuf {
        self.directory.join("sizes").join(hex)
    }

    pub(crate) fn accounts(&self, manifest: &Digest) -> PathBuf {
        self.directory.join("accounts").join(manifest.hex())
    }

    pub(crate) fn block(&self, manifest: &Digest, extension: &str) -> PathBuf {
        self.directory.join("block").join(format!("{}.{extension}", manifest.hex()))
    }

    pub(crate) fn scratch(&self, size: u64) -> PathBuf {
        self.directory.join("scratch").join(format!("{size}.ext4"))
    }

    pub(crate) fn lock(&self, name: &str) -> PathBuf {
        self.directory.join("locks").join(name)
    }

    /// A new, empty directory for something unfinished.
    pub(crate) fn temporary_directory(&self) -> Result<Temporary> {
        self.temporary(|path| DirBuilder::new().mode(0o700).create(path)).map(|(temporary, ())| temporary)
    }

    /// A new, empty file for something unfinished.
    pub(crate) fn temporary_file(&self) -> Result<(Temporary, File)> {
        self.temporary(|path| {
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
        })
    }

    fn temporary<T>(&self, create: impl Fn(&Path) -> std::io::Result<T>) -> Result<(Temporary, T)> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let lease = Lock::shared(&self.lock("tmp"))?;
        loop {
            let number = COUNTER.fetch_add(1, Ordering::Relaxed);
            let path = self.directory.join("tmp").join(format!("{}-{number}", std::process::id()));
            match create(&path) {
                Ok(made) => return Ok((Temporary { path, published: false, _lease: lease }, made)),
                // Left by an earlier process of the same number that was killed.
                Err(error) if error.kind() == IoKind::AlreadyExists => {}
                Err(error) => return Err(Error::io("create", &path, error)),
            }
        }
    }

    /// Removes what killed processes left in `tmp`, unless somebody is at work there just now.
    pub(crate) fn sweep(&self) -> Result<()> {
        let Some(_alone) = Lock::try_exclusive(&self.lock("tmp"))? else { return Ok(()) };
        let directory = self.directory.join("tmp");
        let entries = fs::read_dir(&directory).map_err(|e| Error::io("read", &directory, e))?;
        for entry in entries {
            let entry = entry.map_err(|e| Error::io("read", &directory, e))?;
            tracing::info!(path = %entry.path().display(), "removing an unfinished image build");
            remove(&entry.path()).map_err(|e| Error::io("remove", &entry.path(), e))?;
        }
        Ok(())
    }
}

/// Something unfinished. It is removed unless [`Temporary::publish`] moves it to its place.
///
/// While it lives it shares the lock of `tmp`, so no other process sweeps it away.
#[derive(Debug)]
pub(crate) struct Temporary {
    path: PathBuf,
    published: bool,
    _lease: Lock,
}

impl Temporary {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Moves the finished thing to its place, for good: its contents must be on disk already.
    pub(crate) fn publish(mut self, place: &Path) -> Result<()> {
        fs::rename(&self.path, place).map_err(|e| Error::io("create", place, e))?;
        // From here on the old name may be somebody else's.
        self.published = true;
        sync_directory(place.parent().unwrap_or(Path::new("/")))
    }
}

impl Temporary {
    /// Brings a finished tree to the disk and moves it to its place.
    ///
    /// Every file of it is written first, so a tree that is in its place after a power cut is whole.
    pub(crate) fn publish_tree(self, place: &Path) -> Result<()> {
        let synced = File::open(&self.path).and_then(|tree| Ok(rustix::fs::syncfs(tree)?));
        synced.map_err(|e| Error::io("write", &self.path, e))?;
        self.publish(place)
    }

    /// Moves a finished, read-only file out of this directory to its place.
    pub(crate) fn publish_file(self, file: &Path, place: &Path) -> Result<()> {
        let sealed = fs::set_permissions(file, Permissions::from_mode(0o444));
        let synced = sealed.and_then(|()| File::open(file)).and_then(|opened| opened.sync_all());
        synced.map_err(|e| Error::io("write", file, e))?;
        fs::rename(file, place).map_err(|e| Error::io("create", place, e))?;
        sync_directory(place.parent().unwrap_or(Path::new("/")))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        if let Err(error) = remove(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "could not remove an unfinished image build");
        }
    }
}

fn remove(path: &Path) -> std::io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

fn make_directory(path: &Path, mode: u32) -> Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(path).map_err(|e| Error::io("create", path, e))
}

/// Makes a rename in `directory` survive a power cut.
pub(crate) fn sync_directory(directory: &Path) -> Result<()> {
    let synced = File::open(directory).and_then(|opened| opened.sync_all());
    synced.map_err(|e| Error::io("write", directory, e))
}
