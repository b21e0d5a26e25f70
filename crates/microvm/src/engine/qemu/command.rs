//! What QEMU and its vsock device are started with. Every path is one of the root that they are confined to.

use super::super::{
    Balloon, COMMON_KERNEL_ARGS, DiskLimit, Drive, DriveAccess, GUEST_CID, NetworkDevice, Pace, VSOCK,
    VmConfig,
};
use super::{QMP_SOCKET, VHOST_SOCKET};

/// QEMU's cap on translated code under TCG; by default it takes up to 1 GiB.
pub(super) const TRANSLATED_CODE_MIB: u32 = 256;

/// How QEMU runs guest code, decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accel {
    /// By hardware, at the pace of this machine's KVM.
    Kvm(Pace),
    /// In software.
    Tcg,
}

/// The vsock device's program serves one guest and runs in the VM's directory.
pub(super) fn vsock_arguments() -> [String; 2] {
    ["--vm".to_owned(), format!("guest-cid={GUEST_CID},uds-path={VSOCK},socket={VHOST_SOCKET}")]
}

/// What the VM's files are called in that root, below it.
pub(super) const KERNEL: &str = "kernel";
pub(super) const INITRD: &str = "initrd.img";

pub(super) fn drive_name(index: usize) -> String {
    format!("d{index}")
}

/// What the guest's device of a drive is called towards the monitor.
pub(super) fn device_name(index: usize) -> String {
    format!("disk{index}")
}

