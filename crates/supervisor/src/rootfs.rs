//! A container's root file system: the image's content, which is shared, under a writable layer of its own.
//!
//! ```text
//!                      on disk                        on disk, limited          in memory
//! a directory's        upper/ work/                   layer.ext4, by loop(4)    a tmpfs
//! a VM's               –                              scratch.ext4, a drive     the guest's tmpfs
//! ```

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use beta9_image::Store;
use beta9_runtime::{Error, ErrorKind, Result, Rootfs};
use beta9_sys::loop_device::LoopDevice;
use beta9_sys::reaper::Reaper;
use beta9_types::{StorageMedium, StorageOptions};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::directory::ContainerDirectory;
use crate::record::{Record, RootfsSource};

/// Size of a VM container's writable layer where nobody chose one. The file is sparse: it takes what is written.
const SCRATCH_BYTES: u64 = 8 << 30;
/// The writable layer of a VM's container, a drive.
const SCRATCH: &str = "scratch.ext4";
/// The writable layer of another container that has a limit.
const LIMITED: &str = "layer.ext4";
/// Where a writable layer is mounted that is not a directory of the host's.
const LAYER: &str = "layer";

/// What a container's writable layer is to be: its own choice, else its pool's.
fn storage(record: &Record) -> StorageOptions {
    let asked = record.request.options.files.storage;
    let of_pool = record.settings.storage_size.filter(|_| asked.medium == StorageMedium::Disk);
    StorageOptions { bytes: asked.bytes.or(of_pool), ..asked }
}

/// Puts the root file system in place. Blocks.
pub(crate) fn prepare(directory: &ContainerDirectory, record: &Record, reaper: &Reaper) -> Result<Rootfs> {
    let storage = storage(record);
    match &record.rootfs {
        RootfsSource::Tree(tree) => {
            if let (StorageMedium::Disk, Some(bytes)) = (storage.medium, storage.bytes) {
                let image_store = directory.root().ok_or_else(|| {
                    Error::new(ErrorKind::Failed, "find the worker's root: the container is not below one")
                })?;
                disk(directory, LIMITED, image_store, bytes, reaper)?;
            }
            overlay(directory, tree, storage).map(Rootfs::Directory)
        }
        RootfsSource::Block { image, format, store } => {
            let scratch = match storage.medium {
                StorageMedium::Memory => None,
                StorageMedium::Disk => {
                    let bytes = storage.bytes.unwrap_or(SCRATCH_BYTES);
                    Some(disk(directory, SCRATCH, store, bytes, reaper)?)
                }
            };
            let (image, format) = (image.clone(), format.clone());
            Ok(Rootfs::Block { image, format, scratch, memory_layer_bytes: storage.bytes })
        }
    }
}

/// An empty ext4 file system, unless the container is started again: then it finds what it wrote.
fn disk(
    directory: &ContainerDirectory,
    name: &str,
    store: &Path,
    bytes: u64,
    reaper: &Reaper,
) -> Result<PathBuf> {
    let path = directory.path().join(name);
    if !path.exists() {
        // By another name first: half a disk that a crash leaves must not be taken for one.
        let making = directory.path().join(format!("{name}.new"));
        let _ = fs::remove_file(&making);
        Store::open(store)
            .and_then(|store| store.with_reaper(reaper.clone()).create_scratch(&making, bytes))
            .map_err(|e| Error::caused(ErrorKind::Failed, "make the container's writable layer", e))?;
        fs::rename(&making, &path)
            .map_err(|e| Error::caused(ErrorKind::Failed, format!("create {}", path.display()), e))?;
    }
    Ok(path)
}

