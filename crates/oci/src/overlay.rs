//! A container's files where no process of it shows them: its directory, with its volumes mounted over it.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use beta9_runtime::{Error, ErrorKind, Result};
use beta9_types::{BindMount, MountAccess};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount_bind_recursive, mount_remount};

/// Mounts host paths over a container's directory, in this thread's mount namespace. The container may have made any
/// link, so places are found by the kernel below its root; one that is missing, as before the first start, is left out.
pub fn mount_volumes(root: &Path, mounts: &[BindMount]) -> Result<()> {
    let directory = File::open(root)
        .map_err(|e| Error::caused(ErrorKind::Failed, format!("open {}", root.display()), e))?;
    for mount in mounts {
        let failed = |e: Errno| {
            let text = format!("show {} at {}", mount.source.display(), mount.target.display());
            Error::caused(ErrorKind::Failed, text, std::io::Error::from(e))
        };
        let target = match place(&directory, &mount.target) {
            Ok(target) => target,
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(failed(error)),
        };
        let name = format!("/proc/self/fd/{}", target.as_raw_fd());
        mount_bind_recursive(&mount.source, &name).map_err(failed)?;
        if mount.access == MountAccess::ReadOnly {
            let mounted = place(&directory, &mount.target).map_err(failed)?;
            let name = format!("/proc/self/fd/{}", mounted.as_raw_fd());
            mount_remount(&name, MountFlags::BIND | MountFlags::RDONLY, c"").map_err(failed)?;
        }
    }
    Ok(())
}

fn place(root: &File, path: &Path) -> std::result::Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
}
