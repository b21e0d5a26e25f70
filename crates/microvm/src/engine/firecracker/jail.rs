//! Firecracker's jail, made by its own jailer.
//!
//! ```text
//! <VM's directory>/firecracker/<VM id>/root/   the jail: all that Firecracker sees of the file system
//!     run/       the VM's sockets and pipes, made before the jailer starts
//!     kernel, initrd.img, d0, d1, …   mounted there, read-only but for the writable disk
//!     firecracker, dev/, firecracker.pid   the jailer's own
//! ```
//!
//! The jailer gets no `--cgroup`: it is started inside the container's cgroup, whose limits hold from its first
//! instruction on, with either version of cgroups.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use beta9_runtime::{Error, ErrorKind, Result, find_program};
use beta9_types::{RuntimeSettings, UidRange, VmId};
use rustix::process::Pid;
use tokio::time::timeout;

use super::super::{DriveAccess, Host, Pace, Process, Tail, VSOCK, VmConfig, VmDirectory, VmUser};
use super::super::{check_shared, describe, hand_over};
use super::{Names, Version};
use crate::confine::{Confinement, Linkage, Root, Shown, WORKPLACE};

/// How long the jailer may take: it copies Firecracker and makes a few nodes.
const JAILER_DEADLINE: Duration = Duration::from_secs(10);
/// Open files of a VMM: each connection of the guest is one, and Firecracker allows 1023 of them.
const MAX_FILES: u64 = 2048;
/// A process id.
const MAX_PID: usize = 16;

pub(super) struct Jail {
    jailer: PathBuf,
    /// Firecracker, by the path that the jailer finds it at.
    bin: PathBuf,
    users: UidRange,
}

impl Jail {
    pub(super) fn new(bin: &Path, settings: &RuntimeSettings) -> Self {
        Self {
            jailer: super::super::located(&settings.firecracker_jailer),
            // The jailer follows links before it names the jail after the file.
            bin: fs::canonicalize(bin).unwrap_or_else(|_| bin.to_owned()),
            users: settings.jail_uids.clone(),
        }
    }

    /// The jail's root below the VM's directory.
    fn inside(&self, id: &VmId) -> PathBuf {
        Path::new(self.bin.file_name().unwrap_or_default()).join(id.to_string()).join("root")
    }

    pub(super) fn settle(&self, directory: VmDirectory, id: &VmId) -> Result<VmDirectory> {
        let user = VmUser::take(&self.users, &directory)?;
        let workplace = WORKPLACE.trim_start_matches('/');
        directory.with_workplace(&self.inside(id).join(workplace), user)
    }

    /// The jailer, shown the VM's files in the jail.
    pub(super) fn command(&self, config: &VmConfig, host: &Host) -> Result<Command> {
        let directory = &config.directory;
        let user = directory.user().ok_or_else(|| Error::new(ErrorKind::Failed, "the jail has no user"))?;
        let mut shown = vec![Shown::read(&config.kernel, KERNEL), Shown::read(&config.initrd, INITRD)];
        // The guest's memory may be a file, too.
        let mut largest = u64::from(config.mem_mib) << 20;
        for (index, drive) in config.drives.iter().enumerate() {
            match drive.access {
                DriveAccess::ReadOnly => shown.push(Shown::read(&drive.path, &drive_name(index))),
                DriveAccess::Scratch => {
                    hand_over(&drive.path, user)?;
                    let size =
                        fs::metadata(&drive.path).map_err(|e| crate::failed("look at", &drive.path, e))?;
                    largest = largest.max(size.len());
                    shown.push(Shown::write(&drive.path, &drive_name(index)));
                }
            }
        }
        for shared in shown.iter().filter(|shown| shown.rights == crate::confine::Rights::Read) {
            check_shared(&shared.source)?;
        }
        let number = user.number().to_string();
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut arguments =
            vec!["--id".to_owned(), config.id.to_string(), "--exec-file".to_owned(), text(&self.bin)];
        arguments.extend(["--uid", &number, "--gid", &number].map(str::to_owned));
        arguments.extend(["--chroot-base-dir".to_owned(), text(directory.path()), "--new-pid-ns".to_owned()]);
        arguments.extend(["--resource-limit".to_owned(), format!("no-file={MAX_FILES}")]);
        arguments.extend(["--resource-limit".to_owned(), format!("fsize={largest}")]);
        arguments.push("--".to_owned());
        arguments.extend(super::arguments(Path::new(WORKPLACE)));
        let root = Root::Existing(directory.path().join(self.inside(&config.id)));
        Confinement { root, shown, program: self.jailer.clone(), arguments }.command(&host.this, host)
    }

