//! A container's root file system: the image's content, which is shared, under a writable layer of its own.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use beta9_image::Store;
use beta9_runtime::{Error, ErrorKind, Result, Rootfs};
use beta9_sys::reaper::Reaper;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::directory::ContainerDirectory;
use crate::record::RootfsSource;

/// Size of a VM container's writable layer. The file is sparse: it takes what is written.
const SCRATCH_BYTES: u64 = 8 << 30;

/// Puts the root file system in place. Blocks.
pub(crate) fn prepare(
    directory: &ContainerDirectory,
    source: &RootfsSource,
    reaper: &Reaper,
) -> Result<Rootfs> {
    match source {
        RootfsSource::Tree(tree) => overlay(directory, tree).map(Rootfs::Directory),
        RootfsSource::Block { image, format, store } => {
            let scratch = directory.path().join("scratch.ext4");
            // One that is started again finds what it wrote.
            if !scratch.exists() {
                Store::open(store)
                    .and_then(|store| {
                        store.with_reaper(reaper.clone()).create_scratch(&scratch, SCRATCH_BYTES)
                    })
                    .map_err(|e| {
                        Error::caused(ErrorKind::Failed, "make the container's writable layer", e)
                    })?;
            }
            Ok(Rootfs::Block { image: image.clone(), format: format.clone(), scratch: Some(scratch) })
        }
    }
}

/// Mounts the writable layer over the image's files, in this thread's mount namespace.
pub(crate) fn overlay(directory: &ContainerDirectory, tree: &Path) -> Result<PathBuf> {
    let open = |name: &str| {
        let path = directory.path().join(name);
        fs::create_dir_all(&path)
            .and_then(|()| File::open(&path))
            .map_err(|e| Error::caused(ErrorKind::Failed, format!("create {}", path.display()), e))
    };
    let lower = File::open(tree).map_err(|e| {
        Error::caused(ErrorKind::Failed, format!("open the image's files in {}", tree.display()), e)
    })?;
    let (upper, work) = (open("upper")?, open("work")?);
    let target = directory.path().join("rootfs");
    open("rootfs")?;
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

/// Takes the mount away. The writable layer stays until the record is removed.
pub(crate) fn release(directory: &ContainerDirectory) {
    // Detached, because a process in an uninterruptible sleep could still hold it; the namespace ends with us anyway.
    let _ = unmount(directory.path().join("rootfs"), UnmountFlags::DETACH);
}
