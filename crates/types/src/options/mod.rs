//! What a container may be asked to be beside its image, command and mounts: docker's options, each with one parser.

mod device;
mod life;
mod limits;
mod names;
mod security;
mod storage;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use device::{DeviceRequest, TmpfsMount};
pub use life::{RestartPolicy, SignalNumber};
pub use limits::{CpuSet, DiskRate, MemorySwap, Throttle, ThrottleKind, Ulimit};
pub use names::HostEntry;
pub use security::{CapabilityName, SeccompChoice, Sysctl};
pub use storage::{StorageMedium, StorageOptions, VolumesFrom};

use crate::{MemoryBytes, MountRequest, NetworkOptions};

/// Everything optional, grouped by what it is about.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerOptions {
    /// The process: what it is, as whom it runs, what it may do.
    pub process: ProcessOptions,
    /// What it may use.
    pub limits: LimitOptions,
    /// What is in its file tree beside the image.
    pub files: FileOptions,
    /// How it finds others by name.
    pub names: NameOptions,
    /// How it lives and ends.
    pub life: LifeOptions,
    /// Its network.
    pub network: NetworkOptions,
}

/// The process.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessOptions {
    /// Replaces the image's entrypoint, and its command goes with it; empty means none.
    pub entrypoint: Option<Vec<String>>,
    /// Supplementary groups, by name or number.
    pub groups: Vec<String>,
    /// Resource limits.
    pub ulimits: Vec<Ulimit>,
    /// Capabilities beside docker's default ones.
    pub cap_add: Vec<CapabilityName>,
    /// Capabilities it does not get.
    pub cap_drop: Vec<CapabilityName>,
    /// Whether set-user-id programs give it no rights.
    pub no_new_privileges: bool,
    /// Which system calls it may make.
    pub seccomp: SeccompChoice,
    /// Whether an init reaps its orphans and passes signals on to it.
    pub init: bool,
    /// Whether nothing below `/proc` and `/sys` is hidden or write-protected.
    pub unmasked: bool,
}

/// Limits. Where absent there is none.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LimitOptions {
    /// Time of CPUs in billionths of one.
    pub nano_cpus: Option<u64>,
    /// CPU time among competitors, 2 to 262144; 1024 is the default.
    pub cpu_shares: Option<u64>,
    /// The CPUs it may run on.
    pub cpuset_cpus: Option<CpuSet>,
    /// The memory nodes it may use.
    pub cpuset_mems: Option<CpuSet>,
    /// Memory and swap together.
    pub memory_swap: Option<MemorySwap>,
    /// Memory that it keeps when the host runs short.
    pub memory_reservation: Option<MemoryBytes>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Share of the disks among competitors, 10 to 1000.
    pub blkio_weight: Option<u16>,
    /// Limits on single disks.
    pub throttles: Vec<Throttle>,
    /// A limit on its own disks.
    pub disk: DiskRate,
}

/// The file tree.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct FileOptions {
    /// Whether the root file system is read-only.
    pub read_only: bool,
    /// Host paths and volumes as they were asked for.
    pub mounts: Vec<MountRequest>,
    /// Containers whose mounts it gets, too.
    pub volumes_from: Vec<VolumesFrom>,
    /// Where the writable layer is kept.
    pub storage: StorageOptions,
    /// Memory file systems.
    pub tmpfs: Vec<TmpfsMount>,
    /// Size of `/dev/shm` in bytes; 64 MiB where absent.
    pub shm_bytes: Option<u64>,
    /// Devices of the host.
    pub devices: Vec<DeviceRequest>,
    /// Kernel settings of its own namespaces.
    pub sysctls: Vec<Sysctl>,
}

/// Names.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NameOptions {
    /// Lines of `/etc/hosts`.
    pub hosts: Vec<HostEntry>,
    /// Name servers of `/etc/resolv.conf`; the host's where empty.
    pub dns: Vec<std::net::IpAddr>,
    /// Its search domains.
    pub dns_search: Vec<String>,
    /// Its options.
    pub dns_options: Vec<String>,
}

/// Life and end.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LifeOptions {
    /// The caller's own notes.
    pub labels: BTreeMap<String, String>,
    /// What asks it to end; the image's where absent, else SIGTERM.
    pub stop_signal: Option<SignalNumber>,
    /// Seconds between that signal and SIGKILL; 10 where absent.
    pub stop_timeout: Option<u32>,
    /// What happens when it ends.
    pub restart: RestartPolicy,
}
