//! The files of a container that does not run.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Duration;

use beta9_archive::{Links, Owner, Tree, Unpacking, pack, unpack};
use beta9_sys::namespaces::enter_private_mounts;
use beta9_types::{StorageMedium, chain};

use crate::directory::ContainerDirectory;
use crate::lock::lock_within;
use crate::operate::{Copy, Refusal};
use crate::record::{Record, RootfsSource};
use crate::rootfs;

/// How long somebody else may need who is about to be done with the container.
const PATIENCE: Duration = Duration::from_secs(12);

/// Copies files of a container that does not run, with the archive on `stream`. Its files are mounted for this thread
/// alone, so it must be one that ends with the copy. Blocks, and keeps the container from being started meanwhile.
///
/// The disk of a VM's container is read by no kernel but a guest's, so it is refused: see [`Supervisor::lender_of`].
///
/// [`Supervisor::lender_of`]: crate::Supervisor::lender_of
pub fn copy_stopped(
    directory: &ContainerDirectory,
    record: &Record,
    copy: Copy,
    stream: OwnedFd,
) -> Result<(), Refusal> {
    let RootfsSource::Tree(tree) = &record.rootfs else {
        let runtime = record.runtime;
        let text = format!(
            "files of a stopped {runtime} container are on a disk that only its VM reads: start it first"
        );
        return Err(Refusal::new(text));
    };
    if record.request.options.files.storage.medium == StorageMedium::Memory && matches!(copy, Copy::In(_)) {
        return Err(Refusal::new("what it writes is in its memory, which it does not have: start it first"));
    }
    let failed = |error: &dyn std::error::Error| Refusal::new(chain(error));
    // A supervisor whose container is over may not have ended yet.
    let lock = lock_within(directory, PATIENCE).map_err(|e| failed(&e))?;
    let Some(_lock) = lock else {
        return Err(Refusal::new("it is being started or cleaned up: try again"));
    };
    enter_private_mounts().map_err(|e| failed(&e))?;
    let root = rootfs::stopped(directory, tree, record)?;
    let copied =
        beta9_oci::mount_volumes(&root, &record.request.mounts).map_err(Refusal::from).and_then(|()| {
            let tree = Tree::open(&root, Links::InRoot)?;
            match copy {
                Copy::Out(request) => pack(&tree, &request, File::from(stream))?,
                Copy::In(request) => {
                    let owner = if request.keep_owner { Owner::Kept } else { Owner::Ids { uid: 0, gid: 0 } };
                    let (path, placement) = (request.path, request.placement);
                    unpack(&tree, &Unpacking { path, placement, owner, name: None }, File::from(stream))?;
                }
            }
            Ok(())
        });
    rootfs::release(directory);
    copied
}

impl From<beta9_archive::Error> for Refusal {
    fn from(error: beta9_archive::Error) -> Self {
        Self { is_missing: error.kind() == beta9_archive::ErrorKind::NotFound, message: chain(&error) }
    }
}
