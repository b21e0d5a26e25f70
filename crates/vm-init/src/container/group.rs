//! The container's cgroup in the guest: what limits it, and what kills all of it at once.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use beta9_sys::cgroup::Cgroup;
use beta9_types::ContainerId;
use beta9_wire::Resources;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Timespec;
use rustix::process::Pid;

use crate::failure::{Context, Result};

/// What of the machine's memory a container without a limit does not get: the larger of these two.
const RESERVE: u64 = 48 << 20;
const RESERVE_SHARE: u64 = 10;

/// The group of one container. Dropping it kills what is left in it and removes it.
pub(super) struct Group {
    cgroup: Cgroup,
    directory: PathBuf,
}

impl Group {
    /// Makes the group with its limits.
    ///
    /// Memory is always limited, so that it is the container and not the machine that runs out of it. A single process
    /// is killed for memory then, not the group: what docker does.
    pub(super) fn create(id: &ContainerId, resources: &Resources) -> Result<Self> {
        let path = Path::new("beta9").join(id.as_str());
        let group = Self { cgroup: Cgroup::at(&path), directory: Path::new("/sys/fs/cgroup").join(&path) };
        group.cgroup.create().context(|| "make the container's cgroup")?;
        let memory = match resources.memory_max {
            Some(bytes) => bytes,
            None => unreserved_memory()?,
        };
        group.write("memory.max", &memory.to_string())?;
        if let Some(count) = resources.pids_max {
            group.write("pids.max", &count.to_string())?;
        }
        if let Some((quota, period)) = resources.cpu_max {
            group.write("cpu.max", &format!("{quota} {period}"))?;
        }
        Ok(group)
    }

    fn write(&self, file: &str, value: &str) -> Result<()> {
        fs::write(self.directory.join(file), value).context(|| format!("set {file} to {value}"))
    }

    /// Moves a process into the group.
    pub(crate) fn add(&self, pid: Pid) -> Result<()> {
        self.write("cgroup.procs", &pid.as_raw_nonzero().to_string())
    }

    /// What is needed to move processes into the group, also while it is being removed.
    pub(super) fn door(&self) -> Door {
        Door(self.directory.join("cgroup.procs"))
    }

    /// Every process of the group.
    pub(super) fn processes(&self) -> Vec<Pid> {
        self.cgroup.processes()
    }

    /// How often the kernel killed a process of the group for memory.
    pub(super) fn oom_kills(&self) -> u64 {
        self.cgroup.oom_kills()
    }

    /// Kills every process of the group and waits until it is empty; `false` if it is not by the deadline.
    pub(super) fn kill(&self, deadline: Duration) -> bool {
        let end = Instant::now() + deadline;
        let _ = fs::write(self.directory.join("cgroup.kill"), "1");
        let events = self.directory.join("cgroup.events");
        while let Ok(file) = File::open(&events) {
            // The read arms the event: a change after it wakes the poll below.
            let populated = std::io::read_to_string(&file).is_ok_and(|text| text.contains("populated 1"));
            if !populated {
                return true;
            }
            let rest = end.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return false;
            }
            let timeout = Timespec { tv_sec: rest.as_secs() as i64, tv_nsec: rest.subsec_nanos().into() };
            let _ = poll(&mut [PollFd::from_borrowed_fd(file.as_fd(), PollFlags::PRI)], Some(&timeout));
        }
        true
    }
}

/// The way into a group.
pub(super) struct Door(PathBuf);

impl Door {
    /// Moves a process into the group.
    pub(super) fn add(&self, pid: Pid) -> Result<()> {
        let pid = pid.as_raw_nonzero().to_string();
        fs::write(&self.0, pid).context(|| "move a process into the container's cgroup")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill(Duration::from_secs(2));
        if let Err(error) = self.cgroup.remove() {
            crate::report::warn(&beta9_types::chain(&error));
        }
    }
}

fn unreserved_memory() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context(|| "read /proc/meminfo")?;
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    let total = kib.and_then(|kib| kib.trim().parse::<u64>().ok()).unwrap_or(0) << 10;
    Ok(total.saturating_sub(RESERVE.max(total / RESERVE_SHARE)))
}
