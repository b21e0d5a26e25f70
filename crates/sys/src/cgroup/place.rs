//! Where on the machine a group runs, and its share of the disks.
//!
//! In v1 these are hierarchies that a group of ours is otherwise not in, so it has to claim them before anything enters it.

use std::fs;
use std::path::Path;

use super::{Cgroup, Hierarchy, create_all};
use crate::{Error, Result};

/// What of a disk is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Bytes read per second.
    ReadBytes,
    /// Bytes written per second.
    WriteBytes,
    /// Reads per second.
    ReadOperations,
    /// Writes per second.
    WriteOperations,
}

/// A limit of one disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Throttle {
    /// Of what.
    pub direction: Direction,
    /// The disk's major and minor number.
    pub device: (u64, u64),
    /// How many in a second; 0 lifts the limit.
    pub rate: u64,
}

impl Direction {
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::ReadBytes => ("blkio.throttle.read_bps_device", "rbps"),
            Self::WriteBytes => ("blkio.throttle.write_bps_device", "wbps"),
            Self::ReadOperations => ("blkio.throttle.read_iops_device", "riops"),
            Self::WriteOperations => ("blkio.throttle.write_iops_device", "wiops"),
        }
    }
}

impl Cgroup {
    /// Keeps the group to these CPUs and memory nodes, each a list such as `0-2,5`; all that there are where absent.
    /// Before anything enters it.
    pub fn confine(&mut self, cpus: Option<&str>, nodes: Option<&str>) -> Result<()> {
        if !self.is_v2() {
            self.open_cpuset()?;
        }
        let Some(directory) = self.claim("cpuset")? else { return Err(missing("cpuset")) };
        let is_v1 = !self.is_v2();
        for (name, wanted) in [("cpuset.cpus", cpus), ("cpuset.mems", nodes)] {
            let file = directory.join(name);
            let value = match wanted {
                Some(list) => list.to_owned(),
                // In v1 a new group has none, and nothing can enter it.
                None if is_v1 => {
                    let above = directory.parent().unwrap_or(&directory).join(name);
                    fs::read_to_string(&above).map_err(|e| Error::at("read", &above, e))?.trim().to_owned()
                }
                None => continue,
            };
            fs::write(&file, value).map_err(|e| Error::at("write cgroup limit", &file, e))?;
        }
        Ok(())
    }

    /// Sets the group's share of the disks among competitors, 10 to 1000. Before anything enters it.
    pub fn share_disks(&mut self, weight: u16) -> Result<()> {
        let Some(directory) = self.claim("blkio")? else { return Err(missing("blkio")) };
        // v2's weights go from 1 to 10000; this is how runtimes map one to the other.
        let weight = weight.clamp(10, 1000);
        let candidates = if self.is_v2() {
            let wide = 1 + (u64::from(weight) - 10) * 9999 / 990;
            [("io.bfq.weight", weight.to_string()), ("io.weight", wide.to_string())]
        } else {
            [("blkio.weight", weight.to_string()), ("blkio.bfq.weight", weight.to_string())]
        };
        let there = candidates.iter().map(|(name, value)| (directory.join(name), value));
        match there.clone().find(|(file, _)| file.exists()) {
            Some((file, value)) => {
                fs::write(&file, value).map_err(|e| Error::at("write cgroup limit", &file, e))
            }
            None => Err(missing("blkio weights")),
        }
    }

    /// Limits a disk. Before anything enters the group, or when the group is in the disks' hierarchy already.
    pub fn throttle(&mut self, throttle: &Throttle) -> Result<()> {
        let Some(directory) = self.claim("blkio")? else { return Err(missing("blkio")) };
        let Throttle { direction, device: (major, minor), rate } = throttle;
        let (v1, v2) = direction.names();
        let (name, value) = if self.is_v2() {
            let rate = if *rate == 0 { "max".to_owned() } else { rate.to_string() };
            ("io.max", format!("{major}:{minor} {v2}={rate}"))
        } else {
            (v1, format!("{major}:{minor} {rate}"))
        };
        let file = directory.join(name);
        fs::write(&file, value).map_err(|e| Error::at("write cgroup limit", &file, e))
    }