    /// Waits until the jailer has started Firecracker, in a PID namespace of its own, and takes that over.
    pub(super) async fn adopt(
        &self,
        config: &VmConfig,
        host: &Host,
        jailer: &Process,
        said: &Tail,
        pace: Pace,
    ) -> Result<Process> {
        let deadline = pace.deadline(JAILER_DEADLINE);
        let failed = |how: String| {
            let said = said.excerpt().map(|text| format!(": {text}")).unwrap_or_default();
            Error::new(ErrorKind::Failed, format!("{} {how}{said}", self.jailer.display()))
        };
        let Ok(exit) = timeout(deadline, jailer.ended()).await else {
            jailer.end().await?;
            return Err(failed(format!("did not start firecracker within {} s", deadline.as_secs())));
        };
        if !exit.success() {
            // Firecracker never ran, so this is all there will be.
            let _ = timeout(Duration::from_millis(500), said.ended()).await;
            return Err(failed(format!("{} before firecracker was started", describe(exit))));
        }
        let name = self.bin.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let file = config.directory.path().join(self.inside(&config.id)).join(format!("{name}.pid"));
        let pid = read_pid(&file)?;
        Process::adopt(host, "firecracker", pid)
    }
}

const KERNEL: &str = "kernel";
const INITRD: &str = "initrd.img";

fn drive_name(index: usize) -> String {
    format!("d{index}")
}

/// What a VM's files are called in the jail.
pub(super) fn names(config: &VmConfig) -> Names {
    let root = Path::new("/");
    Names {
        kernel: root.join(KERNEL),
        initrd: root.join(INITRD),
        drives: (0..config.drives.len()).map(|index| root.join(drive_name(index))).collect(),
        vsock: Path::new(WORKPLACE).join(VSOCK),
    }
}

/// Written by the jailer before it ended, into a directory that is the VM's user's by now. So no link is followed, and
/// what the file names has to be a child of this process.
fn read_pid(file: &Path) -> Result<Pid> {
    use std::io::Read;
    use std::os::unix::fs::OpenOptionsExt;
    let failed = |e| crate::failed("read", file, e);
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    let mut text = String::new();
    let mut open = fs::OpenOptions::new();
    let opened = open.read(true).custom_flags(flags).open(file).map_err(failed)?;
    opened.take(MAX_PID as u64).read_to_string(&mut text).map_err(failed)?;
    let pid = text.trim().parse().ok().filter(|pid| *pid > 1).and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| {
        Error::new(ErrorKind::Failed, format!("the jailer left no process id in {}", file.display()))
    })?;
    let parent = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    let parent =
        parent.rsplit_once(") ").and_then(|(_, fields)| fields.split(' ').nth(1)?.parse::<u32>().ok());
    match parent {
        // It may have ended and been collected already.
        None => Ok(pid),
        Some(parent) if parent == std::process::id() => Ok(pid),
        Some(_) => {
            Err(Error::new(ErrorKind::Failed, "the jailer's process id is not that of its firecracker"))
        }
    }
}

/// Whether Firecracker will run jailed: with which jailer, or why not.
pub(crate) fn decide(settings: &RuntimeSettings, bin: &Path) -> Result<std::result::Result<PathBuf, String>> {
    let reason = match usable(settings, bin) {
        Ok(jailer) => return Ok(Ok(jailer)),
        Err(reason) => reason,
    };
    if settings.require_jailer {
        let text = format!("firecracker cannot be jailed, which require_jailer asks for: {reason}");
        return Err(Error::new(ErrorKind::Unavailable, text));
    }
    Ok(Err(reason))
}

