//! How much a container may do on its own disks: those that its writable layer and its image are on.

use std::path::Path;

use beta9_runtime::{Error, ErrorKind, Result};
use beta9_sys::cgroup::{Cgroup, Direction, Throttle, disk_of};
use beta9_types::DiskRate;
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxBlockIo, LinuxBlockIoBuilder, LinuxThrottleDevice, LinuxThrottleDeviceBuilder, Spec,
};

/// Where a writable layer with a limit is mounted, in the container's directory: a disk of its own.
const LAYER: &str = "layer";

/// The limits that `rate` means for a container with this directory.
fn throttles(directory: &Path, rate: DiskRate) -> Result<Vec<Throttle>> {
    let failed = |e| Error::caused(ErrorKind::Unsupported, "limit the container's disk", e);
    let mut disks = vec![disk_of(directory).map_err(failed)?];
    let layer = directory.join(LAYER);
    if layer.exists() {
        disks.push(disk_of(&layer).map_err(failed)?);
    }
    disks.dedup();
    let each = [
        (Direction::ReadBytes, rate.bytes),
        (Direction::WriteBytes, rate.bytes),
        (Direction::ReadOperations, rate.operations),
        (Direction::WriteOperations, rate.operations),
    ];
    let of = |device| {
        each.into_iter()
            .filter_map(move |(direction, rate)| Some(Throttle { direction, device, rate: rate? }))
    };
    Ok(disks.into_iter().flat_map(of).collect())
}

/// Changes the limits of a container that runs.
pub(crate) fn change(cgroup: &Cgroup, directory: &Path, rate: DiskRate) -> Result<()> {
    let mut cgroup = cgroup.clone();
    for throttle in throttles(directory, rate)? {
        cgroup
            .throttle(&throttle)
            .map_err(|e| Error::caused(ErrorKind::Failed, "limit the container's disk", e))?;
    }
    Ok(())
}

/// Adds the limits to what a program makes the container's cgroup with.
pub(crate) fn add(spec: &mut Spec, directory: &Path, rate: DiskRate) -> Result<()> {
    if rate.is_empty() {
        return Ok(());
    }
    let limits = throttles(directory, rate)?;
    put(spec, &limits).map_err(|e| Error::caused(ErrorKind::Failed, "describe a disk's limit", e))
}

fn put(spec: &mut Spec, limits: &[Throttle]) -> std::result::Result<(), OciSpecError> {
    let Some(linux) = spec.linux_mut() else { return Ok(()) };
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut block = match resources.block_io() {
        Some(block) => block.clone(),
        None => LinuxBlockIoBuilder::default().build()?,
    };
    for limit in limits.iter().filter(|limit| limit.rate > 0) {
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let device = LinuxThrottleDeviceBuilder::default()
            .major(signed(limit.device.0))
            .minor(signed(limit.device.1))
            .rate(limit.rate)
            .build()?;
        append(&mut block, limit.direction, device);
    }
    resources.set_block_io(Some(block));
    linux.set_resources(Some(resources));
    Ok(())
}

fn append(block: &mut LinuxBlockIo, direction: Direction, device: LinuxThrottleDevice) {
    let with = |devices: &Option<Vec<LinuxThrottleDevice>>| {
        let mut devices = devices.clone().unwrap_or_default();
        // One that was named by itself wins, as the more exact of two.
        let is_known =
            |known: &LinuxThrottleDevice| (known.major(), known.minor()) == (device.major(), device.minor());
        if !devices.iter().any(is_known) {
            devices.push(device);
        }
        Some(devices)
    };
    match direction {
        Direction::ReadBytes => block.set_throttle_read_bps_device(with(block.throttle_read_bps_device())),
        Direction::WriteBytes => block.set_throttle_write_bps_device(with(block.throttle_write_bps_device())),
        Direction::ReadOperations => {
            block.set_throttle_read_iops_device(with(block.throttle_read_iops_device()))
        }
        Direction::WriteOperations => {
            block.set_throttle_write_iops_device(with(block.throttle_write_iops_device()))
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_added_for_each_direction_and_an_exact_limit_stays() {
        let json = r#"{"ociVersion":"1.0.2","linux":{"resources":{"blockIO":{
            "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":5}]}}}}"#;
        let mut spec: Spec = serde_json::from_str(json).unwrap();
        let limit = |direction, rate| Throttle { direction, device: (8, 0), rate };
        let limits = [
            limit(Direction::ReadBytes, 9),
            limit(Direction::WriteBytes, 9),
            limit(Direction::WriteOperations, 0),
        ];
        put(&mut spec, &limits).unwrap();
        let resources = spec.linux().as_ref().unwrap().resources().as_ref().unwrap();
        let block = resources.block_io().as_ref().unwrap();
        let rates = |devices: &Option<Vec<LinuxThrottleDevice>>| {
            devices.iter().flatten().map(|device| device.rate()).collect::<Vec<_>>()
        };
        assert_eq!(rates(block.throttle_read_bps_device()), [5]);
        assert_eq!(rates(block.throttle_write_bps_device()), [9]);
        assert_eq!(*block.throttle_write_iops_device(), None);
    }

    #[test]
    fn a_directory_on_no_disk_is_refused() {
        let rate = DiskRate { bytes: Some(1), operations: None };
        let error = throttles(Path::new("/proc"), rate).unwrap_err();
        assert!(error.chain().contains("on no disk"), "{}", error.chain());
    }
}
