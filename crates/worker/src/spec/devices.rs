//! Devices of the host that a container may use.

use std::path::Path;

use beta9_types::{DeviceRequest, RuntimeKind};
use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
};
use rustix::fs::{FileType, Stat, major, minor, stat};

use crate::error::{Error, ErrorKind, Result};

/// Memory devices, a terminal's alias and FUSE: what every kernel has and a VM's has, too.
const OF_EVERY_KERNEL: [(u32, u32); 7] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (10, 229)];

/// A device's node, and what its cgroup lets the container do with it.
pub(super) struct Device {
    pub(super) node: LinuxDevice,
    pub(super) rule: LinuxDeviceCgroup,
}

/// Looks the devices up on this host.
pub(super) fn of(requests: &[DeviceRequest], runtime: RuntimeKind) -> Result<Vec<Device>> {
    requests.iter().map(|request| device(request, runtime)).collect()
}

/// Kind, major and minor number of the device at `path`.
pub(super) fn look(path: &Path) -> Result<(LinuxDeviceType, Stat, u32, u32)> {
    let found = stat(path).map_err(|e| {
        let text =
            format!("device {} cannot be used: give the path of one on the worker's host", path.display());
        Error::caused(ErrorKind::Invalid, text, std::io::Error::from(e))
    })?;
    let kind = match FileType::from_raw_mode(found.st_mode) {
        FileType::CharacterDevice => LinuxDeviceType::C,
        FileType::BlockDevice => LinuxDeviceType::B,
        _ => {
            let text = format!("{} is not a device: mount files and directories with -v", path.display());
            return Err(Error::new(ErrorKind::Invalid, text));
        }
    };
    Ok((kind, found, major(found.st_rdev), minor(found.st_rdev)))
}

fn device(request: &DeviceRequest, runtime: RuntimeKind) -> Result<Device> {
    let (kind, found, major, minor) = look(&request.source)?;
    if runtime.is_microvm() && (kind != LinuxDeviceType::C || !OF_EVERY_KERNEL.contains(&(major, minor))) {
        let text = format!(
            "{runtime} does not support --device {}: a VM has no devices of the host; use --runtime runc",
            request.source.display()
        );
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    let build = || {
        let (major, minor) = (i64::from(major), i64::from(minor));
        Ok(Device {
            node: LinuxDeviceBuilder::default()
                .path(&request.target)
                .typ(kind)
                .major(major)
                .minor(minor)
                .file_mode(found.st_mode & 0o7777)
                .uid(found.st_uid)
                .gid(found.st_gid)
                .build()?,
            rule: LinuxDeviceCgroupBuilder::default()
                .allow(true)
                .typ(kind)
                .major(major)
                .minor(minor)
                .access(request.permissions.as_str())
                .build()?,
        })
    };
    build().map_err(|e: oci_spec::OciSpecError| Error::internal("describe a device", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_gets_no_device_of_the_host() {
        let request = |text: &str| [text.parse::<DeviceRequest>().unwrap()];
        assert_eq!(of(&request("/dev/null:/dev/hole:r"), RuntimeKind::Qemu).unwrap().len(), 1);
        let error = of(&request("/etc/passwd"), RuntimeKind::Runc).err().unwrap().to_string();
        assert!(error.contains("is not a device"), "{error}");
        assert!(of(&request("/dev/no-such-device"), RuntimeKind::Runc).is_err());
        if Path::new("/dev/kmsg").exists() {
            assert!(of(&request("/dev/kmsg"), RuntimeKind::Runc).is_ok());
            assert!(of(&request("/dev/kmsg"), RuntimeKind::Qemu).is_err());
        }
    }
}
