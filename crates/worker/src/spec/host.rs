//! What the host's cgroups can limit, and what there is to be limited.

use std::fs;
use std::path::Path;

use beta9_types::CpuSet;

/// Facts about this host that decide whether a limit can be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostLimits {
    /// Swap is counted.
    pub(crate) swap: bool,
    /// Disks are shared by weight.
    pub(crate) disk_weight: bool,
    /// CPUs that run.
    pub(crate) cpus: Vec<u16>,
}

impl HostLimits {
    /// Looks at this host.
    pub(crate) fn of_host() -> Self {
        Self::of(
            Path::new("/sys/fs/cgroup"),
            &fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default(),
        )
    }

    fn of(mount: &Path, online: &str) -> Self {
        let cpus = online.trim().parse::<CpuSet>().map(|set| set.numbers().collect()).unwrap_or_default();
        if !mount.join("cgroup.controllers").exists() {
            let has = |file: &str| mount.join(file).exists();
            return Self {
                swap: has("memory/memory.memsw.limit_in_bytes"),
                disk_weight: has("blkio/blkio.weight") || has("blkio/blkio.bfq.weight"),
                cpus,
            };
        }
        // The root of v2 has no limits: a group below it that has the controllers shows what there is.
        let has = |names: &[&str]| {
            let groups = fs::read_dir(mount).into_iter().flatten().flatten();
            groups.map(|group| group.path()).any(|group| names.iter().any(|name| group.join(name).exists()))
        };
        Self { swap: has(&["memory.swap.max"]), disk_weight: has(&["io.weight", "io.bfq.weight"]), cpus }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_of_cgroups_are_looked_at() {
        let mount = tempfile::tempdir().unwrap();
        let make = |path: &str| {
            let path = mount.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        };
        make("memory/memory.memsw.limit_in_bytes");
        let v1 = HostLimits::of(mount.path(), "0-1,3\n");
        assert_eq!(v1, HostLimits { swap: true, disk_weight: false, cpus: vec![0, 1, 3] });
        make("cgroup.controllers");
        assert!(!HostLimits::of(mount.path(), "0").swap);
        make("system.slice/memory.swap.max");
        make("system.slice/io.weight");
        let v2 = HostLimits::of(mount.path(), "0");
        assert!(v2.swap && v2.disk_weight);
    }
}
