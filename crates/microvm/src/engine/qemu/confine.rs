//! What QEMU and its vsock device see of the host.
//!
//! ```text
//! <VM's directory>/run/      the workplace of both: their sockets, the VM's user's
//! <VM's directory>/qemu/     where QEMU's root is mounted, in its own mount namespace; outside it is empty
//! <VM's directory>/vsock/    the vsock device's
//! ```

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use beta9_runtime::{Error, ErrorKind, Result};
use beta9_types::UidRange;

use super::super::{DriveAccess, Host, VmConfig, VmDirectory, VmUser, check_shared, hand_over};
use super::command::{self, Accel, INITRD, KERNEL, drive_name};
use crate::confine::{Confinement, Device, Limits, Linkage, Shown, WORKPLACE, needs, new_root};

/// Where QEMU finds firmware, beside what is below its own prefix. Debian's is in both.
const FIRMWARE: [&str; 2] = ["share/qemu", "share/seabios"];
/// Connections of a guest, twice each in the vsock device, and some of their own.
const MAX_FILES: u64 = 4096;

pub(super) fn settle(directory: VmDirectory, users: &UidRange) -> Result<VmDirectory> {
    let user = VmUser::take(users, &directory)?;
    directory.with_workplace(Path::new(WORKPLACE.trim_start_matches('/')), user)
}

pub(super) fn vsock_command(bin: &Path, config: &VmConfig, host: &Host) -> Result<Command> {
    let place = Place::of(config, "vsock")?;
    let mut shown = place.needs_of(bin)?;
    shown.push(place.workplace());
    let limits = Limits { files: MAX_FILES, file_bytes: place.memory };
    let root = new_root(&place.root, place.user, vec![Device::Null, Device::Urandom], limits);
    let arguments = command::vsock_arguments().to_vec();
    Confinement { root, shown, program: bin.to_owned(), arguments }.command(&host.this, host)
}

pub(super) fn qemu_command(
    bin: &Path,
    config: &VmConfig,
    accel: Accel,
    tsc_khz: Option<u64>,
    host: &Host,
) -> Result<Command> {
    let place = Place::of(config, "qemu")?;
    let mut shown = place.needs_of(bin)?;
    let prefixes = [Some(Path::new("/usr")), bin.parent().and_then(Path::parent)];
    for firmware in prefixes.into_iter().flatten().flat_map(|prefix| FIRMWARE.map(|name| prefix.join(name))) {
        if firmware.exists() && shown.iter().all(|known| known.source != firmware) {
            let target = firmware.strip_prefix("/").unwrap_or(&firmware).to_string_lossy().into_owned();
            shown.push(Shown::read(&firmware, &target));
        }
    }
    shown.push(place.workplace());
    shown.push(Shown::read(&config.kernel, KERNEL));
    shown.push(Shown::read(&config.initrd, INITRD));
    let mut largest = place.memory;
    for (index, drive) in config.drives.iter().enumerate() {
        match drive.access {
            DriveAccess::ReadOnly => {
                check_shared(&drive.path)?;
                shown.push(Shown::read(&drive.path, &drive_name(index)));
            }
            DriveAccess::Scratch => {
                hand_over(&drive.path, place.user)?;
                let disk = fs::metadata(&drive.path).map_err(|e| crate::failed("look at", &drive.path, e))?;
                largest = largest.max(disk.len());
                shown.push(Shown::write(&drive.path, &drive_name(index)));
            }
        }
    }
    check_shared(&config.kernel)?;
    check_shared(&config.initrd)?;
    let mut devices = vec![Device::Null, Device::Urandom];
    if matches!(accel, Accel::Kvm(_)) {
        devices.push(Device::Kvm);
    }
    if host.network.is_some() {
        devices.push(Device::Tun);
    }
    let root = new_root(&place.root, place.user, devices, Limits { files: MAX_FILES, file_bytes: largest });
    let arguments = command::qemu_arguments(config, accel, tsc_khz);
    Confinement { root, shown, program: bin.to_owned(), arguments }.command(&host.this, host)
}

/// Where one of the two programs is confined.
struct Place<'a> {
    config: &'a VmConfig,
    root: PathBuf,
    user: VmUser,
    /// Bytes of the guest's memory, which is a file that both of them map.
    memory: u64,
}

impl<'a> Place<'a> {
    fn of(config: &'a VmConfig, name: &str) -> Result<Self> {
        let user = config.directory.user();
        let user = user.ok_or_else(|| Error::new(ErrorKind::Failed, "the VM has no user"))?;
        let root = config.directory.path().join(name);
        DirBuilder::new().mode(0o700).create(&root).map_err(|e| crate::failed("create", &root, e))?;
        Ok(Self { config, root, user, memory: u64::from(config.mem_mib) << 20 })
    }

    fn workplace(&self) -> Shown {
        Shown::write(self.config.directory.workplace(), WORKPLACE.trim_start_matches('/'))
    }

    fn needs_of(&self, bin: &Path) -> Result<Vec<Shown>> {
        Ok(needs(bin, Linkage::of(bin)?))
    }
}
