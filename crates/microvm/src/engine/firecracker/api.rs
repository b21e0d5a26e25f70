//! What is said to Firecracker's API. Unknown fields are an error there, so only those of 1.13 are here.

use serde::{Deserialize, Serialize};

use super::super::{Drive as VmDrive, DriveAccess, NetworkDevice, VmConfig};

/// `PUT /machine-config`
#[derive(Debug, Serialize)]
pub(super) struct MachineConfig {
    vcpu_count: u8,
    mem_size_mib: u32,
}

impl MachineConfig {
    pub(super) fn of(config: &VmConfig) -> Self {
        Self { vcpu_count: config.cpus, mem_size_mib: config.mem_mib }
    }
}

/// `PUT /boot-source`
#[derive(Debug, Serialize)]
pub(super) struct BootSource<'a> {
    kernel_image_path: &'a std::path::Path,
    initrd_path: &'a std::path::Path,
    boot_args: &'a str,
}

impl<'a> BootSource<'a> {
    pub(super) fn of(config: &'a VmConfig, boot_args: &'a str) -> Self {
        Self { kernel_image_path: &config.kernel, initrd_path: &config.initrd, boot_args }
    }
}

/// `PUT /drives/{drive_id}`
#[derive(Debug, Serialize)]
pub(super) struct Drive<'a> {
    drive_id: &'a str,
    path_on_host: &'a std::path::Path,
    is_root_device: bool,
    is_read_only: bool,
}

impl<'a> Drive<'a> {
    pub(super) fn of(drive_id: &'a str, drive: &'a VmDrive) -> Self {
        Self {
            drive_id,
            path_on_host: &drive.path,
            // The root is the initramfs; it mounts the drives itself.
            is_root_device: false,
            is_read_only: drive.access == DriveAccess::ReadOnly,
        }
    }
}

/// `PUT /network-interfaces/{iface_id}`
#[derive(Debug, Serialize)]
pub(super) struct NetworkInterface<'a> {
    pub(super) iface_id: &'static str,
    host_dev_name: &'a str,
    guest_mac: String,
}

impl<'a> NetworkInterface<'a> {
    pub(super) fn of(device: &'a NetworkDevice) -> Self {
        Self { iface_id: "eth0", host_dev_name: &device.tap, guest_mac: device.mac.to_string() }
    }
}

/// `PUT /vsock`
#[derive(Debug, Serialize)]
pub(super) struct Vsock<'a> {
    pub(super) guest_cid: u32,
    pub(super) uds_path: &'a str,
}

/// `PUT /entropy`
#[derive(Debug, Serialize)]
pub(super) struct Entropy {}

/// `PUT /actions`
#[derive(Debug, Serialize)]
pub(super) struct Action {
    action_type: &'static str,
}

impl Action {
    pub(super) const INSTANCE_START: Self = Self { action_type: "InstanceStart" };
}

/// The answer to `GET /version`
#[derive(Debug, Deserialize)]
pub(super) struct VersionAnswer {
    pub(super) firecracker_version: String,
}

/// The body of a refusal.
#[derive(Debug, Deserialize)]
pub(super) struct Fault {
    pub(super) fault_message: String,
}