/// The writable layer's directory, mounted for this thread's mount namespace where it is not the container's own.
fn layer(directory: &ContainerDirectory, storage: StorageOptions) -> Result<PathBuf> {
    let place = directory.path().join(LAYER);
    let failed = |what: &str, e: std::io::Error| Error::caused(ErrorKind::Failed, what.to_owned(), e);
    let flags = MountFlags::NODEV | MountFlags::NOATIME;
    match (storage.medium, storage.bytes) {
        (StorageMedium::Disk, None) => return Ok(directory.path().to_owned()),
        (StorageMedium::Disk, Some(_)) => {
            make(&place)?;
            let device = LoopDevice::attach(&directory.path().join(LIMITED)).map_err(|e| {
                let text = "limit the container's writable layer: --storage-opt size= needs loop devices here; leave it \
                            out, or run in a microVM";
                Error::caused(ErrorKind::Unsupported, text, e)
            })?;
            mount(device.path(), &place, "ext4", flags, None)
                .map_err(|e| failed("mount the container's writable layer", e.into()))?;
        }
        (StorageMedium::Memory, bytes) => {
            make(&place)?;
            let options = bytes.map_or_else(String::new, |bytes| format!("size={bytes},")) + "mode=0700";
            let options = CString::new(options).map_err(|e| failed("mount options", e.into()))?;
            mount("tmpfs", &place, "tmpfs", flags, options.as_c_str())
                .map_err(|e| failed("mount the container's writable layer", e.into()))?;
        }
    }
    Ok(place)
}

fn make(path: &Path) -> Result<()> {
    fs::create_dir_all(path)
        .map_err(|e| Error::caused(ErrorKind::Failed, format!("create {}", path.display()), e))
}

/// Mounts the root file system of a container that does not run, in this thread's mount namespace.
pub(crate) fn stopped(directory: &ContainerDirectory, tree: &Path, record: &Record) -> Result<PathBuf> {
    let storage = storage(record);
    if storage.medium == StorageMedium::Disk
        && storage.bytes.is_some()
        && !directory.path().join(LIMITED).exists()
    {
        let text = "its writable layer is made by its first start: start it first";
        return Err(Error::new(ErrorKind::Failed, text));
    }
    overlay(directory, tree, storage)
}

/// Mounts the writable layer over the image's files, in this thread's mount namespace.
fn overlay(directory: &ContainerDirectory, tree: &Path, storage: StorageOptions) -> Result<PathBuf> {
    let layer = layer(directory, storage)?;
    let open = |path: &Path| {
        fs::create_dir_all(path)
            .and_then(|()| File::open(path))
            .map_err(|e| Error::caused(ErrorKind::Failed, format!("create {}", path.display()), e))
    };
    let lower = File::open(tree).map_err(|e| {
        Error::caused(ErrorKind::Failed, format!("open the image's files in {}", tree.display()), e)
    })?;
    let (upper, work) = (open(&layer.join("upper"))?, open(&layer.join("work"))?);
    let target = directory.path().join("rootfs");
    open(&target)?;
    // By descriptor, so that a comma or colon in the worker's root cannot change the options.
    let options = format!(
        "lowerdir=/proc/self/fd/{},upperdir=/proc/self/fd/{},workdir=/proc/self/fd/{}",
        lower.as_raw_fd(),
        upper.as_raw_fd(),
        work.as_raw_fd()
    );
    let options = CString::new(options).map_err(|e| Error::caused(ErrorKind::Failed, "mount options", e))?;
    // The mount lives in the supervisor's own mount namespace and cannot outlive the container.
    mount("overlay", &target, "overlay", MountFlags::empty(), options.as_c_str()).map_err(|e| {
        let text = format!(
            "mount an overlay at {}; its file system must be able to hold an upper layer",
            target.display()
        );
        Error::caused(ErrorKind::Failed, text, std::io::Error::from(e))
    })?;
    Ok(target)
}

/// Takes the mounts away. What is on disk stays until the record is removed.
pub(crate) fn release(directory: &ContainerDirectory) {
    // Detached, because a process in an uninterruptible sleep could still hold it; the namespace ends with us anyway.
    for name in ["rootfs", LAYER] {
        let _ = unmount(directory.path().join(name), UnmountFlags::DETACH);
    }
}
