//! What QEMU and its vsock device are started with.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use super::super::{COMMON_KERNEL_ARGS, Drive, DriveAccess, GUEST_CID, NetworkDevice, Pace, VSOCK, VmConfig};
use super::VHOST_SOCKET;

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

pub(super) fn qemu_arguments(config: &VmConfig, accel: Accel, tsc_khz: Option<u64>) -> Vec<OsString> {
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
    arguments.pair("-kernel", &config.kernel);
    arguments.pair("-initrd", &config.initrd);
    arguments.pair("-append", kernel_arguments(config, accel, tsc_khz));
    arguments.pair("-chardev", format!("socket,id=vsock,path={VHOST_SOCKET}"));
    arguments.pair("-device", "vhost-user-vsock-device,chardev=vsock");
    arguments.pair("-device", "virtio-rng-device");
    for (index, drive) in config.drives.iter().enumerate() {
        arguments.pair("-drive", drive_option(index, drive));
        arguments.pair("-device", format!("virtio-blk-device,drive=d{index}"));
    }
    if let Some(NetworkDevice { tap, mac }) = &config.network {
        // The device is there and wired: no script is run for it.
        arguments.pair("-netdev", format!("tap,id=n0,ifname={tap},script=no,downscript=no"));
        arguments.pair("-device", format!("virtio-net-device,netdev=n0,mac={mac}"));
    }
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

fn drive_option(index: usize, drive: &Drive) -> OsString {
    let mut option = format!("if=none,id=d{index},format=raw,").into_bytes();
    option.extend_from_slice(match drive.access {
        // The image is shared by VMs and never written, so there is nothing to lock.
        DriveAccess::ReadOnly => b"readonly=on,file.locking=off,",
        DriveAccess::Scratch => b"cache=unsafe,discard=unmap,",
    });
    option.extend_from_slice(b"file=");
    option.extend(escape(&drive.path));
    OsString::from_vec(option)
}

/// A comma separates options, and is doubled where it is meant.
fn escape(path: &Path) -> Vec<u8> {
    let doubled = |byte: &u8| if *byte == b',' { vec![b',', b','] } else { vec![*byte] };
    path.as_os_str().as_bytes().iter().flat_map(doubled).collect()
}

struct Arguments(Vec<OsString>);

impl Arguments {
    fn add(&mut self, argument: &str) {
        self.0.push(argument.into());
    }

    fn pair(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.push(name.into());
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
            console: Console::Quiet,
        };
        let arguments = qemu_arguments(&config, accel, tsc_khz);
        arguments.iter().map(|a| a.to_string_lossy().into_owned()).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn arguments_for_software_emulation() {
        insta::assert_snapshot!(render(Accel::Tcg, Some(2_400_000)));
    }

    #[test]
    fn arguments_for_kvm_leave_the_clock_to_it() {
        let text = render(Accel::Kvm(Pace::Native), None);
        assert!(text.contains("-accel\nkvm\n-cpu\nhost"));
        assert!(!text.contains("tsc"));
    }
}
