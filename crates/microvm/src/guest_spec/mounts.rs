//! Mounts: file systems of the guest's kernel, and host paths that arrive through the share.

use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;

use beta9_runtime::Result;
use beta9_types::{BindMount, MountAccess};
use beta9_wire::{GuestMount, MountSource};
use oci_spec::runtime::Mount;
use rustix::mount::MountFlags;

use super::{absolute, invalid, unsupported};

pub(super) fn translate(mounts: &[Mount], binds: &[BindMount], own: &Path) -> Result<Vec<GuestMount>> {
    mounts.iter().map(|mount| translate_one(mount, binds, own)).collect()
}

fn translate_one(mount: &Mount, binds: &[BindMount], own: &Path) -> Result<GuestMount> {
    let destination = mount.destination();
    let named = |what: &str| unsupported(&format!("{what} on the mount at {}", destination.display()));
    if mount.uid_mappings().is_some() || mount.gid_mappings().is_some() {
        return Err(named("id mappings"));
    }
    let options = mount.options().as_deref().unwrap_or_default();
    let is_bind = mount.typ().as_deref() == Some("bind")
        || options.iter().any(|option| matches!(option.as_str(), "bind" | "rbind"));
    let (mut flags, mut data) = (MountFlags::empty(), Vec::new());
    for option in options {
        match meaning(option) {
            Meaning::Set(flag) => flags |= flag,
            Meaning::Clear(flag) => flags -= flag,
            Meaning::Nothing => {}
            Meaning::Unsupported => return Err(named(&format!("option {option}"))),
            Meaning::Data if is_bind => return Err(named(&format!("option {option}"))),
            Meaning::Data if option.contains(['\0', ',']) => {
                return Err(invalid("a mount option contains a comma"));
            }
            Meaning::Data => data.push(option.as_str()),
        }
    }
    let source =
        if let Some(file) = mount.source().as_deref().filter(|source| is_bind && source.starts_with(own)) {
            own_file(file)?
        } else if is_bind {
            let (source, access) = shared(mount, binds)?;
            if access == MountAccess::ReadOnly {
                flags |= MountFlags::RDONLY;
            }
            source
        } else {
            match mount.typ().as_deref().unwrap_or_default() {
                "cgroup" | "cgroup2" => MountSource::Filesystem("cgroup2".to_owned()),
                known @ ("proc" | "sysfs" | "tmpfs" | "devpts" | "mqueue") => {
                    MountSource::Filesystem(known.to_owned())
                }
                other => return Err(named(&format!("file system {other:?}"))),
            }
        };
    Ok(GuestMount {
        target: absolute(destination)?,
        source,
        flags: u64::from(flags.bits()),
        data: data.join(","),
    })
}

/// One of the container's own small files, which goes along as it is now.
fn own_file(path: &Path) -> Result<MountSource> {
    const LONGEST: u64 = 128 << 10;
    let read = || -> std::io::Result<Vec<u8>> {
        let mut content = Vec::new();
        std::fs::File::open(path)?.take(LONGEST).read_to_end(&mut content)?;
        Ok(content)
    };
    read().map(MountSource::OwnFile).map_err(|e| crate::failed("read", path, e))
}

/// Which export a bind mount shows. A directory is exported as itself, a file inside a directory of its own.
fn shared(mount: &Mount, binds: &[BindMount]) -> Result<(MountSource, MountAccess)> {
    let destination = mount.destination();
    let source = mount.source().as_deref().unwrap_or(Path::new(""));
    let position = binds.iter().position(|bind| bind.source == source && bind.target == *destination);
    let Some((position, bind)) = position.and_then(|at| Some((u16::try_from(at).ok()?, &binds[at]))) else {
        let text =
            format!("mount of {} at {} is not among the shares", source.display(), destination.display());
        return Err(invalid(&text));
    };
    let meta = source.metadata().map_err(|e| crate::failed("look at mount source", source, e))?;
    let shown = if meta.is_dir() {
        MountSource::SharedDirectory(position)
    } else if meta.is_file() {
        let name = source.file_name().and_then(OsStr::to_str).ok_or_else(|| {
            invalid(&format!("mount source {} has a name that is not UTF-8", source.display()))
        })?;
        MountSource::SharedFile(position, name.to_owned())
    } else {
        let what = format!("mounting {}, which is neither a file nor a directory", source.display());
        return Err(unsupported(&what));
    };
    Ok((shown, bind.access))
}

enum Meaning {
    Set(MountFlags),
    Clear(MountFlags),
    /// It is the default in the guest, or about sharing with a host that the guest does not have.
    Nothing,
    Unsupported,
    /// For the file system.
    Data,
}

/// What an option means (`runtime-spec/config.md`, "Linux mount options").
fn meaning(option: &str) -> Meaning {
    match option {
        "ro" => Meaning::Set(MountFlags::RDONLY),
        "rw" => Meaning::Clear(MountFlags::RDONLY),
        "nosuid" => Meaning::Set(MountFlags::NOSUID),
        "suid" => Meaning::Clear(MountFlags::NOSUID),
        "nodev" => Meaning::Set(MountFlags::NODEV),
        "dev" => Meaning::Clear(MountFlags::NODEV),
        "noexec" => Meaning::Set(MountFlags::NOEXEC),
        "exec" => Meaning::Clear(MountFlags::NOEXEC),
        "sync" => Meaning::Set(MountFlags::SYNCHRONOUS),
        "async" => Meaning::Clear(MountFlags::SYNCHRONOUS),
        "dirsync" => Meaning::Set(MountFlags::DIRSYNC),
        "noatime" => Meaning::Set(MountFlags::NOATIME),
        "atime" => Meaning::Clear(MountFlags::NOATIME),
        "nodiratime" => Meaning::Set(MountFlags::NODIRATIME),
        "diratime" => Meaning::Clear(MountFlags::NODIRATIME),
        "relatime" => Meaning::Set(MountFlags::RELATIME),
        "norelatime" => Meaning::Clear(MountFlags::RELATIME),
        "strictatime" => Meaning::Set(MountFlags::STRICTATIME),
        "nostrictatime" => Meaning::Clear(MountFlags::STRICTATIME),
        "silent" => Meaning::Set(MountFlags::SILENT),
        "loud" => Meaning::Clear(MountFlags::SILENT),
        "bind" | "rbind" | "defaults" => Meaning::Nothing,
        "private" | "rprivate" | "slave" | "rslave" | "unbindable" | "runbindable" => Meaning::Nothing,
        "shared" | "rshared" | "remount" | "mand" | "tmpcopyup" | "idmap" | "ridmap" => Meaning::Unsupported,
        "rro" | "rrw" | "rnosuid" | "rsuid" | "rnodev" | "rdev" | "rnoexec" | "rexec" => Meaning::Unsupported,
        _ => Meaning::Data,
    }
}
