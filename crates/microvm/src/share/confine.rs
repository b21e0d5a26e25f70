//! Leaves the file server nothing of the host but its exports.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use beta9_runtime::{Error, ErrorKind, Result};
use beta9_types::MountAccess;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_change,
    mount_remount, unmount,
};
use rustix::process::{DumpableBehavior, Resource, Rlimit, pivot_root, set_dumpable_behavior, setrlimit};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, clear_ambient_capability_set, set_capabilities,
};

use super::exports::{Exports, MAX_EXPORTS};
use super::server::Export;
use super::{ROOT, calls};

/// Where the exports are below the new root.
const EXPORTS: &str = "exports";
/// What a file server does in the name of the guest's users. Not among them: device nodes, tracing and mounting.
/// `DAC_READ_SEARCH` is for hard links, which are made from an open file: before Linux 6.10 linkat(2) with
/// `AT_EMPTY_PATH` needs it. It would also open files by handle, past the exports, which [`calls`] prevents.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETFCAP);
/// Every file that the guest's kernel knows costs a descriptor here.
const MAX_FILES: u64 = 1 << 20;

/// Builds a root with the exports, moves into it for good, and gives up every right that serving them does not need.
pub(super) fn enter(exports: &[Export]) -> Result<Exports> {
    check_namespaces()?;
    if exports.len() > MAX_EXPORTS {
        let text = format!("{} mounts are more than the {MAX_EXPORTS} that a file server has", exports.len());
        return Err(Error::new(ErrorKind::Failed, text));
    }
    // Opened before anything is mounted, so that no mount below hides one of them.
    let opened = exports.iter().map(open_export).collect::<Result<Vec<_>>>()?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .map_err(|e| step("separate the mounts", e))?;
    let root = Path::new(ROOT);
    mount(
        "tmpfs",
        root,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
        Some(c"mode=700"),
    )
    .map_err(|e| step("make the root", e))?;
    let base = root.join(EXPORTS);
    fs::create_dir(&base).map_err(|e| crate::failed("create", &base, e))?;
    for (index, (export, file)) in exports.iter().zip(opened).enumerate() {
        attach(&base.join(index.to_string()), export, file)?;
    }
    // Extended attributes are reached through this directory, which shows this process's files and nothing else.
    let own_files = root.join("proc/self/fd");
    fs::create_dir_all(&own_files).map_err(|e| crate::failed("create", &own_files, e))?;
    mount_bind("/proc/self/fd", &own_files).map_err(|e| step("show this process its files", e))?;
    // While `/proc` is still there; it keeps open what it needs of it.
    let places = exports.iter().enumerate();
    let roots = places.map(|(index, export)| (format!("/{EXPORTS}/{index}"), export.consistency));
    let exports = Exports::prepare(roots)
        .map_err(|e| Error::caused(ErrorKind::Failed, "prepare the file server", e))?;
    mount_remount(root, read_only(MountFlags::BIND), "").map_err(|e| step("make the root read-only", e))?;
    change_root(root)?;
    exports.import().map_err(|e| Error::caused(ErrorKind::Failed, "open the exports", e))?;
    give_up_rights()?;
    Ok(exports)
}

fn step(what: &str, error: rustix::io::Errno) -> Error {
    Error::caused(ErrorKind::Failed, format!("file server: {what}"), error)
}

fn read_only(flags: MountFlags) -> MountFlags {
    flags | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC
}

/// What follows would take the parent's own mounts away if this process shared its namespace.
pub(crate) fn check_namespaces() -> Result<()> {
    let parent = rustix::process::getppid().map_or(1, |pid| pid.as_raw_nonzero().get());
    for kind in ["mnt", "net"] {
        let of = |process: String| fs::read_link(format!("/proc/{process}/ns/{kind}")).ok();
        let (own, parents) = (of("self".to_owned()), of(parent.to_string()));
        if own.is_none() || own == parents {
            let text = format!("this program was not started in a {kind} namespace of its own");
            return Err(Error::new(ErrorKind::Failed, text));
        }
    }
    Ok(())
}

fn open_export(export: &Export) -> Result<OwnedFd> {
    rustix::fs::openat(CWD, &export.path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| crate::failed("open mount source", &export.path, e.into()))
}

