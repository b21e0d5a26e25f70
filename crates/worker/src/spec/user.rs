//! Users and groups, looked up in the image's own files.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use beta9_types::User;
use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};

use crate::error::{Error, ErrorKind, Result};

/// An image's account file is hostile: it may be endless or a device (containerd CVE-2026-47262).
const MAX_FILE: u64 = 1 << 20;

/// Who a container runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    pub(super) home: String,
}

/// docker's rule: a name must exist; a number need not. Without a group, the user's own groups apply. The `more` groups
/// come in addition.
pub(super) fn resolve(user: &User, more: &[String], tree: &Path) -> Result<Account> {
    let (user, group) = user.parts();
    let passwd = read(tree, "etc/passwd")?;
    let groups = read(tree, "etc/group")?;
    let mut account = resolve_in(user, group, &passwd, &groups)?;
    for group in more {
        let entries = groups.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|f| f.len() >= 4);
        let id = group_id(group, entries)?;
        if id != account.gid && !account.groups.contains(&id) {
            account.groups.push(id);
        }
    }
    Ok(account)
}

/// The account files of a container, in which its users are looked up.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Accounts {
    passwd: String,
    groups: String,
}

impl Accounts {
    /// The largest account file that is read.
    pub(crate) const MAX_FILE: u64 = MAX_FILE;

    /// Those of the first layer that has each.
    pub(crate) fn of_layers(layers: &[&Path]) -> Result<Self> {
        let first = |name: &str| -> Result<String> {
            for layer in layers.iter().filter(|layer| layer.is_dir()) {
                let text = read(layer, name)?;
                if !text.is_empty() {
                    return Ok(text);
                }
            }
            Ok(String::new())
        };
        Ok(Self { passwd: first("etc/passwd")?, groups: first("etc/group")? })
    }

    /// Those with this content.
    pub(crate) fn of_content(passwd: &[u8], groups: &[u8]) -> Self {
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Self { passwd: text(passwd), groups: text(groups) }
    }

    pub(super) fn resolve(&self, user: &User) -> Result<Account> {
        let (user, group) = user.parts();
        resolve_in(user, group, &self.passwd, &self.groups)
    }
}

fn resolve_in(user: &str, group: Option<&str>, passwd: &str, groups: &str) -> Result<Account> {
    let number: Option<u32> = user.parse().ok();
    let entry = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| {
        fields.len() >= 6 && (fields[0] == user || (number.is_some() && fields[2].parse().ok() == number))
    });
    let (uid, own_gid, name, home) = match (&entry, number) {
        (Some(fields), _) => {
            let (Ok(uid), Ok(gid)) = (fields[2].parse(), fields[3].parse()) else {
                return Err(invalid(format!("user {user:?} has no numbers in the image's /etc/passwd")));
            };
            (uid, gid, fields[0], fields[5])
        }
        (None, Some(uid)) => (uid, 0, "", "/"),
        (None, None) => {
            return Err(invalid(format!(
                "user {user:?} is not in the image's /etc/passwd: use a number or add it"
            )));
        }
    };
    let members = groups.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|f| f.len() >= 4);
    let (gid, supplementary) = match group {
        Some(group) => (group_id(group, members)?, Vec::new()),
        None => {
            let mine =
                |fields: &Vec<&str>| !name.is_empty() && fields[3].split(',').any(|member| member == name);
            let ids = members.filter(mine).filter_map(|fields| fields[2].parse().ok());
            (own_gid, ids.filter(|id| *id != own_gid).collect())
        }
    };
    let home = if home.starts_with('/') && !home.contains('\0') { home } else { "/" };
    Ok(Account { uid, gid, groups: supplementary, home: home.to_owned() })
}

fn group_id<'a>(group: &str, mut entries: impl Iterator<Item = Vec<&'a str>>) -> Result<u32> {
    if let Ok(gid) = group.parse() {
        return Ok(gid);
    }
    entries.find(|fields| fields[0] == group).and_then(|fields| fields[2].parse().ok()).ok_or_else(|| {
        invalid(format!("group {group:?} is not in the image's /etc/group: use a number or add it"))
    })
}

fn invalid(text: String) -> Error {
    Error::new(ErrorKind::Invalid, text)
}

/// Reads a file of the image without following anything out of it. Missing is empty.
fn read(tree: &Path, name: &str) -> Result<String> {
    let failed =
        |e: std::io::Error| Error::internal(format!("read {name} of the image in {}", tree.display()), e);
    let root = open(tree, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| failed(e.into()))?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = match openat2(&root, name, flags, Mode::empty(), resolve) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(String::new()),
        Err(e) => return Err(failed(e.into())),
    };
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(invalid(format!("/{name} of the image is not a file")));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes).map_err(failed)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\nbad:x:a:b::/:\n";
    const GROUP: &str = "root:x:0:\napp:x:1001:\nextra:x:2000:other,app\n";

    fn account(user: &str, group: Option<&str>) -> Result<(u32, u32, Vec<u32>)> {
        resolve_in(user, group, PASSWD, GROUP).map(|account| (account.uid, account.gid, account.groups))
    }

    #[test]
    fn names_and_numbers_resolve_as_docker_resolves_them() {
        assert_eq!(account("app", None).unwrap(), (1000, 1001, vec![2000]));
        assert_eq!(account("1000", None).unwrap(), (1000, 1001, vec![2000]));
        assert_eq!(account("app", Some("extra")).unwrap(), (1000, 2000, vec![]));
        assert_eq!(account("4242", None).unwrap(), (4242, 0, vec![]));
        assert_eq!(account("4242", Some("7")).unwrap(), (4242, 7, vec![]));
        for (user, group) in
            [("nobody-here", None), ("app", Some("none")), ("bad", None), ("4294967296", None)]
        {
            assert!(account(user, group).is_err(), "{user} {group:?} was accepted");
        }
    }

    #[test]
    fn a_link_out_of_the_image_reads_nothing_outside() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("passwd"), "evil:x:0:0::/:/\n").unwrap();
        let tree = tempfile::tempdir().unwrap();
        std::fs::create_dir(tree.path().join("etc")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("passwd"), tree.path().join("etc/passwd")).unwrap();
        assert_eq!(read(tree.path(), "etc/passwd").unwrap(), "");
        std::fs::remove_file(tree.path().join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", tree.path().join("etc/passwd")).unwrap();
        assert_eq!(
            read(tree.path(), "etc/passwd").unwrap(),
            "",
            "resolved inside the image, where it does not exist"
        );
    }
}
