//! Users for VMs, each VM its own.
//!
//! ```text
//! <VM's directory>/user        exists as long as the VM's processes may
//!        ▲
//! /run/beta9/vm-users/<uid>    names it; free when what it names is gone
//! ```
//!
//! Processes that know nothing of each other share the users: whoever takes one locks its file for that moment. Nothing
//! is given back; a user is free when its last VM's directory has been cleaned, and so after any crash and any restart of
//! the machine.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use beta9_runtime::{Error, ErrorKind, Result};
use beta9_types::UidRange;
use rustix::fs::{FlockOperation, Gid, Uid, flock};
use rustix::io::Errno;

use super::VmDirectory;
use crate::failed;

/// Who has which user, on this machine.
const USERS: &str = "/run/beta9/vm-users";
/// In the VM's directory: says that its user is taken.
const MARKER: &str = "user";
/// Longest path of a marker that is read.
const MAX_PATH: u64 = 8192;

/// A user, and the group of the same number, that one VM's processes run as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VmUser(u32);

impl VmUser {
    /// Takes a user for the VM in `directory`, until that is cleared or removed.
    pub(crate) fn take(range: &UidRange, directory: &VmDirectory) -> Result<Self> {
        Self::take_from(Path::new(USERS), range, directory)
    }

    fn take_from(users: &Path, range: &UidRange, directory: &VmDirectory) -> Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(users)
            .map_err(|e| failed("create", users, e))?;
        // Before its path is written anywhere: one that is not there means that the user is free.
        let mut mark = directory.file(MARKER)?;
        let marker = directory.path().join(MARKER);
        for id in range.ids() {
            if take_one(&users.join(id.to_string()), &marker)? {
                writeln!(mark, "{id}").map_err(|e| failed("write", &marker, e))?;
                return Ok(Self(id));
            }
        }
        let text = format!("every user of {range} has a VM already: widen jail_uids");
        Err(Error::new(ErrorKind::Failed, text))
    }

    /// Its number.
    pub(crate) fn number(self) -> u32 {
        self.0
    }

    pub(crate) fn uid(self) -> Uid {
        Uid::from_raw(self.0)
    }

    pub(crate) fn gid(self) -> Gid {
        Gid::from_raw(self.0)
    }
}

/// Writes `marker` into `file` unless it names another one that exists, or somebody is about to.
fn take_one(file: &Path, marker: &Path) -> Result<bool> {
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(file);
    let mut record = open.map_err(|e| failed("open", file, e))?;
    match flock(&record, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(false),
        Err(e) => return Err(failed("lock", file, e.into())),
    }
    let mut holder = Vec::new();
    Read::by_ref(&mut record).take(MAX_PATH).read_to_end(&mut holder).map_err(|e| failed("read", file, e))?;
    // Half a path, of somebody who died here, leads nowhere.
    if !holder.is_empty() && Path::new(OsStr::from_bytes(&holder)).exists() {
        return Ok(false);
    }
    let write = |record: &mut File| {
        record.set_len(0)?;
        record.rewind()?;
        record.write_all(marker.as_os_str().as_bytes())
    };
    write(&mut record).map(|()| true).map_err(|e| failed("write", file, e))
}

/// Gives a file to the VM's user.
pub(crate) fn hand_over(path: &Path, user: VmUser) -> Result<()> {
    rustix::fs::chown(path, Some(user.uid()), Some(user.gid())).map_err(|e| {
        let text = format!("give {} to user {}; is the number valid here?", path.display(), user.number());
        Error::caused(ErrorKind::Failed, text, e)
    })
}

/// A file that several VMs share is opened by each VM's user, so everybody must be able to read it; and nobody but root
/// may write to it.
pub(crate) fn check_shared(path: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(path).map_err(|e| failed("look at", path, e))?;
    let refuse = |text: String| Err(Error::new(ErrorKind::Unavailable, text));
    if metadata.mode() & 0o004 == 0 {
        let shown = path.display();
        return refuse(format!("{shown} cannot be read by the users that VMs run as: chmod a+r {shown}"));
    }
    if metadata.mode() & 0o002 != 0 {
        let shown = path.display();
        return refuse(format!("everybody may write to {shown}, which VMs share: chmod o-w {shown}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use beta9_types::ContainerId;

    use super::super::{clear, remove};
    use super::*;

    fn directory(root: &Path, name: &str) -> VmDirectory {
        VmDirectory::create(root, &ContainerId::parse(name).unwrap()).unwrap()
    }

    #[test]
    fn no_two_vms_have_one_user_and_those_of_cleared_vms_are_free() {
        let root = tempfile::tempdir().unwrap();
        let users = root.path().join("users");
        let range = UidRange::parse("70000-70001").unwrap();
        let take = |vm: &VmDirectory| VmUser::take_from(&users, &range, vm);
        let [a, b, c] = ["a", "b", "c"].map(|name| directory(root.path(), name));
        assert_eq!(take(&a).unwrap().number(), 70000);
        assert_eq!(take(&b).unwrap().number(), 70001);
        let error = take(&c).unwrap_err().to_string();
        assert!(error.contains("widen jail_uids"), "{error}");
        a.file("console.log").unwrap();
        clear(a.path()).unwrap();
        assert_eq!(take(&c).unwrap().number(), 70000);
        remove(b.path()).unwrap();
        assert_eq!(take(&directory(root.path(), "d")).unwrap().number(), 70001);
    }

    #[test]
    fn one_that_is_being_taken_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let users = root.path().join("users");
        fs::create_dir(&users).unwrap();
        let held = File::create(users.join("7")).unwrap();
        flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
        let vm = directory(root.path(), "a");
        assert!(VmUser::take_from(&users, &UidRange::parse("7-7").unwrap(), &vm).is_err());
        drop(held);
        assert!(VmUser::take_from(&users, &UidRange::parse("7-7").unwrap(), &vm).is_ok());
    }

    #[test]
    fn shared_files_are_for_everybody_to_read_and_for_root_to_write() {
        use std::os::unix::fs::PermissionsExt;
        let file = tempfile::NamedTempFile::new().unwrap();
        let judge = |mode| {
            fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
            check_shared(file.path()).map_err(|e| e.to_string())
        };
        judge(0o444).unwrap();
        judge(0o644).unwrap();
        assert!(judge(0o640).unwrap_err().contains("chmod a+r"));
        assert!(judge(0o646).unwrap_err().contains("chmod o-w"));
    }
}
