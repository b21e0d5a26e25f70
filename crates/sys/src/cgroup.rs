//! One container's cgroup on the host, on cgroup v1, v2 and the hybrid of both.
//!
//! v1 has one tree per controller and no way to kill a group at once; v2 has one tree and `cgroup.kill`
//! (Linux 5.14). The functions here hide the difference for the few things the host needs: make, limit,
//! enter, count, kill, remove, and read the kernel's OOM count.

mod disk;
mod place;
mod usage;

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::{Error, Result};

pub use disk::disk_of;
pub use place::{Direction, Throttle};

/// v1 controllers that a group of ours is made in: the ones with limits that we set or read.
const V1_CONTROLLERS: [&str; 4] = ["memory", "pids", "cpu", "freezer"];

/// A cgroup below the root, in each hierarchy that matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    /// Path below the root of each hierarchy, for example `beta9/3f2a`.
    path: PathBuf,
    /// The group's directory in every hierarchy.
    directories: Vec<Hierarchy>,
    /// Where it would be in the v1 hierarchies that nobody here uses, and in which runtime programs make it anyway.
    unused: Vec<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    /// v1 controller name; empty for v2.
    controller: &'static str,
    directory: PathBuf,
}

/// What [`Cgroup::freeze`] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freeze {
    /// Nothing of the group runs.
    Frozen,
    /// Everything does.
    Thawed,
}

/// An opened `cgroup.procs` of every hierarchy of a group.
#[derive(Debug)]
pub struct CgroupEntrance {
    pub(crate) files: Vec<fs::File>,
}

impl Cgroup {
    /// Names the group `path` (relative, without `..`) in the hierarchies mounted at `/sys/fs/cgroup`. Makes nothing.
    pub fn at(path: impl AsRef<Path>) -> Self {
        Self::below(Path::new("/sys/fs/cgroup"), path.as_ref())
    }

    /// A group in no hierarchy: entering and limiting it does nothing. For probes and tests on machines without
    /// cgroups of their own.
    pub fn none() -> Self {
        Self { path: PathBuf::new(), directories: Vec::new(), unused: Vec::new() }
    }

    fn below(mount: &Path, path: &Path) -> Self {
        let hierarchy = |controller, root: PathBuf| Hierarchy { controller, directory: root.join(path) };
        let directories = if mount.join("cgroup.controllers").exists() {
            vec![hierarchy("", mount.to_owned())]
        } else {
            let v1 = V1_CONTROLLERS.iter().map(|name| hierarchy(name, mount.join(name)));
            v1.filter(|h| h.directory.ancestors().any(|dir| dir.join("cgroup.procs").exists())).collect()
        };
        let unused = if directories.iter().any(|h| h.controller.is_empty()) {
            Vec::new()
        } else {
            // `cpuacct` may be a link to `cpu,cpuacct`; a group that is not there is removed as easily as one that is.
            let names =
                fs::read_dir(mount).into_iter().flatten().flatten().map(|entry| entry.path().join(path));
            names.filter(|directory| directories.iter().all(|h| h.directory != *directory)).collect()
        };
        Self { path: path.to_owned(), directories, unused }
    }

    /// The path in the form of an OCI `linux.cgroupsPath`: absolute below the hierarchy's root.
    pub fn oci_path(&self) -> PathBuf {
        Path::new("/").join(&self.path)
    }

    /// Makes the group where it is missing.
    pub fn create(&self) -> Result<()> {
        for Hierarchy { controller, directory } in &self.directories {
            create_all(directory).map_err(|e| Error::at("create cgroup", directory, e))?;
            if controller.is_empty() {
                delegate_v2(directory);
            }
        }
        Ok(())
    }

    /// Moves a process, with all its threads, into the group.
    pub fn add(&self, pid: u32) -> Result<()> {
        for Hierarchy { directory, .. } in &self.directories {
            let file = directory.join("cgroup.procs");
            fs::write(&file, pid.to_string()).map_err(|e| Error::at("enter cgroup", &file, e))?;
        }
        Ok(())
    }

