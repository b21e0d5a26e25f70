use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{MemoryMib, UidRange};

/// How the runtimes of one pool are set up, with every default filled in.
///
/// The names are the keys of `worker.pools.<pool>.container_runtime_config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeSettings {
    /// The OCI runtime program for `runc`; crun works too.
    pub runc_bin: PathBuf,
    /// gVisor's program.
    pub gvisor_bin: PathBuf,
    /// Where gVisor keeps the state of its containers.
    pub gvisor_root: PathBuf,
    /// gVisor's platform as configured; what is used also depends on what the program offers.
    pub gvisor_platform: String,
    /// More flags for gVisor's program, before the subcommand.
    pub gvisor_extra_args: Vec<String>,
    /// Firecracker's program.
    pub firecracker_bin: PathBuf,
    /// Firecracker's jailer; [`RuntimeSettings::NO_JAILER`] for none.
    pub firecracker_jailer: PathBuf,
    /// Whether Firecracker without its jailer counts as not working.
    #[serde(default)]
    pub require_jailer: bool,
    /// Users that VMs run as, one for each; nothing else may use them.
    #[serde(default)]
    pub jail_uids: UidRange,
    /// One directory per VM lives here.
    pub firecracker_root: PathBuf,
    /// An uncompressed kernel image (ELF vmlinux).
    pub firecracker_kernel: PathBuf,
    /// An initramfs that holds `beta9-vm-init` as `/init`. Where absent the worker makes one, and puts it here before a
    /// runtime sees these settings; `initrd.img` beside the kernel is meant by whoever makes none.
    pub firecracker_initrd: Option<PathBuf>,
    /// vCPUs of a VM whose request has no CPU limit.
    pub firecracker_cpus: u8,
    /// Memory of a VM whose request has no memory limit.
    pub firecracker_mem_mib: MemoryMib,
    /// QEMU's program.
    pub qemu_bin: PathBuf,
    /// How QEMU runs guest code.
    pub qemu_accel: QemuAccel,
    /// An uncompressed kernel image (ELF vmlinux with a PVH entry).
    pub qemu_kernel: PathBuf,
    /// As for Firecracker.
    pub qemu_initrd: Option<PathBuf>,
    /// vCPUs of a VM whose request has no CPU limit.
    pub qemu_cpus: u8,
    /// Memory of a VM whose request has no memory limit.
    pub qemu_mem_mib: MemoryMib,
    /// One directory per VM lives here.
    pub qemu_root: PathBuf,
    /// The vhost-user vsock device program that QEMU VMs use.
    pub vhost_device_vsock_bin: PathBuf,
    /// The most that a container's writable layer holds, in bytes, where its request does not say. Where absent 8 GiB for
    /// a VM's, and no limit for another's.
    #[serde(default)]
    pub storage_size: Option<u64>,
    /// MiB that each disk of a VM may read and write in a second; 0 for no limit.
    #[serde(default)]
    pub disk_mib_per_second: u32,
    /// Reads and writes of each disk of a VM in a second; 0 for no limit.
    #[serde(default)]
    pub disk_operations_per_second: u32,
    /// Whether VMs have a balloon, by which the host takes memory back that their containers may not or should not use.
    #[serde(default)]
    pub memory_balloon: bool,
    /// Whether guest consoles are turned on.
    pub debug: bool,
}

/// How QEMU runs guest code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QemuAccel {
    /// KVM where it boots a kernel, else TCG.
    Auto,
    /// Hardware virtualisation.
    Kvm,
    /// Emulation in software.
    Tcg,
}

impl QemuAccel {
    /// Every way, in the order in which they are shown.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Kvm, Self::Tcg];

    /// The word used in configuration and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

impl RuntimeSettings {
    /// The directory that holds the VMs when nothing is configured.
    pub const DEFAULT_MICROVM_ROOT: &'static str = "/var/lib/beta9/microvm";
    /// In the place of a jailer: Firecracker runs without one.
    pub const NO_JAILER: &'static str = "none";
    /// The kernel that VMs boot when nothing is configured.
    pub const DEFAULT_KERNEL: &'static str = "/var/lib/beta9/vmlinux";

    /// Whether Firecracker is to run in a jail.
    pub fn is_jailed(&self) -> bool {
        self.firecracker_jailer != Path::new(Self::NO_JAILER)
    }

    /// The initramfs for Firecracker VMs.
    pub fn firecracker_initrd(&self) -> PathBuf {
        self.firecracker_initrd.clone().unwrap_or_else(|| initrd_beside(&self.firecracker_kernel))
    }

    /// The initramfs for QEMU VMs.
    pub fn qemu_initrd(&self) -> PathBuf {
        self.qemu_initrd.clone().unwrap_or_else(|| initrd_beside(&self.qemu_kernel))
    }
}

fn initrd_beside(kernel: &Path) -> PathBuf {
    kernel.with_file_name("initrd.img")
}

impl Default for RuntimeSettings {
    fn default() -> Self {
        Self {
            runc_bin: "runc".into(),
            gvisor_bin: "runsc".into(),
            gvisor_root: "/run/gvisor".into(),
            gvisor_platform: "systrap".into(),
            gvisor_extra_args: Vec::new(),
            firecracker_bin: "firecracker".into(),
            firecracker_jailer: "jailer".into(),
            require_jailer: false,
            jail_uids: UidRange::default(),
            firecracker_root: Self::DEFAULT_MICROVM_ROOT.into(),
            firecracker_kernel: Self::DEFAULT_KERNEL.into(),
            firecracker_initrd: None,
            firecracker_cpus: 1,
            firecracker_mem_mib: MemoryMib::DEFAULT,
            qemu_bin: "qemu-system-x86_64".into(),
            qemu_accel: QemuAccel::Auto,
            qemu_kernel: Self::DEFAULT_KERNEL.into(),
            qemu_initrd: None,
            qemu_cpus: 1,
            qemu_mem_mib: MemoryMib::DEFAULT,
            qemu_root: Self::DEFAULT_MICROVM_ROOT.into(),
            vhost_device_vsock_bin: "vhost-device-vsock".into(),
            storage_size: None,
            disk_mib_per_second: 0,
            disk_operations_per_second: 0,
            memory_balloon: false,
            debug: false,
        }
    }
}
