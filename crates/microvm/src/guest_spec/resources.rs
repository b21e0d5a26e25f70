//! Limits: those of the container's cgroup in the guest, and what they mean for the VM's size.

use beta9_runtime::Result;
use beta9_wire::Resources;
use oci_spec::runtime::{LinuxResources, Spec};

use super::invalid;

/// The kernel's default period of `cpu.max`, microseconds.
const DEFAULT_PERIOD: u64 = 100_000;

fn of(spec: &Spec) -> Option<&LinuxResources> {
    spec.linux().as_ref()?.resources().as_ref()
}

pub(super) fn translate(spec: &Spec) -> Result<Resources> {
    let pids = of(spec).and_then(|resources| resources.pids().as_ref()).map(|pids| pids.limit());
    Ok(Resources {
        memory_max: memory_limit(spec),
        // Zero and below are "no limit" (runtime-spec, "PIDs").
        pids_max: pids.and_then(|limit| u64::try_from(limit).ok()).filter(|limit| *limit > 0),
        cpu_max: cpu_limit(spec)?,
    })
}

/// Bytes, where there is a limit.
pub(crate) fn memory_limit(spec: &Spec) -> Option<u64> {
    let limit = of(spec)?.memory().as_ref()?.limit()?;
    u64::try_from(limit).ok().filter(|limit| *limit > 0)
}

/// How many CPUs are chosen by a list such as `0-2,5`, where one is given.
pub(crate) fn cpu_set(spec: &Spec) -> Option<u64> {
    let list = of(spec)?.cpu().as_ref()?.cpus().as_ref()?;
    let count = list.split(',').filter_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        Some(last.checked_sub(first)?.saturating_add(1))
    });
    Some(count.fold(0, u64::saturating_add)).filter(|count| *count > 0)
}

/// Quota and period in microseconds, where there is a limit.
pub(crate) fn cpu_limit(spec: &Spec) -> Result<Option<(u64, u64)>> {
    let Some(cpu) = of(spec).and_then(|resources| resources.cpu().as_ref()) else { return Ok(None) };
    let Some(quota) = cpu.quota().and_then(|quota| u64::try_from(quota).ok()).filter(|quota| *quota > 0)
    else {
        return Ok(None);
    };
    match cpu.period().unwrap_or(DEFAULT_PERIOD) {
        // The kernel's own bounds.
        period @ 1_000..=1_000_000 => Ok(Some((quota, period))),
        period => Err(invalid(&format!("cpu.period {period} is not between 1000 and 1000000 microseconds"))),
    }
}