    /// Opens the group's door, for a child to step through before it executes its program: see
    /// [`CommandExtra::enter_cgroup`](crate::command::CommandExtra::enter_cgroup).
    pub fn entrance(&self) -> Result<CgroupEntrance> {
        let open = |hierarchy: &Hierarchy| {
            let file = hierarchy.directory.join("cgroup.procs");
            fs::OpenOptions::new().write(true).open(&file).map_err(|e| Error::at("open cgroup", &file, e))
        };
        let files = self.directories.iter().map(open).collect::<Result<Vec<_>>>()?;
        Ok(CgroupEntrance { files })
    }

    /// Limits the group's memory to `bytes`.
    pub fn limit_memory(&self, bytes: u64) -> Result<()> {
        self.write("memory", "memory.limit_in_bytes", "memory.max", &bytes.to_string())
    }

    /// Limits the number of processes and threads in the group.
    pub fn limit_pids(&self, count: u64) -> Result<()> {
        self.write("pids", "pids.max", "pids.max", &count.to_string())
    }

    /// Limits the group's processor time to `quota` of every `period` microseconds.
    pub fn limit_cpu(&self, quota: u64, period: u64) -> Result<()> {
        for Hierarchy { controller, directory } in &self.directories {
            let writes: &[(&str, String)] = match *controller {
                "" => &[("cpu.max", format!("{quota} {period}"))],
                "cpu" => {
                    &[("cpu.cfs_period_us", period.to_string()), ("cpu.cfs_quota_us", quota.to_string())]
                }
                _ => &[],
            };
            for (name, value) in writes {
                let file = directory.join(name);
                fs::write(&file, value).map_err(|e| Error::at("write cgroup limit", &file, e))?;
            }
        }
        Ok(())
    }

    /// Stops the group's processes where they are, or lets them go on. The kernel does it soon after this returns.
    pub fn freeze(&self, freeze: Freeze) -> Result<()> {
        let (v1, v2) = match freeze {
            Freeze::Frozen => ("FROZEN", "1"),
            Freeze::Thawed => ("THAWED", "0"),
        };
        for Hierarchy { controller, directory } in &self.directories {
            let (name, value) = match *controller {
                "" => ("cgroup.freeze", v2),
                "freezer" => ("freezer.state", v1),
                _ => continue,
            };
            let file = directory.join(name);
            fs::write(&file, value).map_err(|e| Error::at("write", &file, e))?;
        }
        Ok(())
    }

    /// Sets the group's share of CPU time among competitors: 1024 is what a group has by itself (2 to 262144).
    pub fn share_cpu(&self, shares: u64) -> Result<()> {
        let shares = shares.clamp(2, 262_144);
        // v2's weights go from 1 to 10000; this is how runtimes map one to the other.
        let weight = 1 + (shares - 2) * 9999 / 262_142;
        self.write(
            "cpu",
            "cpu.shares",
            "cpu.weight",
            if self.is_v2() { weight } else { shares }.to_string().as_str(),
        )
    }

    /// Memory that the group keeps when the host runs short.
    pub fn reserve_memory(&self, bytes: u64) -> Result<()> {
        self.write("memory", "memory.soft_limit_in_bytes", "memory.low", &bytes.to_string())
    }

    /// Gives the groups above this one in v1's cpuset hierarchy all CPUs and memory nodes: unlike everywhere else a new
    /// group there has none, and its members could get none. For a program that makes the group itself.
    pub fn open_cpuset(&self) -> Result<()> {
        for directory in &self.unused {
            let Some(parent) = directory.parent() else { continue };
            let mut above: Vec<_> =
                parent.ancestors().take_while(|dir| !dir.join("cgroup.sane_behavior").exists()).collect();
            let Some(root) = above.last().and_then(|top| top.parent()) else { continue };
            if !root.join("cpuset.cpus").exists() {
                continue;
            }
            create_all(parent).map_err(|e| Error::at("create cgroup", parent, e))?;
            above.reverse();
            for (directory, name) in
                above.into_iter().flat_map(|dir| ["cpuset.cpus", "cpuset.mems"].map(|name| (dir, name)))
            {
                let file = directory.join(name);
                let read = |path: &Path| fs::read_to_string(path).map_err(|e| Error::at("read", path, e));
                if read(&file)?.trim().is_empty() {
                    let all = read(&root.join(name))?;
                    fs::write(&file, all.trim()).map_err(|e| Error::at("write", &file, e))?;
                }
            }
        }
        Ok(())
    }

    fn is_v2(&self) -> bool {
        self.directories.iter().any(|hierarchy| hierarchy.controller.is_empty())
    }

