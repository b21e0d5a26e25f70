use serde::{Deserialize, Serialize};

/// What a container uses, by the counters of its cgroup at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// When it was read, in nanoseconds of a clock that only this container's readings share.
    pub at_ns: u64,
    /// Processor time since the container's start.
    pub cpu_ns: u64,
    /// Memory without the file cache that the kernel would give back first.
    pub memory_bytes: u64,
    /// Its memory limit, where it has one.
    pub memory_limit_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: u64,
    /// Their limit, where there is one.
    pub pids_limit: Option<u64>,
    /// Bytes read from block devices.
    pub block_read_bytes: u64,
    /// Bytes written to block devices.
    pub block_write_bytes: u64,
    /// Memory on the host of the programs that run a VM, the guest's memory included. Absent without a VM.
    pub vm_bytes: Option<u64>,
}

/// One process of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Process id as the container sees it.
    pub pid: u32,
    /// Its parent's; 0 when that is outside.
    pub parent: u32,
    /// User id.
    pub uid: u32,
    /// Processor time in milliseconds.
    pub cpu_ms: u64,
    /// Program and arguments, separated by spaces; the kernel's name for it where they are empty.
    pub command: String,
}

/// Limits to change. What is absent stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LimitChange {
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Memory and swap together, in bytes, where the host's kernel limits both.
    pub memory_swap_bytes: Option<u64>,
    /// Processor time in billionths of a processor.
    pub nano_cpus: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

impl LimitChange {
    /// The period over which processor time is limited, in microseconds: the kernel's default.
    pub const CPU_PERIOD_US: u64 = 100_000;

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The quota of processor time per [`CPU_PERIOD_US`](Self::CPU_PERIOD_US), in microseconds; the kernel takes no
    /// less than a millisecond.
    pub fn cpu_quota_us(&self) -> Option<u64> {
        self.nano_cpus.map(|nanos| (nanos.saturating_mul(Self::CPU_PERIOD_US) / 1_000_000_000).max(1000))
    }
}

/// Files to copy out of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyOut {
    /// Absolute path in the container. One that ends in `/.` names what is in the directory.
    pub path: String,
    /// Whether a symbolic link at the end of the path stands for what it points to.
    pub follow: bool,
}

/// Files to copy into a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyIn {
    /// Absolute path in the container.
    pub path: String,
    /// What the path is for what arrives.
    pub placement: Placement,
    /// Whether owners are those of the archive. The container's root otherwise.
    pub keep_owner: bool,
}

/// What a destination is for what arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Placement {
    /// docker's rule: the file's new name, or the directory that it goes into.
    Named,
    /// A directory, in which an archive is unpacked.
    Unpacked,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_become_a_quota_that_the_kernel_takes() {
        let quota = |nanos| LimitChange { nano_cpus: Some(nanos), ..LimitChange::default() }.cpu_quota_us();
        assert_eq!(quota(1_500_000_000), Some(150_000));
        assert_eq!(quota(1), Some(1000));
        assert_eq!(LimitChange::default().cpu_quota_us(), None);
    }
}
