//! The one directory that holds everything of a VM.
//!
//! ```text
//! <root>/<container id>/           root's alone
//!   firecracker.log, console.log…  what the VM's programs said
//!   user                           the number of the VM's user
//!   run/                           QEMU's workplace: its sockets; the VM's user's
//!   firecracker/<VM id>/root/run/  Firecracker's, in its jail
//! ```
//!
//! An engine that is not confined works in the directory itself.

use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind as IoErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use beta9_runtime::Result;
use beta9_types::ContainerId;

use super::user::{VmUser, hand_over};
use crate::failed;

/// `<root>/<container id>/`, open.
///
/// Socket addresses hold 108 bytes, and a root can be any path. So nobody names a socket by its whole path: the
/// engine runs inside its workplace and uses relative names, and this process goes through the open directory
/// ([`VmDirectory::reach`]).
#[derive(Debug, Clone)]
pub(crate) struct VmDirectory {
    path: PathBuf,
    open: Arc<OwnedFd>,
    workplace: Workplace,
}

/// Where the engine's sockets and pipes are.
#[derive(Debug, Clone)]
struct Workplace {
    path: PathBuf,
    open: Arc<OwnedFd>,
    /// Whose it is; root's where absent.
    user: Option<VmUser>,
}

/// Files that tell why a start failed; they outlive it.
const KEPT: [&str; 5] = ["firecracker.log", "qemu.log", "vsock.log", "console.log", "share.log"];
/// Says that the container's process was executed, so what came later was not a failed start.
const STARTED: &str = "started";

impl VmDirectory {
    pub(crate) fn of(root: &Path, id: &ContainerId) -> PathBuf {
        root.join(id.as_str())
    }

    /// Makes it, empty and for root alone; what an older VM of the same id left goes away.
    pub(crate) fn create(root: &Path, id: &ContainerId) -> Result<Self> {
        let path = Self::of(root, id);
        DirBuilder::new().recursive(true).mode(0o711).create(root).map_err(|e| failed("create", root, e))?;
        remove(&path)?;
        DirBuilder::new().mode(0o700).create(&path).map_err(|e| failed("create", &path, e))?;
        let open = open(&path)?;
        let workplace = Workplace { path: path.clone(), open: Arc::clone(&open), user: None };
        Ok(Self { path, open, workplace })
    }

    /// Makes a workplace at `inside` the directory, for `user` alone.
    pub(crate) fn with_workplace(self, inside: &Path, user: VmUser) -> Result<Self> {
        let path = self.path.join(inside);
        // Whoever is confined below resolves no path from outside, so the way there is root's alone.
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(|e| failed("create", &path, e))?;
        hand_over(&path, user)?;
        let workplace = Workplace { open: open(&path)?, path, user: Some(user) };
        Ok(Self { workplace, ..self })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of the engine's sockets.
    pub(crate) fn workplace(&self) -> &Path {
        &self.workplace.path
    }

    /// Whom the VM's programs run as; root where absent.
    pub(crate) fn user(&self) -> Option<VmUser> {
        self.workplace.user
    }

    /// A short path to `name` in the workplace, valid in this process as long as `self` lives.
    pub(crate) fn reach(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.workplace.open.as_raw_fd()))
    }

    /// Gives what is called `name` in the workplace to the VM's user.
    pub(crate) fn hand_over(&self, name: &str) -> Result<()> {
        self.user().map_or(Ok(()), |user| hand_over(&self.reach(name), user))
    }

    /// Creates or empties a file that no program of the VM reaches.
    pub(crate) fn file(&self, name: &str) -> Result<File> {
        let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", self.open.as_raw_fd()));
        File::create(path).map_err(|e| failed("create", &self.path.join(name), e))
    }

    /// Records that the container's process was executed.
    pub(crate) fn mark_started(&self) -> Result<()> {
        self.file(STARTED).map(drop)
    }
}

fn open(path: &Path) -> Result<Arc<OwnedFd>> {
    File::open(path).map(|file| Arc::new(file.into())).map_err(|e| failed("open", path, e))
}

/// Removes a VM's directory. After a failed start the logs stay, until [`remove`].
pub(crate) fn clear(path: &Path) -> Result<()> {
    if path.join(STARTED).exists() {
        return remove(path);
    }
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == IoErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed("read", path, e)),
    };
    let mut kept = false;
    for entry in entries.flatten() {
        if KEPT.iter().any(|name| entry.file_name() == *name) {
            kept = true;
            continue;
        }
        let directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed =
            if directory { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
        gone(removed).map_err(|e| failed("remove", &entry.path(), e))?;
    }
    if kept { Ok(()) } else { remove(path) }
}

/// Removes a VM's directory and all in it. Missing is fine.
pub(crate) fn remove(path: &Path) -> Result<()> {
    gone(fs::remove_dir_all(path)).map_err(|e| failed("remove", path, e))
}

fn gone(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(e) if e.kind() == IoErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> ContainerId {
        ContainerId::parse("c1").unwrap()
    }

    #[test]
    fn sockets_are_reached_below_a_root_of_any_length() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("d".repeat(120)).join("e".repeat(120));
        let directory = VmDirectory::create(&deep, &id()).unwrap();
        std::os::unix::net::UnixListener::bind(directory.reach("v.sock_1024")).unwrap();
        assert!(directory.path().join("v.sock_1024").exists());
    }

    #[test]
    fn logs_outlive_a_failed_start_and_nothing_else_does() {
        let root = tempfile::tempdir().unwrap();
        let directory = VmDirectory::create(root.path(), &id()).unwrap();
        directory.file("console.log").unwrap();
        directory.file("v.sock").unwrap();
        clear(directory.path()).unwrap();
        let left: Vec<_> = fs::read_dir(directory.path()).unwrap().flatten().map(|e| e.file_name()).collect();
        assert_eq!(left, ["console.log"]);

        directory.mark_started().unwrap();
        clear(directory.path()).unwrap();
        assert!(!directory.path().exists());
        clear(directory.path()).unwrap();
    }
}
