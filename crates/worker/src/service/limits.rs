//! What a change of limits leaves in a container's files, for its next start and for its readers.

use beta9_supervisor::{ContainerDirectory, Record};
use beta9_types::{LimitChange, MemoryBytes};
use oci_spec::OciSpecError;
use oci_spec::runtime::{LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources, Spec};

use crate::error::{Error, Result};
use crate::service::Worker;
use crate::service::operate::HostChange;

impl Worker {
    /// Adds to a change what follows from it: swap that a container has beside its memory stays as much.
    pub(super) fn complete(directory: &ContainerDirectory, change: LimitChange) -> Result<LimitChange> {
        let spec = load(directory)?;
        let memory = resources(&spec).and_then(|resources| resources.memory().as_ref());
        let positive =
            |limit: Option<i64>| limit.and_then(|limit| u64::try_from(limit).ok()).filter(|l| *l > 0);
        let (limit, both) =
            memory.map_or((None, None), |memory| (positive(memory.limit()), positive(memory.swap())));
        let memory_swap_bytes = match (change.memory_bytes, limit, both) {
            (Some(wanted), Some(limit), Some(both)) => {
                Some(wanted.saturating_add(both.saturating_sub(limit)))
            }
            _ => None,
        };
        Ok(LimitChange { memory_swap_bytes, ..change })
    }

    pub(super) fn remember_limits(
        &self,
        directory: &ContainerDirectory,
        mut record: Record,
        change: LimitChange,
        host: HostChange,
    ) -> Result<()> {
        let mut spec = load(directory)?;
        change_spec(&mut spec, change, host.memory_reservation)
            .map_err(|e| Error::internal("change the runtime spec", e))?;
        let path = directory.spec();
        let new = path.with_extension("json.new");
        spec.save(&new).map_err(|e| Error::internal(format!("write {}", new.display()), e))?;
        std::fs::rename(&new, &path)
            .map_err(|e| Error::internal(format!("replace {}", path.display()), e))?;
        if let Some(bytes) = change.memory_bytes {
            record.request.memory = Some(MemoryBytes::try_from(bytes)?);
        }
        Ok(record.write(directory)?)
    }
}

fn load(directory: &ContainerDirectory) -> Result<Spec> {
    let path = directory.spec();
    Spec::load(&path).map_err(|e| Error::internal(format!("read {}", path.display()), e))
}

fn resources(spec: &Spec) -> Option<&LinuxResources> {
    spec.linux().as_ref()?.resources().as_ref()
}

fn change_spec(
    spec: &mut Spec,
    change: LimitChange,
    reservation: Option<MemoryBytes>,
) -> std::result::Result<(), OciSpecError> {
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let mut resources = resources(spec).cloned().unwrap_or_default();
    if change.memory_bytes.is_some() || reservation.is_some() {
        let mut memory = match resources.memory() {
            Some(memory) => *memory,
            None => LinuxMemoryBuilder::default().build()?,
        };
        if let Some(bytes) = change.memory_bytes {
            memory.set_limit(Some(signed(bytes)));
        }
        if let Some(reservation) = reservation {
            memory.set_reservation(Some(signed(reservation.get())));
        }
        if let Some(both) = change.memory_swap_bytes {
            memory.set_swap(Some(signed(both)));
        }
        resources.set_memory(Some(memory));
    }
    if let Some(quota) = change.cpu_quota_us() {
        let mut cpu = match resources.cpu() {
            Some(cpu) => cpu.clone(),
            None => LinuxCpuBuilder::default().build()?,
        };
        cpu.set_quota(Some(signed(quota)));
        cpu.set_period(Some(LimitChange::CPU_PERIOD_US));
        resources.set_cpu(Some(cpu));
    }
    if let Some(count) = change.pids {
        resources.set_pids(Some(LinuxPidsBuilder::default().limit(signed(count)).build()?));
    }
    if let Some(linux) = spec.linux_mut() {
        linux.set_resources(Some(resources));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_replaced_and_others_stay() {
        let json = r#"{"ociVersion":"1.0.2","linux":{"resources":{
            "memory":{"limit":1000,"reservation":7},"cpu":{"shares":3}}}}"#;
        let mut spec: Spec = serde_json::from_str(json).unwrap();
        let change = LimitChange {
            memory_bytes: Some(2000),
            memory_swap_bytes: Some(3000),
            nano_cpus: Some(500_000_000),
            pids: Some(9),
        };
        change_spec(&mut spec, change, None).unwrap();
        let resources = resources(&spec).unwrap();
        let memory = resources.memory().unwrap();
        assert_eq!((memory.limit(), memory.swap(), memory.reservation()), (Some(2000), Some(3000), Some(7)));
        let mut reserved = spec.clone();
        let reservation = Some(MemoryBytes::try_from(8 << 20).unwrap());
        change_spec(&mut reserved, LimitChange::default(), reservation).unwrap();
        let memory = super::resources(&reserved).unwrap().memory().unwrap();
        assert_eq!((memory.limit(), memory.reservation()), (Some(2000), Some(8 << 20)));
        let cpu = resources.cpu().as_ref().unwrap();
        assert_eq!((cpu.quota(), cpu.period(), cpu.shares()), (Some(50_000), Some(100_000), Some(3)));
        assert_eq!(resources.pids().unwrap().limit(), 9);
    }
}