pub(crate) fn usable(settings: &RuntimeSettings, bin: &Path) -> std::result::Result<PathBuf, String> {
    if !settings.is_jailed() {
        return Err("firecracker_jailer is none".to_owned());
    }
    let jailer = &settings.firecracker_jailer;
    let found = find_program(jailer).ok_or_else(|| {
        format!(
            "{} was not found or cannot be executed: install the jailer of Firecracker's release, or set \
             firecracker_jailer",
            jailer.display()
        )
    })?;
    match Linkage::of(bin) {
        Ok(Linkage::Static) => {}
        Ok(Linkage::Dynamic) => {
            let text = "is dynamically linked, and a jail has no libraries: install the static build of \
                        Firecracker's release";
            return Err(format!("{} {text}", bin.display()));
        }
        Err(error) => return Err(error.chain()),
    }
    let real = fs::canonicalize(bin).unwrap_or_else(|_| bin.to_owned());
    if !real.file_name().is_some_and(|name| name.to_string_lossy().contains("firecracker")) {
        return Err(format!("the jailer starts only programs called firecracker, not {}", real.display()));
    }
    Ok(found)
}

/// What is known against a jailer of this version.
pub(crate) fn known_flaws(jailer: Version) -> Option<String> {
    // The CVE's record: 1.13.1 and earlier and 1.14.0 are affected, 1.13.2 and 1.14.1 are not.
    let is_fixed = jailer >= Version::new(1, 14, 1)
        || (jailer >= Version::new(1, 13, 2) && jailer < Version::new(1, 14, 0));
    (!is_fixed).then(|| {
        format!(
            "jailer {jailer} follows links that other users of the machine put into a jail (CVE-2026-1386): install \
             1.13.2, 1.14.1 or later; jails below a directory that only root enters, as here, are not reachable for them"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_firecracker_out_of_a_jail_is_said_with_its_remedy() {
        let dynamic = Path::new("/bin/sh");
        let with = |jailer: &str| RuntimeSettings { firecracker_jailer: jailer.into(), ..Default::default() };
        let why = |settings: &RuntimeSettings, bin| decide(settings, bin).unwrap().unwrap_err();
        assert!(why(&with("none"), dynamic).contains("is none"));
        assert!(why(&with("/nowhere/jailer"), dynamic).contains("firecracker_jailer"));
        assert!(why(&with("/bin/true"), dynamic).contains("static build"));
        let strict = RuntimeSettings { require_jailer: true, ..with("none") };
        let error = decide(&strict, dynamic).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("require_jailer"), "{error}");
    }

    #[test]
    fn flawed_jailers_are_known() {
        for flawed in ["1.13.1", "1.10.0", "1.14.0"] {
            assert!(known_flaws(Version::parse(flawed).unwrap()).is_some(), "{flawed}");
        }
        for fixed in ["1.13.2", "1.14.1", "1.16.1"] {
            assert!(known_flaws(Version::parse(fixed).unwrap()).is_none(), "{fixed}");
        }
    }

    #[test]
    fn a_process_id_that_is_not_a_childs_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for bad in ["", "1", "-5", "x", "0"] {
            fs::write(file.path(), bad).unwrap();
            assert!(read_pid(file.path()).is_err(), "{bad:?} was accepted");
        }
        let parent = rustix::process::getppid().unwrap().as_raw_nonzero().to_string();
        fs::write(file.path(), parent).unwrap();
        assert!(read_pid(file.path()).unwrap_err().to_string().contains("not that of its firecracker"));
        let link = file.path().with_extension("link");
        std::os::unix::fs::symlink(file.path(), &link).unwrap();
        assert!(read_pid(&link).is_err());
        fs::remove_file(link).unwrap();
    }
}
