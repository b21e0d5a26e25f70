//! Everything that the kernel shows in files.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Kind, Scope, Snapshot};
use crate::{Error, Result};

/// Bytes of a command line that are shown.
const SHOWN: usize = 300;

pub(super) fn processes(snapshot: &mut Snapshot) -> Result<()> {
    let this = std::process::id();
    for entry in directory(Path::new("/proc"))? {
        let pid = entry.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<u32>().ok());
        // One that ends while it is looked at is not there.
        if let Some(pid) = pid
            && pid != this
            && let Some(process) = Process::read(&entry)
            && !process.is_kernel_thread
        {
            snapshot.add_as(Kind::Process, format!("{pid} since {}", process.start), process.describe(pid));
        }
    }
    Ok(())
}

struct Process {
    is_kernel_thread: bool,
    /// Ticks since boot: with the pid, this is one process for ever.
    start: String,
    state: String,
    name: String,
    command_line: String,
    program: PathBuf,
    cgroups: String,
}

impl Process {
    fn read(directory: &Path) -> Option<Self> {
        /// `PF_KTHREAD` of the kernel's `include/linux/sched.h`.
        const KERNEL_THREAD: u32 = 0x0020_0000;
        let stat = fs::read_to_string(directory.join("stat")).ok()?;
        // The name is in parentheses and may hold anything, parentheses included.
        let (head, fields) = stat.rsplit_once(") ")?;
        let fields: Vec<_> = fields.split_ascii_whitespace().collect();
        let flags: u32 = fields.get(6)?.parse().ok()?;
        let command_line = fs::read(directory.join("cmdline")).ok()?;
        let mut command_line = String::from_utf8_lossy(&command_line).replace('\0', " ");
        command_line.truncate(command_line.floor_char_boundary(SHOWN));
        let groups = fs::read_to_string(directory.join("cgroup")).ok()?;
        let groups: BTreeSet<_> = groups.lines().filter_map(|line| line.splitn(3, ':').nth(2)).collect();
        Some(Self {
            is_kernel_thread: flags & KERNEL_THREAD != 0,
            start: (*fields.get(19)?).to_owned(),
            state: (*fields.first()?).to_owned(),
            name: head.split_once('(')?.1.to_owned(),
            command_line,
            program: fs::read_link(directory.join("exe")).unwrap_or_default(),
            cgroups: groups.into_iter().filter(|group| *group != "/").collect::<Vec<_>>().join(" "),
        })
    }

    fn describe(&self, pid: u32) -> String {
        let mut text = format!("{pid} {} `{}`", self.name, self.command_line.trim_end());
        if self.state == "Z" {
            text.push_str(" (ended, nobody waited for it)");
        }
        for (word, value) in [(" runs ", &*self.program.to_string_lossy()), (" in cgroup ", &*self.cgroups)] {
            if !value.is_empty() {
                text.push_str(word);
                text.push_str(value);
            }
        }
        text
    }
}

pub(super) fn mounts(snapshot: &mut Snapshot) -> Result<()> {
    for line in read("/proc/self/mountinfo")?.lines() {
        let fields: Vec<_> = line.split(' ').collect();
        let [id, _parent, _device, root, place, ..] = fields[..] else { continue };
        let after_dash = fields.iter().skip_while(|field| **field != "-").skip(1);
        let kind_and_source: Vec<_> = after_dash.take(2).copied().collect();
        let what = format!("{place} is {} of {root}", kind_and_source.join(" "));
        snapshot.add_as(Kind::Mount, format!("{id} {what}"), what);
    }
    Ok(())
}

pub(super) fn loop_devices(snapshot: &mut Snapshot) -> Result<()> {
    for device in directory(Path::new("/sys/block"))? {
        // The file is there while a file is attached.
        if let Ok(backing) = fs::read_to_string(device.join("loop/backing_file")) {
            let name = device.file_name().unwrap_or_default().to_string_lossy();
            snapshot.add(Kind::LoopDevice, format!("/dev/{name} on {}", backing.trim_end()));
        }
    }
    Ok(())
}

pub(super) fn cgroups(group: &Path, snapshot: &mut Snapshot) -> Result<()> {
    for path in directory(group)? {
        // Links lead to hierarchies of several controllers, which are visited at their own place.
        if path.is_dir() && !path.is_symlink() {
            if path.join("cgroup.procs").exists() {
                snapshot.add(Kind::Cgroup, path.display().to_string());
            }
            cgroups(&path, snapshot)?;
        }
    }
    Ok(())
}

pub(super) fn unix_sockets(scope: &Scope, snapshot: &mut Snapshot) -> Result<()> {
    let text = read("/proc/net/unix")?;
    let bound = text.lines().filter_map(|line| line.split_ascii_whitespace().nth(7));
    // A listener and what it accepted share a path.
    let bound: BTreeSet<_> = bound.filter(|path| scope.holds(Path::new(path))).collect();
    for path in bound {
        snapshot.add(Kind::UnixSocket, path.to_owned());
    }
    Ok(())
}

/// Adds what is below `directory` on its own file system: what is below a mount is the mount's.
pub(super) fn paths(scope: &Scope, root: &Path, snapshot: &mut Snapshot) -> Result<()> {
    let Some(device) = metadata(root)?.map(|metadata| metadata.dev()) else { return Ok(()) };
    let mut directories = vec![root.to_owned()];
    while let Some(parent) = directories.pop() {
        for path in directory(&parent)? {
            if scope.is_exception(&path) {
                continue;
            }
            let Some(metadata) = metadata(&path)? else { continue };
            snapshot.add(Kind::Path, path.display().to_string());
            if metadata.is_dir() && metadata.dev() == device {
                directories.push(path);
            }
        }
    }
    Ok(())
}

/// The entries of a directory; none if it went away.
fn directory(path: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(path).and_then(|entries| {
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()
    });
    match entries {
        Err(error) if went_away(&error) => Ok(Vec::new()),
        entries => entries.map_err(|error| Error::new("list", path, error)),
    }
}

fn metadata(path: &Path) -> Result<Option<fs::Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if went_away(&error) => Ok(None),
        Err(error) => Err(Error::new("look at", path, error)),
    }
}

/// Cgroups say `ENODEV` when they are removed while they are read.
fn went_away(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

fn read(path: &str) -> Result<String> {
    let bytes = fs::read(path).map_err(|error| Error::new("read", path, error))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