pub(super) fn qemu_arguments(config: &VmConfig, accel: Accel, tsc_khz: Option<u64>) -> Vec<String> {
    let mut arguments = Arguments(Vec::new());
    let memory = config.mem_mib;
    // Nothing comes from a configuration file or by default: what is not named here is not there.
    arguments.add("-no-user-config");
    arguments.add("-nodefaults");
    arguments.pair("-name", config.id.to_string());
    arguments.pair("-M", "microvm,memory-backend=mem");
    match accel {
        Accel::Kvm(_) => {
            arguments.pair("-accel", "kvm");
            arguments.pair("-cpu", "host");
        }
        Accel::Tcg => {
            arguments.pair("-accel", format!("tcg,thread=multi,tb-size={TRANSLATED_CODE_MIB}"));
            arguments.pair("-cpu", "max");
        }
    }
    arguments.pair("-smp", config.cpus.to_string());
    arguments.pair("-m", memory.to_string());
    arguments.pair("-object", format!("memory-backend-memfd,id=mem,size={memory}M,share=on"));
    arguments.pair("-kernel", format!("/{KERNEL}"));
    arguments.pair("-initrd", format!("/{INITRD}"));
    arguments.pair("-append", kernel_arguments(config, accel, tsc_khz));
    arguments.pair("-chardev", format!("socket,id=vsock,path={VHOST_SOCKET}"));
    arguments.pair("-device", "vhost-user-vsock-device,chardev=vsock");
    arguments.pair("-device", "virtio-rng-device");
    if config.balloon == Balloon::Present {
        arguments.pair("-device", "virtio-balloon-device,deflate-on-oom=on");
    }
    for (index, drive) in config.drives.iter().enumerate() {
        arguments.pair("-drive", drive_option(index, drive, config.disk_limit));
        // An error is the guest's to handle; by default QEMU stops the machine when the host's disk is full.
        let device = device_name(index);
        arguments.pair(
            "-device",
            format!("virtio-blk-device,id={device},drive=d{index},werror=report,rerror=report"),
        );
    }
    if let Some(NetworkDevice { tap, mac }) = &config.network {
        // The device is there and wired: no script is run for it.
        arguments.pair("-netdev", format!("tap,id=n0,ifname={tap},script=no,downscript=no"));
        arguments.pair("-device", format!("virtio-net-device,netdev=n0,mac={mac}"));
    }
    arguments.pair("-qmp", format!("unix:{QMP_SOCKET},server=on,wait=off"));
    arguments.pair("-display", "none");
    arguments.pair("-serial", "stdio");
    // A guest that restarts has ended.
    arguments.add("-no-reboot");
    // QEMU's own seccomp filter: it starts no programs and takes no privileges.
    arguments.pair("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    arguments.0
}

/// `reboot=t` is the one way out of this machine that is immediate.
fn kernel_arguments(config: &VmConfig, accel: Accel, tsc_khz: Option<u64>) -> String {
    let mut line = format!("{} reboot=t panic=-1 {COMMON_KERNEL_ARGS}", config.console.kernel_args());
    if accel == Accel::Tcg {
        // A kernel that patches itself for one processor throws away code that was just translated.
        line.push_str(" noreplace-smp");
    }
    if let Some(khz) = tsc_khz {
        line.push_str(&format!(" tsc_early_khz={khz} tsc=reliable"));
    }
    line
}

fn drive_option(index: usize, drive: &Drive, limit: DiskLimit) -> String {
    let rights = match drive.access {
        // The image is shared by VMs and never written, so there is nothing to lock.
        DriveAccess::ReadOnly => "readonly=on,file.locking=off",
        DriveAccess::Scratch => "cache=unsafe,discard=unmap",
    };
    let throttle = [("bps", limit.bytes), ("iops", limit.operations)];
    let throttle =
        throttle.into_iter().filter_map(|(what, most)| Some(format!(",throttling.{what}-total={}", most?)));
    let throttle: String = throttle.collect();
    format!("if=none,id=d{index},format=raw,{rights},file=/{}{throttle}", drive_name(index))
}

struct Arguments(Vec<String>);

impl Arguments {
    fn add(&mut self, argument: &str) {
        self.0.push(argument.to_owned());
    }

    fn pair(&mut self, name: &str, value: impl Into<String>) {
        self.0.push(name.to_owned());
        self.0.push(value.into());
    }
}

#[cfg(test)]
mod tests {
    use beta9_types::ContainerId;

    use super::*;
    use crate::engine::{Console, VmDirectory};

    fn render(accel: Accel, tsc_khz: Option<u64>) -> String {
        let root = tempfile::tempdir().unwrap();
        let id = ContainerId::parse("c1").unwrap();
        let config = VmConfig {
            id: id.vm_id(),
            directory: VmDirectory::create(root.path(), &id).unwrap(),
            kernel: "/k/vmlinux".into(),
            initrd: "/k/initrd.img".into(),
            cpus: 2,
            mem_mib: 640,
            drives: vec![
                Drive { path: "/images/a,readonly=off".into(), access: DriveAccess::ReadOnly },
                Drive { path: "/c1/scratch".into(), access: DriveAccess::Scratch },
            ],
            network: Some(NetworkDevice {
                tap: "b9fc_01234567".into(),
                mac: "02:b9:c0:a8:00:02".parse().unwrap(),
            }),
            disk_limit: DiskLimit::default(),
            balloon: Balloon::Absent,
            console: Console::Quiet,
        };
        qemu_arguments(&config, accel, tsc_khz).join("\n")
    }

    #[test]
    fn arguments_for_software_emulation() {
        insta::assert_snapshot!(render(Accel::Tcg, Some(2_400_000)));
    }

    #[test]
    fn disks_are_throttled_where_that_is_asked_for() {
        let drive = Drive { path: "/c1/scratch".into(), access: DriveAccess::Scratch };
        let limit = DiskLimit { bytes: Some(1 << 20), operations: Some(50) };
        let option = drive_option(1, &drive, limit);
        assert!(
            option.ends_with("file=/d1,throttling.bps-total=1048576,throttling.iops-total=50"),
            "{option}"
        );
    }

    #[test]
    fn arguments_for_kvm_leave_the_clock_to_it() {
        let text = render(Accel::Kvm(Pace::Native), None);
        assert!(text.contains("-accel\nkvm\n-cpu\nhost"));
        assert!(!text.contains("tsc"));
    }
}
