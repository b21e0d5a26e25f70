//! The mounts of a container, in the order in which the host names them.

use std::ffi::CString;
use std::fs::{self, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;

use beta9_wire::{GuestDevice, GuestMount, MountSource};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, chownat, fstat, mknodat, openat2, symlinkat,
};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind};
use rustix::process::{Gid, Uid};

use super::paths::{self, Place};
use super::{Orders, tree};
use crate::failure::{Context, Failure, Result};

/// The file systems a container may ask for: those of which it gets an instance, or a view, of its own.
const FILE_SYSTEMS: [&str; 6] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup2"];

/// What a mount may ask for beside its source. The rest of `MS_*` is about other operations than mounting.
const FLAGS: MountFlags = MountFlags::RDONLY
    .union(MountFlags::NOSUID)
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC)
    .union(MountFlags::SYNCHRONOUS)
    .union(MountFlags::DIRSYNC)
    .union(MountFlags::NOATIME)
    .union(MountFlags::NODIRATIME)
    .union(MountFlags::RELATIME)
    .union(MountFlags::STRICTATIME)
    .union(MountFlags::NOSYMFOLLOW);

/// Device nodes of every container: name, major, minor (OCI runtime spec, "Default Devices").
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Links of every container ("Default Devices" and "/dev symbolic links").
const LINKS: [(&str, &str); 5] = [
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Mounts everything that the container has beside its root.
pub(super) fn mount_all(root: &OwnedFd, orders: &Orders) -> Result<()> {
    let mut own_files = OwnFiles::default();
    for wanted in &orders.spec.mounts {
        if wanted.target.split('/').all(|part| part.is_empty() || part == ".") {
            return Err(Failure::refused("a mount over the container's root"));
        }
        match &wanted.source {
            MountSource::Filesystem(kind) => file_system(root, wanted, kind)?,
            MountSource::SharedDirectory(export) => {
                share(root, orders, wanted, &export.to_string(), Place::Directory)?;
            }
            MountSource::OwnFile(content) => {
                own_file(root, wanted, &mut own_files, content)?;
            }
            MountSource::SharedFile(export, name) => {
                if name.is_empty() || name.contains('/') || name == "." || name == ".." {
                    return Err(Failure::refused(format!("a shared file named {name:?}")));
                }
                share(root, orders, wanted, &format!("{export}/{name}"), Place::File)?;
            }
        }
    }
    orders.spec.devices.iter().try_for_each(|device| make_device(root, device))
}

/// The files of the container's own so far, on a file system that nobody else sees.
#[derive(Default)]
struct OwnFiles(usize);

impl OwnFiles {
    const PLACE: &str = "/run/beta9-files";

    /// Makes the next one and opens it by path alone.
    fn make(&mut self, content: &[u8]) -> Result<OwnedFd> {
        if self.0 == 0 {
            fs::create_dir_all(Self::PLACE).context(|| "make a place for files")?;
            let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            mount("tmpfs", Self::PLACE, "tmpfs", flags, c"size=1m,mode=0755")
                .context(|| "mount a place for files")?;
        }
        self.0 += 1;
        let path = format!("{}/{}", Self::PLACE, self.0);
        fs::write(&path, content).context(|| format!("write {path}"))?;
        // The mask of modes is empty here.
        fs::set_permissions(&path, Permissions::from_mode(0o644)).context(|| format!("change {path}"))?;
        rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .context(|| format!("open {path}"))
    }
}

fn own_file(root: &OwnedFd, wanted: &GuestMount, files: &mut OwnFiles, content: &[u8]) -> Result<()> {
    let source = files.make(content)?;
    let target = target(root, wanted, Place::File)?;
    mount_bind(paths::name_of(&source), paths::name_of(&target))
        .context(|| format!("mount a file on {}", wanted.target))?;
    let mounted = self::target(root, wanted, Place::File)?;
    let flags = flags_of(wanted) | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    tree::remount(&mounted, flags).context(|| format!("set the options of {}", wanted.target))
}

/// Makes a node, unless there is one.
fn make_device(root: &OwnedFd, device: &GuestDevice) -> Result<()> {
    let GuestDevice { path, number: (major, minor), mode, owner: (uid, gid) } = device;
    let what = || format!("make {path}");
    let (parent, name) = path.rsplit_once('/').unwrap_or(("/", path));
    let directory = paths::make_directories(root, parent).context(what)?;
    let mode = Mode::from_raw_mode(mode & 0o777);
    match mknodat(&directory, name, FileType::CharacterDevice, mode, rustix::fs::makedev(*major, *minor)) {
        Err(Errno::EXIST) => Ok(()),
        made => {
            made.context(what)?;
            let owner = (Uid::from_raw(*uid), Gid::from_raw(*gid));
            chownat(&directory, name, Some(owner.0), Some(owner.1), AtFlags::SYMLINK_NOFOLLOW).context(what)
        }
    }
}

fn flags_of(wanted: &GuestMount) -> MountFlags {
    MountFlags::from_bits_truncate(wanted.flags as u32) & FLAGS
}

fn target(root: &OwnedFd, wanted: &GuestMount, place: Place) -> Result<OwnedFd> {
    paths::open_or_make(root, &wanted.target, place).context(|| format!("find or make {}", wanted.target))
}

fn file_system(root: &OwnedFd, wanted: &GuestMount, kind: &str) -> Result<()> {
    if !FILE_SYSTEMS.contains(&kind) {
        return Err(Failure::refused(format!("a mount of the kind {kind:?} on {}", wanted.target)));
    }
    let target = target(root, wanted, Place::Directory)?;
    let data = CString::new(wanted.data.as_str()).context(|| format!("options of {}", wanted.target))?;
    let devices = kind == "tmpfs" && wanted.target.trim_end_matches('/') == "/dev";
    // The device nodes have to be made first.
    let flags = if devices { flags_of(wanted) - MountFlags::RDONLY } else { flags_of(wanted) };
    mount(kind, paths::name_of(&target), kind, flags, data.as_c_str())
        .context(|| format!("mount {kind} on {}", wanted.target))?;
    if devices {
        let directory = self::target(root, wanted, Place::Directory)?;
        fill_dev(&directory)?;
        if flags != flags_of(wanted) {
            tree::remount(&directory, flags_of(wanted)).context(|| "make /dev read-only")?;
        }
    }
    Ok(())
}

fn fill_dev(directory: &OwnedFd) -> Result<()> {
    for (name, major, minor) in DEVICES {
        let mode = Mode::from_raw_mode(0o666);
        mknodat(directory, name, FileType::CharacterDevice, mode, rustix::fs::makedev(major, minor))
            .context(|| format!("make /dev/{name}"))?;
    }
    for (name, to) in LINKS {
        symlinkat(to, directory, name).context(|| format!("make /dev/{name}"))?;
    }
    Ok(())
}

/// Shows what the host exports at `source` of the share.
fn share(root: &OwnedFd, orders: &Orders, wanted: &GuestMount, source: &str, place: Place) -> Result<()> {
    let share = orders.share.as_ref().ok_or_else(|| Failure::refused("a shared mount without a share"))?;
    let share = tree::open_root(share)?;
    // The host's file server resolves links itself; one that it hands out is not to lead anywhere.
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    let source = openat2(&share, source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
        .context(|| format!("find what the host shares for {}", wanted.target))?;
    let kind = fstat(&source).context(|| format!("look at the share for {}", wanted.target))?;
    let is_directory = FileType::from_raw_mode(kind.st_mode).is_dir();
    if is_directory != (place == Place::Directory) {
        return Err(Failure::refused(format!(
            "a share of another kind than announced for {}",
            wanted.target
        )));
    }
    let target = target(root, wanted, place)?;
    mount_bind(paths::name_of(&source), paths::name_of(&target))
        .context(|| format!("mount the share on {}", wanted.target))?;
    let mounted = self::target(root, wanted, place)?;
    tree::remount(&mounted, flags_of(wanted) | MountFlags::NODEV)
        .context(|| format!("set the options of {}", wanted.target))
}
