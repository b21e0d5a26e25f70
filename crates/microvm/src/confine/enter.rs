//! The confined program's process, from its arguments to the program.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use beta9_runtime::{Error, ErrorKind, Result};
use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, Uid, chown, makedev, mknodat};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, mount_remount, unmount,
};
use rustix::process::{
    Pid, Resource, Rlimit, Signal, chdir, getppid, pivot_root, set_parent_process_death_signal, setrlimit,
};
use rustix::thread::{
    CapabilitySet, clear_ambient_capability_set, remove_capability_from_bounding_set, set_no_new_privs,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::{Confinement, Device, Limits, Rights, Root, Shown, WORKPLACE, system_calls};

/// Becomes a program of a VM: the body of the program's hidden `confine` subcommand. `args` are those after it.
/// Returns only if that failed.
///
/// It must be started in a mount and a network namespace of its own, with one thread, and gives up if it was not.
pub fn enter(mut args: impl Iterator<Item = OsString>) -> Result<Infallible> {
    let usage = || Error::new(ErrorKind::Failed, "usage: confine CONFINEMENT, as the supervisor writes it");
    let text = args.next().and_then(|text| text.into_string().ok()).ok_or_else(usage)?;
    let confinement: Confinement = serde_json::from_str(&text)
        .map_err(|e| Error::caused(ErrorKind::Failed, "read the confinement", e))?;
    let Confinement { root, shown, program, arguments } = confinement;
    crate::share::check_namespaces()?;
    let parent = getppid();
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .map_err(|e| step("separate the mounts", e))?;
    // Opened before anything is mounted, so that no mount below hides one of them.
    let opened = shown.iter().map(|shown| open(&shown.source)).collect::<Result<Vec<_>>>()?;
    match &root {
        Root::Existing(at) => {
            for (shown, file) in shown.iter().zip(opened) {
                show(at, shown, &file)?;
            }
        }
        Root::New { at, user, devices, limits } => {
            mount("tmpfs", at, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=755,size=1m"))
                .map_err(|e| step("make the root", e))?;
            for (shown, file) in shown.iter().zip(opened) {
                show(at, shown, &file)?;
            }
            make_devices(at, devices, *user)?;
            mount_remount(
                at,
                MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV,
                "",
            )
            .map_err(|e| step("make the root read-only", e))?;
            change_root(at)?;
            give_up_rights(*user, *limits, parent)?;
            chdir(WORKPLACE).map_err(|e| step("enter the workplace", e))?;
        }
    }
    let error = Command::new(&program).args(&arguments).env_clear().exec();
    let text = format!("execute {}, in the root that was made for it", program.display());
    Err(Error::caused(ErrorKind::Failed, text, error))
}

fn step(what: &str, error: Errno) -> Error {
    Error::caused(ErrorKind::Failed, format!("confine a program: {what}"), error)
}

fn open(path: &Path) -> Result<OwnedFd> {
    // What is shown is named by the supervisor; its links are the host's own.
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| crate::failed("open", path, e.into()))
}

/// Mounts `file` at its place below `root`.
fn show(root: &Path, shown: &Shown, file: &OwnedFd) -> Result<()> {
    let target = root.join(&shown.target);
    let failed = |e: Errno| crate::failed("show", &shown.source, e.into());
    let make = |path: &Path| {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o755).create(path).map_err(|e| crate::failed("create", path, e))
    };
    let stat = rustix::fs::fstat(file).map_err(failed)?;
    if FileType::from_raw_mode(stat.st_mode).is_dir() {
        make(&target)?;
    } else {
        target.parent().map_or(Ok(()), make)?;
        match File::create_new(&target) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(crate::failed("create", &target, e));
            }
            _ => {}
        }
    }
    let source = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    mount_bind(&source, &target).map_err(failed)?;
    let mut flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV;
    flags |= match shown.rights {
        Rights::Read => MountFlags::RDONLY | MountFlags::NOEXEC,
        Rights::Execute => MountFlags::RDONLY,
        Rights::Write => MountFlags::NOEXEC,
    };
    mount_remount(&target, flags, "").map_err(failed)
}

/// A file system of its own, because the root allows no devices.
fn make_devices(root: &Path, devices: &[Device], user: u32) -> Result<()> {
    let directory = root.join("dev");
    fs::create_dir(&directory).map_err(|e| crate::failed("create", &directory, e))?;
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount("tmpfs", &directory, "tmpfs", flags, Some(c"mode=755,size=64k"))
        .map_err(|e| step("make /dev", e))?;
    for device in devices {
        // Numbers: the kernel's Documentation/admin-guide/devices.txt.
        let (name, major, minor) = match device {
            Device::Null => ("null", 1, 3),
            Device::Urandom => ("urandom", 1, 9),
            Device::Kvm => ("kvm", 10, 232),
            Device::Tun => ("net/tun", 10, 200),
        };
        let path = directory.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|e| crate::failed("create", parent, e))?;
        }
        mknodat(CWD, &path, FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, makedev(major, minor))
            .map_err(|e| crate::failed("make device", &path, e.into()))?;
        let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
        chown(&path, Some(uid), Some(gid)).map_err(|e| crate::failed("hand over", &path, e.into()))?;
    }
    let flags = MountFlags::BIND | MountFlags::RDONLY | flags;
    mount_remount(&directory, flags, "").map_err(|e| step("make /dev read-only", e))
}

/// The old root is stacked under the new one and then let go.
fn change_root(root: &Path) -> Result<()> {
    chdir(root).map_err(|e| step("enter the root", e))?;
    pivot_root(".", ".").map_err(|e| step("change the root", e))?;
    unmount(".", UnmountFlags::DETACH).map_err(|e| step("let go of the old root", e))?;
    chdir("/").map_err(|e| step("enter the root", e))
}

/// Afterwards the process is the VM's user, for good. With one thread a thread's ids are the process's.
fn give_up_rights(user: u32, limits: Limits, parent: Option<Pid>) -> Result<()> {
    let limit = |resource, value| {
        let maximum = rustix::process::getrlimit(resource).maximum;
        // A limit that is lower already may not be raised, and need not.
        let value = Some(maximum.map_or(value, |maximum: u64| maximum.min(value)));
        setrlimit(resource, Rlimit { current: value, maximum: value })
    };
    limit(Resource::Core, 0).map_err(|e| step("forbid core files", e))?;
    limit(Resource::Nofile, limits.files).map_err(|e| step("limit open files", e))?;
    limit(Resource::Fsize, limits.file_bytes).map_err(|e| step("limit the size of files", e))?;
    set_no_new_privs(true).map_err(|e| step("forbid new privileges", e))?;
    for capability in CapabilitySet::all().iter() {
        // The kernel does not know every one that this library does.
        let _ = remove_capability_from_bounding_set(capability);
    }
    clear_ambient_capability_set().map_err(|e| step("drop ambient capabilities", e))?;
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    set_thread_groups(&[]).map_err(|e| step("leave the groups", e))?;
    set_thread_res_gid(gid, gid, gid).map_err(|e| step("change the group", e))?;
    // Leaving user 0 drops the capabilities, capabilities(7).
    set_thread_res_uid(uid, uid, uid).map_err(|e| step("change the user", e))?;
    // Only now: the kernel forgets it when the user changes.
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(|e| step("die with the parent", e))?;
    if getppid() != parent {
        return Err(Error::new(ErrorKind::Failed, "the supervisor ended while a program was being confined"));
    }
    system_calls::forbid()
}
