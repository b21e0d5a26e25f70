//! What is said to Firecracker's API. Unknown fields are an error there, so those that came
//! after 1.13 are said to releases that know them only.

use serde::{Deserialize, Serialize};

use super::super::{DiskLimit, Drive as VmDrive, DriveAccess, NetworkDevice, VmConfig};
use super::{Names, Version};

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
    pub(super) fn of(names: &'a Names, boot_args: &'a str) -> Self {
        Self { kernel_image_path: &names.kernel, initrd_path: &names.initrd, boot_args }
    }
}

/// `PUT /drives/{drive_id}`
#[derive(Debug, Serialize)]
pub(super) struct Drive<'a> {
    drive_id: &'a str,
    path_on_host: &'a std::path::Path,
    is_root_device: bool,
    is_read_only: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_limiter: Option<RateLimiter>,
}

/// `PATCH /drives/{drive_id}`
#[derive(Debug, Serialize)]
pub(super) struct DriveUpdate<'a> {
    drive_id: &'a str,
    rate_limiter: RateLimiter,
}

impl<'a> DriveUpdate<'a> {
    pub(super) fn of(drive_id: &'a str, limit: DiskLimit) -> Self {
        Self { drive_id, rate_limiter: RateLimiter::replacing(limit) }
    }
}

/// Of a drive or a network interface.
#[derive(Debug, Serialize)]
pub(super) struct RateLimiter {
    #[serde(skip_serializing_if = "Option::is_none")]
    bandwidth: Option<TokenBucket>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ops: Option<TokenBucket>,
}

/// `size` tokens, all of which are there again after `refill_time` milliseconds.
#[derive(Debug, Serialize)]
struct TokenBucket {
    size: u64,
    refill_time: u64,
}

impl RateLimiter {
    fn of(limit: DiskLimit) -> Option<Self> {
        let bucket = |most: u64| TokenBucket { size: most, refill_time: 1000 };
        let limiter = Self { bandwidth: limit.bytes.map(bucket), ops: limit.operations.map(bucket) };
        (limiter.bandwidth.is_some() || limiter.ops.is_some()).then_some(limiter)
    }

    /// In a PATCH a bucket that is left out stays as it is, and one without size is taken away.
    fn replacing(limit: DiskLimit) -> Self {
        let bucket = |most: Option<u64>| match most {
            Some(size) => Some(TokenBucket { size, refill_time: 1000 }),
            None => Some(TokenBucket { size: 0, refill_time: 0 }),
        };
        Self { bandwidth: bucket(limit.bytes), ops: bucket(limit.operations) }
    }
}

impl<'a> Drive<'a> {
    pub(super) fn of(
        drive_id: &'a str,
        path_on_host: &'a std::path::Path,
        drive: &VmDrive,
        limit: DiskLimit,
    ) -> Self {
        Self {
            drive_id,
            path_on_host,
            // The root is the initramfs; it mounts the drives itself.
            is_root_device: false,
            is_read_only: drive.access == DriveAccess::ReadOnly,
            rate_limiter: RateLimiter::of(limit),
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

/// `PUT /balloon`
#[derive(Debug, Serialize)]
pub(super) struct BalloonDevice {
    amount_mib: u32,
    deflate_on_oom: bool,
    /// Pages that the guest frees are the host's at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    free_page_reporting: Option<bool>,
}

impl BalloonDevice {
    /// Empty, with what this release knows.
    pub(super) fn of(version: Version) -> Self {
        let free_page_reporting = (version >= Version::FREE_PAGE_REPORTING).then_some(true);
        Self { amount_mib: 0, deflate_on_oom: true, free_page_reporting }
    }
}

/// `PATCH /balloon`
#[derive(Debug, Serialize)]
pub(super) struct BalloonUpdate {
    pub(super) amount_mib: u32,
}

/// `PUT /vsock`
#[derive(Debug, Serialize)]
pub(super) struct Vsock<'a> {
    pub(super) guest_cid: u32,
    pub(super) uds_path: &'a std::path::Path,
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