/// Mounts an export at `target`: a directory as `target` itself, a file inside it.
fn attach(target: &Path, export: &Export, file: OwnedFd) -> Result<()> {
    fs::create_dir(target).map_err(|e| crate::failed("create", target, e))?;
    let source = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let stat = rustix::fs::fstat(&file).map_err(|e| step("look at an export", e))?;
    let failed = |e: rustix::io::Errno| crate::failed("export", &export.path, e.into());
    if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
        mount_bind_recursive(&source, target).map_err(failed)?;
        return restrict(target, export.access);
    }
    let name = export.path.file_name().ok_or_else(|| failed(rustix::io::Errno::INVAL))?;
    let target = target.join(name);
    File::create_new(&target).map_err(|e| crate::failed("create", &target, e))?;
    mount_bind(&source, &target).map_err(failed)?;
    restrict(&target, export.access)
}

/// Takes rights away from every mount at and below `target`: devices, programs, set-user-id, and writing where the
/// export is read-only. Flags that a mount has already stay.
fn restrict(target: &Path, access: MountAccess) -> Result<()> {
    let absolute = fs::canonicalize(target).map_err(|e| crate::failed("find", target, e))?;
    let table = fs::read_to_string("/proc/self/mountinfo")
        .map_err(|e| crate::failed("read", Path::new("/proc/self/mountinfo"), e))?;
    let mut found = false;
    for line in table.lines() {
        let Some((point, options)) = mount_of(line) else { continue };
        if !point.starts_with(&absolute) {
            continue;
        }
        found = true;
        let mut flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        for option in options.split(',') {
            flags |= match option {
                "ro" => MountFlags::RDONLY,
                "noatime" => MountFlags::NOATIME,
                "nodiratime" => MountFlags::NODIRATIME,
                "relatime" => MountFlags::RELATIME,
                _ => MountFlags::empty(),
            };
        }
        if access == MountAccess::ReadOnly {
            flags |= MountFlags::RDONLY;
        }
        mount_remount(&point, flags, "")
            .map_err(|e| crate::failed("restrict the mount at", &point, e.into()))?;
    }
    if found {
        Ok(())
    } else {
        Err(Error::new(ErrorKind::Failed, format!("the mount at {} did not appear", target.display())))
    }
}

/// Mount point and options of a line of `mountinfo` (proc(5)); space, tab, newline and backslash are octal in it.
fn mount_of(line: &str) -> Option<(PathBuf, &str)> {
    let mut fields = line.split(' ').skip(4);
    let (point, options) = (fields.next()?, fields.next()?);
    let point = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(point.to_owned(), |point, (code, character)| point.replace(code, character));
    Some((point.into(), options))
}

/// The old root is stacked under the new one and then let go.
fn change_root(root: &Path) -> Result<()> {
    rustix::process::chdir(root).map_err(|e| step("enter the root", e))?;
    pivot_root(".", ".").map_err(|e| step("change the root", e))?;
    unmount(".", UnmountFlags::DETACH).map_err(|e| step("let go of the old root", e))?;
    rustix::process::chdir("/").map_err(|e| step("enter the root", e))
}

fn give_up_rights() -> Result<()> {
    // Where the limit may not be raised it is used up to its end.
    let hard = Rlimit { current: Some(MAX_FILES), maximum: Some(MAX_FILES) };
    if setrlimit(Resource::Nofile, hard).is_err() {
        let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
            .map_err(|e| step("raise the number of files", e))?;
    }
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .map_err(|e| step("forbid core files", e))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|e| step("forbid tracing", e))?;
    rustix::thread::set_no_new_privs(true).map_err(|e| step("forbid new privileges", e))?;
    calls::forbid()?;
    // What the guest's users may do the guest's kernel has decided, with all of their groups; this host knows one group of
    // each. So acting in a user's name decides whose a new file is, and takes no right away.
    let steady = CapabilitiesSecureBits::NO_SETUID_FIXUP | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED;
    rustix::thread::set_capabilities_secure_bits(steady).map_err(|e| step("keep capabilities", e))?;
    for capability in CapabilitySet::all().difference(KEPT).iter() {
        // The kernel does not know every one that this library does.
        let _ = rustix::thread::remove_capability_from_bounding_set(capability);
    }
    clear_ambient_capability_set().map_err(|e| step("drop ambient capabilities", e))?;
    let sets = CapabilitySets { effective: KEPT, permitted: KEPT, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(|e| step("drop capabilities", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        let line = "36 35 98:0 /mnt1 /mnt\\040with\\134it rw,noatime master:1 - ext3 /dev/root rw";
        assert_eq!(mount_of(line).unwrap(), (PathBuf::from("/mnt with\\it"), "rw,noatime"));
        assert!(mount_of("36 35").is_none());
    }

    #[test]
    fn it_does_not_touch_the_mounts_of_others() {
        // The tests run in their parent's namespaces, which is what must be refused.
        let error = enter(&[]).err().unwrap();
        assert!(error.to_string().contains("namespace of its own"), "{error}");
    }
}