    fn write(&self, controller: &str, v1: &str, v2: &str, value: &str) -> Result<()> {
        for hierarchy in &self.directories {
            let name = if hierarchy.controller.is_empty() { v2 } else { v1 };
            if hierarchy.controller.is_empty() || hierarchy.controller == controller {
                let file = hierarchy.directory.join(name);
                fs::write(&file, value).map_err(|e| Error::at("write cgroup limit", &file, e))?;
            }
        }
        Ok(())
    }

    /// How often the kernel killed a process of the group for memory (`oom_kill`), descendants included.
    pub fn oom_kills(&self) -> u64 {
        let read = |hierarchy: &Hierarchy| {
            let file = match hierarchy.controller {
                "" => "memory.events",
                "memory" => "memory.oom_control",
                _ => return None,
            };
            let text = fs::read_to_string(hierarchy.directory.join(file)).ok()?;
            text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
        };
        self.directories.iter().filter_map(read).max().unwrap_or(0)
    }

    /// Gets this program's processes out of the way of limits (v2): a group that has processes of its own hands no
    /// controller down (kernel `cgroup-v2.rst`, "No Internal Process Constraint"). In a container whose cgroup
    /// namespace begins at its own group that is the root that we see, and every process in it moves to `group`.
    /// Returns how many moved. On the machine's real root, on v1, and where controllers are handed down already,
    /// nothing is done.
    pub fn leave_root(group: impl AsRef<Path>) -> Result<usize> {
        Self::leave(Path::new("/sys/fs/cgroup"), group.as_ref())
    }

    fn leave(mount: &Path, group: &Path) -> Result<usize> {
        // The real root has no `cgroup.type`, and no constraint.
        let is_namespaced = mount.join("cgroup.controllers").exists() && mount.join("cgroup.type").exists();
        let handed_down = fs::read_to_string(mount.join("cgroup.subtree_control")).unwrap_or_default();
        if !is_namespaced || !handed_down.trim().is_empty() {
            return Ok(0);
        }
        let leaf = mount.join(group);
        fs::create_dir_all(&leaf).map_err(|e| Error::at("create cgroup", &leaf, e))?;
        let source = mount.join("cgroup.procs");
        let text = fs::read_to_string(&source).map_err(|e| Error::at("read cgroup", &source, e))?;
        let door = leaf.join("cgroup.procs");
        let mut moved = 0;
        for pid in text.lines() {
            match fs::write(&door, pid) {
                Ok(()) => moved += 1,
                // It ended meanwhile.
                Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
                Err(e) => return Err(Error::at("enter cgroup", &door, e)),
            }
        }
        Ok(moved)
    }

    /// The processes in the group and below it.
    pub fn processes(&self) -> Vec<Pid> {
        let mut pids: Vec<i32> = Vec::new();
        for hierarchy in &self.directories {
            for directory in with_descendants(&hierarchy.directory) {
                let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
                pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
            }
        }
        pids.sort_unstable();
        pids.dedup();
        pids.into_iter().filter_map(Pid::from_raw).collect()
    }

    /// Kills every process of the group and waits until it is empty. `false` if some survived `deadline`.
    pub fn kill(&self, deadline: Duration) -> bool {
        let end = Instant::now() + deadline;
        // A frozen process of v1 does not even die.
        let _ = self.freeze(Freeze::Thawed);
        loop {
            let processes = self.processes();
            if processes.is_empty() {
                return true;
            }
            if Instant::now() >= end {
                return false;
            }
            for pid in processes {
                // It may be gone by now: that is what was wanted.
                let _ = kill_process(pid, Signal::KILL);
            }
            // A killed process leaves its group when it is scheduled next; v1 has no event for it.
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn everywhere(&self) -> impl Iterator<Item = &PathBuf> {
        self.directories.iter().map(|hierarchy| &hierarchy.directory).chain(&self.unused)
    }

    /// Removes the group and what is below it. Missing is fine; processes inside are an error.
    pub fn remove(&self) -> Result<()> {
        for directory in self.everywhere() {
            let mut directories = with_descendants(directory);
            directories.reverse();
            for directory in directories {
                remove_group(&directory)?;
            }
        }
        Ok(())
    }
}

/// Another container's end may remove the common parent between two of our steps; then they are taken again.
fn create_all(directory: &Path) -> io::Result<()> {
    for _ in 0..10 {
        match fs::create_dir_all(directory) {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            other => return other,
        }
    }
    fs::create_dir_all(directory)
}

/// Makes the limits that we use available in `directory`, which its ancestors have to hand down (v2).
fn delegate_v2(directory: &Path) {
    let mut ancestors: Vec<_> =
        directory.ancestors().skip(1).take_while(|dir| dir.join("cgroup.controllers").exists()).collect();
    ancestors.reverse();
    for ancestor in ancestors {
        for controller in ["+memory", "+pids", "+cpu", "+io", "+cpuset"] {
            // A controller that the host keeps for v1 or does not have shows when its limit is written.
            let _ = fs::write(ancestor.join("cgroup.subtree_control"), controller);
        }
    }
}

/// A just-emptied group can be busy for a moment while the kernel lets go of its last process.
fn remove_group(directory: &Path) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(2);
    loop {
        match fs::remove_dir(directory) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) if is_busy(&e) && Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
            Err(e) => return Err(Error::at("remove cgroup", directory, e)),
        }
    }
}

