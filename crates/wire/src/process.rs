use std::net::IpAddr;

use beta9_types::TerminalSize;
use serde::{Deserialize, Serialize};

/// A container as the guest needs it: the OCI runtime spec with every choice made by the host.
///
/// The guest applies the fields in the order of the OCI runtime spec's lifecycle and looks nothing up, except
/// the program's path along `PATH`, which needs the container's root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// The main process.
    pub process: Process,
    /// UTS host name.
    pub hostname: String,
    /// Mounts in order, after the root.
    pub mounts: Vec<GuestMount>,
    /// Paths hidden from the container (files get `/dev/null`, directories an empty read-only tmpfs).
    pub masked_paths: Vec<String>,
    /// Paths made read-only.
    pub readonly_paths: Vec<String>,
    /// Whether the root file system is read-only.
    pub readonly_root: bool,
    /// Limits of the container's cgroup in the guest.
    pub resources: Resources,
    /// `(name, value)` of kernel settings below `/proc/sys`, already checked by the host.
    pub sysctls: Vec<(String, String)>,
    /// Device nodes beside those of every container.
    pub devices: Vec<GuestDevice>,
    /// Its network interface, if it has one beside loopback.
    pub network: Option<GuestNetwork>,
}

/// A network interface and what it is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestNetwork {
    /// The interface is the one with this Ethernet address.
    pub mac: [u8; 6],
    /// Longest packet.
    pub mtu: u32,
    /// Addresses, each with the length of its network's prefix.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Routes in the order to add them in.
    pub routes: Vec<GuestRoute>,
}

/// A way out of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestRoute {
    /// The lowest address of where to.
    pub destination: IpAddr,
    /// Bits of the prefix; 0 is everywhere else.
    pub prefix: u8,
    /// Through whom; absent for neighbours.
    pub gateway: Option<IpAddr>,
}

/// A character device's node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestDevice {
    /// Absolute path in the container.
    pub path: String,
    /// Major and minor number.
    pub number: (u32, u32),
    /// Permission bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
}

/// One process: what, as whom, with which rights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Program and arguments.
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Working directory, absolute in the container; created when missing.
    pub cwd: String,
    /// As whom it runs.
    pub identity: Identity,
    /// What it may do.
    pub capabilities: Capabilities,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privileges: bool,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
    /// Whether the host keeps stdin open. Otherwise it is `/dev/null`.
    pub stdin: bool,
    /// The size of its terminal, if it has one: then stdin is what is typed, stdout what appears, and there is no stderr.
    pub terminal: Option<TerminalSize>,
    /// Filters of its system calls (BPF), in the order in which they are installed.
    pub seccomp: Vec<Vec<u8>>,
    /// Whether an init runs it, passes signals on and reaps what it orphans.
    pub init: bool,
}

/// User and groups by number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
    /// File mode creation mask; the guest's default where absent.
    pub umask: Option<u32>,
}

/// Capability sets as bit masks, bit n = capability n of `capabilities(7)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Bounding set.
    pub bounding: u64,
    /// Effective set.
    pub effective: u64,
    /// Inheritable set.
    pub inheritable: u64,
    /// Permitted set.
    pub permitted: u64,
    /// Ambient set.
    pub ambient: u64,
}

/// One `setrlimit(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// `RLIMIT_*` number of the guest's kernel.
    pub resource: u32,
    /// Soft limit; `u64::MAX` is unlimited.
    pub soft: u64,
    /// Hard limit; `u64::MAX` is unlimited.
    pub hard: u64,
}

/// Limits of a cgroup v2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Resources {
    /// `memory.max` in bytes. Where absent the guest takes all of its memory but a reserve for itself.
    pub memory_max: Option<u64>,
    /// `pids.max`.
    pub pids_max: Option<u64>,
    /// `cpu.max`: quota and period in microseconds.
    pub cpu_max: Option<(u64, u64)>,
}

/// One mount of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestMount {
    /// Absolute path in the container; created when missing, resolved inside the root, never through a link out of it.
    pub target: String,
    /// What appears there.
    pub source: MountSource,
    /// `MS_*` flags of `mount(2)`.
    pub flags: u64,
    /// The `data` argument: options of the file system.
    pub data: String,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// A file system of the guest's kernel: `proc`, `sysfs`, `tmpfs`, `devpts`, `mqueue`, `cgroup2`.
    Filesystem(String),
    /// A host directory: the export's index, which is the name of its directory in the share's root.
    SharedDirectory(u16),
    /// A host file: the export's index and the file's name inside the export's directory.
    SharedFile(u16, String),
    /// A file of the container's own with this content.
    OwnFile(Vec<u8>),
}
