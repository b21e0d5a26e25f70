//! A VM's place on the host: its processors and disks, and its share among competitors. What the container may use of them
//! is what the VM may, so it is the VM's cgroup on the host that is limited, and nothing in the guest.

use beta9_runtime::{Error, ErrorKind, Result};
use beta9_sys::cgroup::{Cgroup, Direction, Throttle};
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxResources, LinuxThrottleDevice, Spec};

fn resources(spec: &Spec) -> Option<&LinuxResources> {
    spec.linux().as_ref()?.resources().as_ref()
}

/// Keeps a VM to its part of the machine. What the host cannot do is an error: it was asked for.
pub(crate) fn place(cgroup: &mut Cgroup, spec: &Spec) -> Result<()> {
    let failed = |error: beta9_sys::Error| {
        Error::caused(ErrorKind::Failed, "keep the VM to its processors and disks", error)
    };
    let Some(resources) = resources(spec) else { return Ok(()) };
    if let Some(cpu) = resources.cpu() {
        let list = |list: &Option<String>| list.clone().filter(|list| !list.is_empty());
        let (cpus, nodes) = (list(cpu.cpus()), list(cpu.mems()));
        if cpus.is_some() || nodes.is_some() {
            cgroup.confine(cpus.as_deref(), nodes.as_deref()).map_err(failed)?;
        }
    }
    if let Some(block) = resources.block_io() {
        if let Some(weight) = block.weight() {
            cgroup.share_disks(weight).map_err(failed)?;
        }
        for throttle in throttles(block) {
            cgroup.throttle(&throttle).map_err(failed)?;
        }
    }
    Ok(())
}

fn throttles(block: &LinuxBlockIo) -> Vec<Throttle> {
    let of = |direction, devices: &Option<Vec<LinuxThrottleDevice>>| {
        let throttle = move |device: &LinuxThrottleDevice| Throttle {
            direction,
            device: (device.major().unsigned_abs(), device.minor().unsigned_abs()),
            rate: device.rate(),
        };
        devices.iter().flatten().map(throttle).collect::<Vec<_>>()
    };
    [
        of(Direction::ReadBytes, block.throttle_read_bps_device()),
        of(Direction::WriteBytes, block.throttle_write_bps_device()),
        of(Direction::ReadOperations, block.throttle_read_iops_device()),
        of(Direction::WriteOperations, block.throttle_write_iops_device()),
    ]
    .concat()
}

/// Gives a VM its share among its competitors on the host.
pub(crate) fn compete(cgroup: &Cgroup, spec: &Spec) {
    let Some(resources) = resources(spec) else { return };
    let shares = resources.cpu().as_ref().and_then(LinuxCpu::shares);
    let reserved = resources.memory().as_ref().and_then(|memory| memory.reservation());
    let set = [
        shares.map(|shares| cgroup.share_cpu(shares)),
        reserved.and_then(|bytes| u64::try_from(bytes).ok()).map(|bytes| cgroup.reserve_memory(bytes)),
    ];
    for failed in set.into_iter().flatten().filter_map(std::result::Result::err) {
        let error: &dyn std::error::Error = &failed;
        tracing::warn!(error, "a microvm runs without a setting of its cgroup");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_of_a_disk_is_taken_over() {
        let json = r#"{"ociVersion":"1.0.2","linux":{"resources":{"blockIO":{
            "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1}],
            "throttleWriteIOPSDevice":[{"major":8,"minor":16,"rate":2}]}}}}"#;
        let spec: Spec = serde_json::from_str(json).unwrap();
        let found = throttles(resources(&spec).unwrap().block_io().as_ref().unwrap());
        assert_eq!(
            found,
            [
                Throttle { direction: Direction::ReadBytes, device: (8, 0), rate: 1 },
                Throttle { direction: Direction::WriteOperations, device: (8, 16), rate: 2 },
            ]
        );
    }
}
