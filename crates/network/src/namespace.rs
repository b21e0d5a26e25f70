//! Network namespaces with a name in `/run/netns`, where `ip netns` finds them, too.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use beta9_sys::namespaces::{current_network, enter_network, enter_new_network, on_own_thread};
use beta9_sys::netlink::Socket;
use beta9_types::ContainerId;
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, UnmountFlags, mount_bind, mount_bind_recursive, mount_change, unmount,
};

use crate::error::{Context, Error, ErrorKind, Result};
use crate::files;

const NAMED: &str = "/run/netns";
/// `NSFS_MAGIC` of the kernel's `include/uapi/linux/magic.h`.
const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;
/// What the kernel shows in the first network namespace and, with few exceptions, nowhere else.
const HOST_SETTING: &str = "/proc/sys/net/core/rmem_default";

/// An open namespace and the way to change it.
pub(crate) struct Namespace {
    pub(crate) fd: OwnedFd,
    pub(crate) socket: Socket,
}

/// Where the namespace of a container has its name.
pub(crate) fn path_of(id: &ContainerId) -> PathBuf {
    Path::new(NAMED).join(id.as_str())
}

impl Namespace {
    /// Makes one with its loopback interface up and gives it its name. The thread must be in the host's mount namespace.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        make_place(Path::new(NAMED))?;
        // What somebody left under this name is not there any more for anybody.
        remove(path)?;
        File::create_new(path).map_err(|e| Error::file("create", path, e))?;
        let made = on_own_thread(None, || {
            enter_new_network()?;
            let mut socket = Socket::open()?;
            let loopback = socket.link("lo")?.map(|link| link.index);
            // A host may have turned IPv6 off for interfaces to come; ours is asked for. Missing is fine.
            let _ = fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "0");
            // Routers are not believed: the routes are ours.
            let _ = fs::write("/proc/sys/net/ipv6/conf/default/accept_ra", "0");
            if let Some(index) = loopback {
                socket.set_up(index)?;
            }
            mount_bind("/proc/thread-self/ns/net", path)
                .map_err(|e| beta9_sys::Error::at("name a network namespace", path, e))?;
            Ok(Self { fd: current_network()?, socket })
        });
        made.while_doing(|| "make the container's network namespace".to_owned())
    }

    /// Opens one that exists.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::file("open network namespace", path, e))?;
        if rustix::fs::fstatfs(&file).map_or(true, |fs| fs.f_type != NSFS_MAGIC) {
            let text = format!(
                "{} is not a network namespace: name one, as `ip netns add` makes it",
                path.display()
            );
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let fd = OwnedFd::from(file);
        let socket = inside(fd.as_fd(), Socket::open)?;
        Ok(Self { fd, socket })
    }
}

/// Makes the directory of names as `ip netns` does: a mount of its own, which other mount namespaces see into. Made by
/// somebody else after the first name, such a mount would cover it, and the name could not be taken away any more.
fn make_place(place: &Path) -> Result<()> {
    fs::create_dir_all(place).map_err(|e| Error::file("create", place, e))?;
    // So does `ip`, lest two mounts are made one upon the other.
    let _one_at_a_time = files::lock_directory(place)?;
    let share = || mount_change(place, MountPropagationFlags::SHARED | MountPropagationFlags::REC);
    let shared = match share() {
        // It is no mount yet.
        Err(Errno::INVAL) => mount_bind_recursive(place, place).and_then(|()| share()),
        shared => shared,
    };
    shared.map_err(|e| Error::file("make a mount of", place, e))
}

/// Does something in a namespace.
pub(crate) fn inside<T: Send>(
    namespace: BorrowedFd<'_>,
    work: impl FnOnce() -> beta9_sys::Result<T> + Send,
) -> Result<T> {
    on_own_thread(None, || {
        enter_network(namespace)?;
        work()
    })
    .while_doing(|| "work in the container's network namespace".to_owned())
}

/// Makes a name that exists in the host's mount namespace usable in this one, whatever mounts do between the two.
pub(crate) fn show_here(path: &Path, namespace: &OwnedFd) -> Result<()> {
    if rustix::fs::statfs(path).is_ok_and(|fs| fs.f_type == NSFS_MAGIC) {
        return Ok(());
    }
    mount_bind(format!("/proc/self/fd/{}", namespace.as_raw_fd()), path)
        .map_err(|e| Error::file("show a network namespace at", path, e))
}

/// Takes a name away; the namespace ends with its last user. Missing is fine.
pub(crate) fn remove(path: &Path) -> Result<()> {
    /// More mounts than there can be one upon the other, unless somebody makes them all the time.
    const MOST: usize = 16;
    for _ in 0..MOST {
        match unmount(path, UnmountFlags::DETACH) {
            // There may be another below.
            Ok(()) => {}
            // Not mounted, or not there.
            Err(Errno::INVAL | Errno::NOENT) => break,
            Err(error) => return Err(Error::file("unmount", path, error)),
        }
    }
    files::remove(path)
}

/// Whether this kernel shows settings of the host in every network namespace. gVisor takes one that does for the host's own
/// and refuses to work in it.
pub fn shows_host_settings(namespace: &Path) -> bool {
    let Ok(namespace) = Namespace::open(namespace) else { return false };
    inside(namespace.fd.as_fd(), || Ok(Path::new(HOST_SETTING).exists())).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use beta9_sys::namespaces::enter_private_mounts;
    use rustix::mount::{MountFlags, mount};

    use super::*;

    #[test]
    fn a_name_can_be_taken_away_after_somebody_else_has_made_one() {
        if !rustix::process::geteuid().is_root() || Command::new("ip").arg("-V").output().is_err() {
            eprintln!("skipped: needs root and ip");
            return;
        }
        // A machine on which nobody has made a name yet.
        let left = on_own_thread(None, || {
            enter_private_mounts()?;
            mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), None).unwrap();
            let path = Path::new(NAMED).join("b9-first");
            let namespace = Namespace::create(&path).unwrap();
            assert!(Command::new("ip").args(["netns", "add", "second"]).status().unwrap().success());
            let found = Namespace::open(&path).is_ok();
            remove(&path).unwrap();
            drop(namespace);
            let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
            Ok((found, path.exists(), mounts.contains("b9-first")))
        });
        assert_eq!(left.unwrap(), (true, false, false));
    }
}