    /// Makes the group in a controller's hierarchy, so that what enters the group enters there, too. `None` where there is
    /// no such hierarchy.
    fn claim(&mut self, controller: &'static str) -> Result<Option<std::path::PathBuf>> {
        if let Some(one) =
            self.directories.iter().find(|one| matches!(one.controller, "") || one.controller == controller)
        {
            return Ok(Some(one.directory.clone()));
        }
        // `cpu` and `cpuacct` may be one mount with two names; these two never are.
        let depth = self.path.components().count();
        let is_wanted = |directory: &Path| {
            directory.ancestors().nth(depth).and_then(Path::file_name).is_some_and(|name| name == controller)
        };
        let Some(index) = self.unused.iter().position(|directory| is_wanted(directory)) else {
            return Ok(None);
        };
        let directory = self.unused.remove(index);
        if !directory.ancestors().any(|above| above.join("cgroup.procs").exists()) {
            return Ok(None);
        }
        create_all(&directory).map_err(|e| Error::at("create cgroup", &directory, e))?;
        self.directories.push(Hierarchy { controller, directory: directory.clone() });
        Ok(Some(directory))
    }
}

fn missing(what: &str) -> Error {
    let cause =
        std::io::Error::new(std::io::ErrorKind::Unsupported, "this host has no such cgroup controller");
    Error::at("use cgroup controller", what, cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Cgroup) {
        let mount = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = mount.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let group = Cgroup::below(mount.path(), Path::new("beta9/x"));
        (mount, group)
    }

    #[test]
    fn a_group_is_confined_in_either_version() {
        let root = [
            ("memory/cgroup.procs", ""),
            ("cpuset/cgroup.procs", ""),
            ("cpuset/cgroup.sane_behavior", "0"),
            ("cpuset/cpuset.cpus", "0-3\n"),
            ("cpuset/cpuset.mems", "0\n"),
            ("cpuset/beta9/cpuset.cpus", ""),
            ("cpuset/beta9/cpuset.mems", ""),
        ];
        let (mount, mut v1) = host(&root);
        v1.confine(Some("1,2"), None).unwrap();
        let read = |name: &str| fs::read_to_string(mount.path().join("cpuset/beta9").join(name)).unwrap();
        assert_eq!((read("x/cpuset.cpus"), read("x/cpuset.mems")), ("1,2".into(), "0".into()));
        assert_eq!(read("cpuset.cpus"), "0-3");
        // What enters the group from now on enters there, too.
        assert!(v1.directories.iter().any(|one| one.controller == "cpuset"));

        let (mount, mut v2) = host(&[("cgroup.controllers", "cpuset io"), ("beta9/x/cgroup.procs", "")]);
        v2.confine(Some("1"), None).unwrap();
        assert_eq!(fs::read_to_string(mount.path().join("beta9/x/cpuset.cpus")).unwrap(), "1");
        assert!(!mount.path().join("beta9/x/cpuset.mems").exists());
    }

    #[test]
    fn disks_are_limited_in_either_version() {
        let throttle = Throttle { direction: Direction::WriteBytes, device: (8, 16), rate: 1024 };
        let (mount, mut v1) = host(&[("blkio/cgroup.procs", ""), ("memory/cgroup.procs", "")]);
        v1.throttle(&throttle).unwrap();
        let file = mount.path().join("blkio/beta9/x/blkio.throttle.write_bps_device");
        assert_eq!(fs::read_to_string(file).unwrap(), "8:16 1024");

        let (mount, mut v2) = host(&[
            ("cgroup.controllers", "io"),
            ("beta9/x/cgroup.procs", ""),
            ("beta9/x/io.weight", "default 100"),
        ]);
        v2.throttle(&throttle).unwrap();
        v2.share_disks(1000).unwrap();
        let read = |name: &str| fs::read_to_string(mount.path().join("beta9/x").join(name)).unwrap();
        assert_eq!((read("io.max"), read("io.weight")), ("8:16 wbps=1024".into(), "10000".into()));
        v2.throttle(&Throttle { rate: 0, ..throttle }).unwrap();
        assert_eq!(read("io.max"), "8:16 wbps=max");
    }

    #[test]
    fn a_host_without_the_controller_says_so() {
        let (_mount, mut group) = host(&[("memory/cgroup.procs", "")]);
        let error = beta9_chain(&group.confine(Some("0"), None).unwrap_err());
        assert!(error.contains("cpuset") && error.contains("no such cgroup controller"), "{error}");
    }

    fn beta9_chain(error: &dyn std::error::Error) -> String {
        beta9_types::chain(error)
    }
}
