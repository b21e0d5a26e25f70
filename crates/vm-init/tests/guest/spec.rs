//! What the tests run: a container as a host would describe it by default.

use beta9_wire::{
    Capabilities, ContainerSpec, GuestMount, Identity, MountSource, Process, Resources, RootDisk,
    WritableLayer,
};

/// The capabilities that docker gives by default.
pub(crate) const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;

const NOSUID: u64 = 2;
const NODEV: u64 = 4;
const NOEXEC: u64 = 8;
const RDONLY: u64 = 1;

/// A container to run.
pub(crate) struct Wanted {
    pub(crate) root: RootDisk,
    pub(crate) spec: ContainerSpec,
    /// What goes to its stdin, if it has one.
    pub(crate) input: Vec<u8>,
}

/// A shell script as root, with everything by default.
pub(crate) fn shell(script: &str) -> Wanted {
    Wanted {
        root: RootDisk { drive: 0, format: "erofs".to_owned(), writable: WritableLayer::Memory(64 << 20) },
        spec: ContainerSpec {
            network: None,
            process: Process {
                args: ["sh", "-c", script].map(str::to_owned).to_vec(),
                env: vec!["PATH=/bin:/sbin".to_owned()],
                cwd: "/".to_owned(),
                identity: Identity { uid: 0, gid: 0, groups: Vec::new(), umask: None },
                capabilities: Capabilities {
                    bounding: DEFAULT_CAPABILITIES,
                    effective: DEFAULT_CAPABILITIES,
                    inheritable: 0,
                    permitted: DEFAULT_CAPABILITIES,
                    ambient: 0,
                },
                no_new_privileges: true,
                rlimits: Vec::new(),
                stdin: false,
                terminal: None,
                seccomp: Vec::new(),
                init: false,
            },
            hostname: "guest-test".to_owned(),
            mounts: default_mounts(),
            masked_paths: Vec::new(),
            readonly_paths: Vec::new(),
            readonly_root: false,
            resources: Resources::default(),
            sysctls: Vec::new(),
            devices: Vec::new(),
        },
        input: Vec::new(),
    }
}

fn default_mounts() -> Vec<GuestMount> {
    let hidden = NOSUID | NODEV | NOEXEC;
    let mount = |kind: &str, target: &str, flags, data: &str| GuestMount {
        target: target.to_owned(),
        source: MountSource::Filesystem(kind.to_owned()),
        flags,
        data: data.to_owned(),
    };
    vec![
        mount("proc", "/proc", hidden, ""),
        mount("tmpfs", "/dev", NOSUID, "mode=755,size=65536k"),
        mount("devpts", "/dev/pts", NOSUID | NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"),
        mount("tmpfs", "/dev/shm", hidden, "mode=1777,size=65536k"),
        mount("mqueue", "/dev/mqueue", hidden, ""),
        mount("sysfs", "/sys", hidden | RDONLY, ""),
        mount("cgroup2", "/sys/fs/cgroup", hidden | RDONLY, ""),
    ]
}
