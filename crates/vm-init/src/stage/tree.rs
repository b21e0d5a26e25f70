//! The container's file tree as a whole: what is hidden and what is read-only in it, and making it `/`.

use std::os::fd::OwnedFd;
use std::path::Path;

use beta9_wire::ContainerSpec;
use rustix::fs::{FileType, Mode, OFlags, StatVfsMountFlags, fstat, fstatvfs};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change,
    mount_remount, unmount,
};
use rustix::process::{fchdir, pivot_root};

use super::paths;
use crate::failure::{Context, Result};

/// Keeps the mounts that follow out of the machine's own mount namespace.
pub(super) fn keep_private() -> Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context(|| "keep mounts private")
}

/// Opens a directory of the machine.
pub(super) fn open_root(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).context(|| format!("open {}", path.display()))
}

/// Hides and write-protects what the spec says. After all mounts, because those may be what is to be protected.
pub(super) fn protect(root: &OwnedFd, spec: &ContainerSpec) -> Result<()> {
    for path in &spec.readonly_paths {
        make_read_only(root, path).context(|| format!("make {path} read-only"))?;
    }
    for path in &spec.masked_paths {
        mask(root, path).context(|| format!("hide {path}"))?;
    }
    if spec.readonly_root {
        remount(root, MountFlags::RDONLY | flags_of(root))
            .context(|| "make the root file system read-only")?;
    }
    Ok(())
}

fn make_read_only(root: &OwnedFd, path: &str) -> rustix::io::Result<()> {
    let found = match paths::open(root, path) {
        // Not every kernel has every path that runtimes protect.
        Err(Errno::NOENT) => return Ok(()),
        found => found?,
    };
    bind(&found, &found)?;
    let mounted = paths::open(root, path)?;
    remount(&mounted, MountFlags::RDONLY | flags_of(&mounted))
}

fn mask(root: &OwnedFd, path: &str) -> rustix::io::Result<()> {
    let found = match paths::open(root, path) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        found => found?,
    };
    if FileType::from_raw_mode(fstat(&found)?.st_mode).is_dir() {
        let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("tmpfs", paths::name_of(&found), "tmpfs", flags, c"size=0k,mode=0555")
    } else {
        let null = rustix::fs::open("/dev/null", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        bind(&null, &found)
    }
}

/// The options of a mount, for a remount that is to keep them.
fn flags_of(mounted: &OwnedFd) -> MountFlags {
    let Ok(status) = fstatvfs(mounted) else { return MountFlags::empty() };
    let pairs = [
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ];
    let set = pairs.into_iter().filter(|(seen, _)| status.f_flag.contains(*seen));
    set.map(|(_, flag)| flag).collect()
}

/// Mounts what `source` is on `target`, with the mounts below it.
fn bind(source: &OwnedFd, target: &OwnedFd) -> rustix::io::Result<()> {
    mount_bind_recursive(paths::name_of(source), paths::name_of(target))
}

/// Changes the options of the mount that a descriptor is in.
pub(super) fn remount(mounted: &OwnedFd, flags: MountFlags) -> rustix::io::Result<()> {
    mount_remount(paths::name_of(mounted), flags | MountFlags::BIND, c"")
}

/// Makes the root this process's `/` and lets go of the machine's.
pub(super) fn enter(root: OwnedFd) -> Result<()> {
    fchdir(&root).context(|| "enter the container's root")?;
    // Both arguments alike stack the old root on the new one, so no directory for it is needed (pivot_root(2)).
    pivot_root(".", ".").context(|| "change the root")?;
    unmount(".", UnmountFlags::DETACH).context(|| "let go of the machine's root")?;
    std::env::set_current_dir("/").context(|| "enter /")
}
