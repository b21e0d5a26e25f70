//! Moving this process into namespaces of its own.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{Error, Result};

/// Gives this process a mount namespace of its own: mounts made here are seen nowhere else and end with it, while
/// mounts and unmounts of the host still arrive.
///
/// Only the calling thread moves, so this belongs before the first other thread is started.
pub fn enter_private_mounts() -> Result<()> {
    // SAFETY: `unshare` takes a flag word and no pointers; file descriptors are not touched by CLONE_NEWNS.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return Err(Error::new("unshare the mount namespace", io::Error::last_os_error()));
    }
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .map_err(|e| Error::at("make mounts private below", "/", e))
}

/// The mount namespace that this thread is in, to come back to.
pub fn current_mounts() -> Result<OwnedFd> {
    open("/proc/thread-self/ns/mnt")
}

/// The network namespace that this thread is in.
pub fn current_network() -> Result<OwnedFd> {
    open("/proc/thread-self/ns/net")
}

fn open(path: &str) -> Result<OwnedFd> {
    File::open(path).map(OwnedFd::from).map_err(|e| Error::at("open", path, e))
}

/// Runs `work` on a thread of its own that is in the mount namespace `mounts` first, where one is given. The namespaces
/// that the work moves it into end with the thread.
pub fn on_own_thread<T: Send>(
    mounts: Option<BorrowedFd<'_>>,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    let enter_and_work = || {
        if let Some(mounts) = mounts {
            // A thread that shares its working directory with others cannot change its mount namespace.
            unshare(libc::CLONE_FS, "give a thread its own working directory")?;
            move_into_link_name_space(mounts.as_fd(), Some(LinkNameSpaceType::Mount))
                .map_err(|e| Error::new("enter a mount namespace", e))?;
        }
        work()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("namespace".to_owned())
            .spawn_scoped(scope, enter_and_work)
            .map_err(|e| Error::new("start a thread", e))?;
        let panicked = || Error::new("work in a namespace", io::Error::other("the thread panicked"));
        thread.join().unwrap_or_else(|_| Err(panicked()))
    })
}

/// Moves this thread into a new network namespace.
pub fn enter_new_network() -> Result<()> {
    unshare(libc::CLONE_NEWNET, "make a network namespace")
}

/// Moves this thread into a network namespace.
pub fn enter_network(namespace: BorrowedFd<'_>) -> Result<()> {
    move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))
        .map_err(|e| Error::new("enter a network namespace", e))
}

fn unshare(flags: libc::c_int, operation: &'static str) -> Result<()> {
    // SAFETY: `unshare` takes a flag word and no pointers; neither flag touches memory or descriptors.
    match unsafe { libc::unshare(flags) } {
        0 => Ok(()),
        _ => Err(Error::new(operation, io::Error::last_os_error())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_made_inside_are_not_seen_outside() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let inside = std::thread::scope(|scope| {
            let path = directory.path();
            scope
                .spawn(move || {
                    enter_private_mounts().unwrap();
                    rustix::mount::mount("tmpfs", path, "tmpfs", rustix::mount::MountFlags::empty(), None)
                        .unwrap();
                    std::fs::write(path.join("x"), "").unwrap();
                    path.join("x").exists()
                })
                .join()
                .unwrap()
        });
        assert!(inside);
        assert!(!directory.path().join("x").exists());
    }

    #[test]
    fn a_thread_works_elsewhere_and_this_one_stays() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let identity = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
        let (mounts, before) = (current_mounts().unwrap(), current_network().unwrap());
        let inside = on_own_thread(Some(mounts.as_fd()), || {
            enter_new_network()?;
            current_network()
        });
        let inside = inside.unwrap();
        assert_ne!(identity(&inside), identity(&before));
        assert_eq!(identity(&current_network().unwrap()), identity(&before));
        let again = on_own_thread(None, || {
            enter_network(inside.as_fd())?;
            current_network()
        });
        assert_eq!(identity(&again.unwrap()), identity(&inside));
    }
}