fn is_busy(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBUSY)
}

/// A group's directory and all below it, parents first.
fn with_descendants(directory: &Path) -> Vec<PathBuf> {
    let mut found = vec![directory.to_owned()];
    let mut next = 0;
    while next < found.len() {
        if let Ok(entries) = fs::read_dir(&found[next]) {
            found.extend(
                entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()),
            );
        }
        next += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v2_and_v1_trees_are_told_apart_by_their_files() {
        let mount = tempfile::tempdir().unwrap();
        fs::create_dir(mount.path().join("memory")).unwrap();
        fs::write(mount.path().join("memory/cgroup.procs"), "").unwrap();
        let v1 = Cgroup::below(mount.path(), Path::new("beta9/x"));
        assert_eq!(v1.directories.len(), 1);
        assert_eq!(v1.directories[0].directory, mount.path().join("memory/beta9/x"));

        fs::write(mount.path().join("cgroup.controllers"), "memory").unwrap();
        let v2 = Cgroup::below(mount.path(), Path::new("beta9/x"));
        assert_eq!(v2.directories[0].directory, mount.path().join("beta9/x"));
        assert_eq!(v2.oci_path(), Path::new("/beta9/x"));
    }

    #[test]
    fn processes_leave_a_group_that_looks_like_a_root() {
        let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
        let Some(v2) = mounts.map(Path::new).into_iter().find(|m| m.join("cgroup.controllers").exists())
        else {
            eprintln!("skipped: no cgroup v2 is mounted");
            return;
        };
        let root = v2.join(format!("beta9.test-{}", std::process::id()));
        if fs::create_dir(&root).is_err() {
            eprintln!("skipped: cgroups need root");
            return;
        }
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        fs::write(root.join("cgroup.procs"), child.id().to_string()).unwrap();

        assert_eq!(Cgroup::leave(&root, Path::new("worker")).unwrap(), 1);
        assert_eq!(fs::read_to_string(root.join("cgroup.procs")).unwrap(), "");
        let leaf = fs::read_to_string(root.join("worker/cgroup.procs")).unwrap();
        assert_eq!(leaf.trim(), child.id().to_string());
        assert_eq!(Cgroup::leave(&root, Path::new("worker")).unwrap(), 0);

        child.kill().unwrap();
        child.wait().unwrap();
        remove_group(&root.join("worker")).unwrap();
        remove_group(&root).unwrap();
    }

    #[test]
    fn oom_counts_are_read_from_both_versions() {
        let mount = tempfile::tempdir().unwrap();
        let group = mount.path().join("memory/g");
        fs::create_dir_all(&group).unwrap();
        fs::write(mount.path().join("memory/cgroup.procs"), "").unwrap();
        fs::write(group.join("memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n").unwrap();
        assert_eq!(Cgroup::below(mount.path(), Path::new("g")).oom_kills(), 3);

        fs::write(mount.path().join("cgroup.controllers"), "memory").unwrap();
        fs::create_dir_all(mount.path().join("g")).unwrap();
        fs::write(mount.path().join("g/memory.events"), "low 0\noom 1\noom_kill 2\n").unwrap();
        assert_eq!(Cgroup::below(mount.path(), Path::new("g")).oom_kills(), 2);
    }
}
