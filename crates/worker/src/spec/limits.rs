//! What a container may use, in the words of the runtime spec.

use beta9_types::{ContainerRequest, CpuSet, LimitOptions, MemorySwap, Throttle, ThrottleKind};
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxBlockIo, LinuxBlockIoBuilder, LinuxCpu, LinuxCpuBuilder, LinuxDeviceCgroupBuilder, LinuxMemory,
    LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder, LinuxThrottleDevice,
    LinuxThrottleDeviceBuilder,
};

use super::Place;
use super::devices::{Device, look};
use crate::error::{Error, ErrorKind, Result};

/// docker's period of a CPU quota, microseconds.
const PERIOD: u64 = 100_000;

pub(super) fn resources(
    request: &ContainerRequest,
    place: &Place<'_>,
    devices: &[Device],
    warnings: &mut Vec<String>,
) -> Result<LinuxResources> {
    let failed = |e: OciSpecError| Error::internal("describe the container's limits", e);
    let limits = &request.options.limits;
    let mut rules =
        vec![LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build().map_err(failed)?];
    rules.extend(devices.iter().map(|device| device.rule.clone()));
    let mut resources = LinuxResourcesBuilder::default().devices(rules).build().map_err(failed)?;
    if let Some(memory) = memory(request, place, warnings).map_err(failed)? {
        resources.set_memory(Some(memory));
    }
    if let Some(cpu) = cpu(limits, place)? {
        resources.set_cpu(Some(cpu));
    }
    if let Some(limit) = limits.pids {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        resources.set_pids(Some(LinuxPidsBuilder::default().limit(limit).build().map_err(failed)?));
    }
    if let Some(block) = block_io(limits, place, warnings)? {
        resources.set_block_io(Some(block));
    }
    Ok(resources)
}

/// docker's rule: as much swap as memory, unless said otherwise.
fn memory(
    request: &ContainerRequest,
    place: &Place<'_>,
    warnings: &mut Vec<String>,
) -> std::result::Result<Option<LinuxMemory>, OciSpecError> {
    let limits = &request.options.limits;
    if request.memory.is_none() && limits.memory_reservation.is_none() {
        return Ok(None);
    }
    let mut memory = LinuxMemoryBuilder::default();
    if let Some(limit) = request.memory {
        // Within i64 by its own rule.
        let bytes = limit.get() as i64;
        memory = memory.limit(bytes);
        let total = match limits.memory_swap {
            None => bytes.saturating_mul(2),
            Some(MemorySwap::Unlimited) => -1,
            Some(MemorySwap::Limited(total)) => total.get() as i64,
        };
        // A VM has no swap of its own, so there is none to limit.
        if place.runtime.is_microvm() {
        } else if place.host.swap {
            memory = memory.swap(total);
        } else if limits.memory_swap.is_some() {
            warnings.push(
                "this host does not count swap: memory is limited, --memory-swap is left out".to_owned(),
            );
        }
    }
    if let Some(reservation) = limits.memory_reservation {
        memory = memory.reservation(reservation.get() as i64);
    }
    memory.build().map(Some)
}

fn cpu(limits: &LimitOptions, place: &Place<'_>) -> Result<Option<LinuxCpu>> {
    let available = place.host.cpus.len() as u64;
    if let Some(nano) = limits.nano_cpus
        && available > 0
        && nano > available * 1_000_000_000
    {
        let text =
            format!("--cpus asks for more than the {available} CPUs of this host: give at most {available}");
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    if let Some(set) = &limits.cpuset_cpus {
        check_cpus(set, &place.host.cpus)?;
    }
    let mut cpu = LinuxCpuBuilder::default();
    if let Some(nano) = limits.nano_cpus {
        // At most 8192 CPUs by its own rule.
        cpu = cpu.period(PERIOD).quota((nano / (1_000_000_000 / PERIOD)) as i64);
    }
    if let Some(shares) = limits.cpu_shares {
        cpu = cpu.shares(shares);
    }
    if let Some(set) = &limits.cpuset_cpus {
        cpu = cpu.cpus(set.to_string());
    }
    if let Some(set) = &limits.cpuset_mems {
        cpu = cpu.mems(set.to_string());
    }
    let cpu = cpu.build().map_err(|e| Error::internal("describe the container's limits", e))?;
    Ok((cpu != LinuxCpu::default()).then_some(cpu))
}

fn check_cpus(set: &CpuSet, available: &[u16]) -> Result<()> {
    match set.numbers().find(|number| !available.contains(number)) {
        Some(missing) if !available.is_empty() => {
            let text = format!("--cpuset-cpus {set} asks for CPU {missing}, which this host does not have");
            Err(Error::new(ErrorKind::Invalid, text))
        }
        _ => Ok(()),
    }
}

fn block_io(
    limits: &LimitOptions,
    place: &Place<'_>,
    warnings: &mut Vec<String>,
) -> Result<Option<LinuxBlockIo>> {
    let weight = limits.blkio_weight.filter(|_| place.host.disk_weight);
    if limits.blkio_weight.is_some() && weight.is_none() {
        warnings.push("this host does not share disks by weight: --blkio-weight is left out".to_owned());
    }
    if weight.is_none() && limits.throttles.is_empty() {
        return Ok(None);
    }
    let failed = |e: OciSpecError| Error::internal("describe the container's limits", e);
    let of = |kind: ThrottleKind| -> Result<Vec<LinuxThrottleDevice>> {
        limits.throttles.iter().filter(|throttle| throttle.kind == kind).map(throttle_device).collect()
    };
    let mut block = LinuxBlockIoBuilder::default().build().map_err(failed)?;
    block.set_weight(weight);
    let some = |devices: Vec<LinuxThrottleDevice>| (!devices.is_empty()).then_some(devices);
    block.set_throttle_read_bps_device(some(of(ThrottleKind::ReadBytes)?));
    block.set_throttle_write_bps_device(some(of(ThrottleKind::WriteBytes)?));
    block.set_throttle_read_iops_device(some(of(ThrottleKind::ReadOperations)?));
    block.set_throttle_write_iops_device(some(of(ThrottleKind::WriteOperations)?));
    Ok(Some(block))
}

fn throttle_device(throttle: &Throttle) -> Result<LinuxThrottleDevice> {
    let (_, _, major, minor) = look(throttle.device.as_ref())?;
    LinuxThrottleDeviceBuilder::default()
        .major(i64::from(major))
        .minor(i64::from(minor))
        .rate(throttle.rate)
        .build()
        .map_err(|e| Error::internal("describe a disk's limit", e))
}
