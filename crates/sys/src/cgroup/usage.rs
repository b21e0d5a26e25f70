//! What a group uses, by the counters of its controllers.

use std::fs;
use std::path::Path;

use beta9_types::Usage;
use rustix::time::{ClockId, clock_gettime};

use super::Cgroup;

/// Above it a limit of v1 means that there is none: it is the largest page-aligned number.
const UNLIMITED: u64 = 1 << 62;

impl Cgroup {
    /// The group's counters. What its hierarchies do not count is 0, or absent where it is a limit.
    pub fn usage(&self) -> Usage {
        let now = clock_gettime(ClockId::Monotonic);
        let at_ns = now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs();
        let mut usage = Usage { at_ns, ..Usage::default() };
        for hierarchy in &self.directories {
            match hierarchy.controller {
                "" => read_v2(&hierarchy.directory, &mut usage),
                "memory" => read_memory_v1(&hierarchy.directory, &mut usage),
                "pids" => read_pids(&hierarchy.directory, &mut usage),
                _ => {}
            }
        }
        for directory in self.everywhere() {
            // `cpu` and `cpuacct` may be one hierarchy or two.
            if let Some(nanoseconds) = number(&directory.join("cpuacct.usage")) {
                usage.cpu_ns = nanoseconds;
            }
            let file = directory.join("blkio.throttle.io_service_bytes");
            for line in fs::read_to_string(file).unwrap_or_default().lines() {
                match line.split_ascii_whitespace().collect::<Vec<_>>()[..] {
                    [_, "Read", bytes] => usage.block_read_bytes += bytes.parse().unwrap_or(0),
                    [_, "Write", bytes] => usage.block_write_bytes += bytes.parse().unwrap_or(0),
                    _ => {}
                }
            }
        }
        usage
    }
}

fn read_v2(directory: &Path, usage: &mut Usage) {
    usage.cpu_ns = field(&directory.join("cpu.stat"), "usage_usec").unwrap_or(0).saturating_mul(1000);
    let cache = field(&directory.join("memory.stat"), "inactive_file").unwrap_or(0);
    usage.memory_bytes = number(&directory.join("memory.current")).unwrap_or(0).saturating_sub(cache);
    usage.memory_limit_bytes = number(&directory.join("memory.max"));
    read_pids(directory, usage);
    for line in fs::read_to_string(directory.join("io.stat")).unwrap_or_default().lines() {
        let bytes = |name: &str| {
            let field = line.split_ascii_whitespace().find_map(|field| field.strip_prefix(name));
            field.and_then(|bytes| bytes.parse::<u64>().ok()).unwrap_or(0)
        };
        usage.block_read_bytes += bytes("rbytes=");
        usage.block_write_bytes += bytes("wbytes=");
    }
}

fn read_memory_v1(directory: &Path, usage: &mut Usage) {
    let cache = field(&directory.join("memory.stat"), "total_inactive_file").unwrap_or(0);
    usage.memory_bytes = number(&directory.join("memory.usage_in_bytes")).unwrap_or(0).saturating_sub(cache);
    usage.memory_limit_bytes =
        number(&directory.join("memory.limit_in_bytes")).filter(|limit| *limit < UNLIMITED);
}

fn read_pids(directory: &Path, usage: &mut Usage) {
    usage.pids = number(&directory.join("pids.current")).unwrap_or(0);
    usage.pids_limit = number(&directory.join("pids.max"));
}

/// The number that is all of a file; `max` is none.
fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The number after `name` and a space.
fn field(file: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(directory).unwrap();
        for (name, text) in files {
            fs::write(directory.join(name), text).unwrap();
        }
    }

    #[test]
    fn both_versions_are_read_alike() {
        let mount = tempfile::tempdir().unwrap();
        let at = |path: &str| mount.path().join(path);
        for controller in ["memory", "pids", "cpuacct", "blkio"] {
            write(&at(controller), &[("cgroup.procs", "")]);
        }
        write(
            &at("memory/g"),
            &[
                ("memory.usage_in_bytes", "5000\n"),
                ("memory.limit_in_bytes", "9223372036854771712\n"),
                ("memory.stat", "inactive_file 1\ntotal_inactive_file 1000\n"),
            ],
        );
        write(&at("pids/g"), &[("pids.current", "3\n"), ("pids.max", "max\n")]);
        write(&at("cpuacct/g"), &[("cpuacct.usage", "7000\n")]);
        let served = "8:0 Read 10\n8:0 Write 20\n8:16 Read 1\nTotal 31\n";
        write(&at("blkio/g"), &[("blkio.throttle.io_service_bytes", served)]);
        let v1 = Cgroup::below(mount.path(), Path::new("g")).usage();

        write(mount.path(), &[("cgroup.controllers", "memory")]);
        write(
            &at("g"),
            &[
                ("memory.current", "5000\n"),
                ("memory.max", "max\n"),
                ("memory.stat", "anon 1\ninactive_file 1000\n"),
                ("pids.current", "3\n"),
                ("pids.max", "max\n"),
                ("cpu.stat", "usage_usec 7\nuser_usec 1\n"),
                ("io.stat", "8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=1 wbytes=0\n"),
            ],
        );
        let v2 = Cgroup::below(mount.path(), Path::new("g")).usage();
        for usage in [v1, v2] {
            let expected = Usage {
                at_ns: usage.at_ns,
                cpu_ns: 7000,
                memory_bytes: 4000,
                pids: 3,
                block_read_bytes: 11,
                block_write_bytes: 20,
                ..Usage::default()
            };
            assert_eq!(usage, expected);
        }
    }
}
