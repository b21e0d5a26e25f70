//! Moving this process into namespaces of its own.

use std::io;

use rustix::mount::{MountPropagationFlags, mount_change};

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
}
