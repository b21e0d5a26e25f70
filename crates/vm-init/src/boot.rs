//! From the kernel's initramfs to a machine in which containers can be made.
//!
//! An initramfs cannot be pivoted away from. So its mounts are moved onto a tmpfs, and that tmpfs over the root: from
//! then on a container can `pivot_root` in its own mount namespace.

use std::fs;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_move};
use rustix::process::chroot;

use crate::failure::{Context, Result};
use crate::modules::Modules;
use crate::report;
use beta9_types::chain;

/// Where a container's mounts and directories are.
pub(crate) const CONTAINERS: &str = "/run/beta9";

/// Makes the machine usable. Anything that fails here leaves nothing to run containers with.
pub(crate) fn boot() -> Result<Modules> {
    let hidden = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    file_system("devtmpfs", "/dev", MountFlags::NOSUID | MountFlags::NOEXEC, "mode=0755")?;
    file_system("proc", "/proc", hidden, "")?;
    file_system("sysfs", "/sys", hidden, "")?;
    let modules = Modules::find(Path::new("/modules"))?;
    modules.load_drivers();
    leave_initramfs()?;
    file_system("cgroup2", "/sys/fs/cgroup", hidden, "")?;
    fs::create_dir_all(CONTAINERS).context(|| format!("create {CONTAINERS}"))?;
    // Linux kills the process with the highest score first; this one is never to be it.
    fs::write("/proc/self/oom_score_adj", "-1000").context(|| "write /proc/self/oom_score_adj")?;
    // The machine is as small as its container, and yet an allocation is to succeed here as it does on a large host:
    // the container's limit is what ends a program that uses too much.
    let overcommit = "/proc/sys/vm/overcommit_memory";
    fs::write(overcommit, "1").context(|| format!("write {overcommit}"))?;
    if let Err(error) = beta9_sys::machine::loopback_up() {
        report::warn(&chain(&error));
    }
    Ok(modules)
}

fn file_system(kind: &str, target: &str, flags: MountFlags, data: &str) -> Result<()> {
    fs::create_dir_all(target).context(|| format!("create {target}"))?;
    let data = std::ffi::CString::new(data).context(|| "mount options")?;
    match mount(kind, target, kind, flags, data.as_c_str()) {
        // A kernel with CONFIG_DEVTMPFS_MOUNT has been here before.
        Err(Errno::BUSY) | Ok(()) => Ok(()),
        Err(error) => Err(error).context(|| format!("mount {kind} on {target}")),
    }
}

fn leave_initramfs() -> Result<()> {
    let root = "/newroot";
    file_system("tmpfs", root, MountFlags::NOSUID | MountFlags::NODEV, "mode=0755")?;
    for directory in ["dev", "proc", "sys"] {
        let (from, to) = (format!("/{directory}"), format!("{root}/{directory}"));
        fs::create_dir(&to).context(|| format!("create {to}"))?;
        mount_move(from.as_str(), to.as_str()).context(|| format!("move {from} to {to}"))?;
    }
    std::env::set_current_dir(root).context(|| format!("enter {root}"))?;
    mount_move(".", "/").context(|| "move the new root over the initramfs")?;
    chroot(".").context(|| "enter the new root")?;
    std::env::set_current_dir("/").context(|| "enter /")
}
