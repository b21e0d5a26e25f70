//! How big a VM is for what its container may use.

use beta9_runtime::{Error, ErrorKind, Result};
use beta9_types::{LimitChange, MemoryMib, RuntimeKind, RuntimeSettings};
use oci_spec::runtime::Spec;

use crate::guest_spec::{cpu_limit, cpu_set, memory_limit};

/// What the guest's kernel and init use beside the container: an estimate, with room for page cache and slabs. A
/// limit of 64 MiB works with it, which the stories show.
const GUEST_OVERHEAD_MIB: u64 = 128;
/// Firecracker's own limit.
const MAX_CPUS: u64 = 32;

/// A VM's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VmSize {
    pub(crate) cpus: u8,
    pub(crate) mem_mib: u32,
}

impl VmSize {
    /// What a VM without a container gets.
    pub(crate) fn of_settings(kind: RuntimeKind, settings: &RuntimeSettings) -> Self {
        let (cpus, mem) = match kind {
            RuntimeKind::Firecracker => (settings.firecracker_cpus, settings.firecracker_mem_mib),
            _ => (settings.qemu_cpus, settings.qemu_mem_mib),
        };
        Self { cpus, mem_mib: mem.get() }
    }

    /// vCPUs: the CPU limit rounded up, or the number of CPUs that were chosen, at most what the host and the engines have. Memory: the limit and what
    /// the guest itself needs. Where the spec has no limit the settings decide.
    pub(crate) fn of(spec: &Spec, kind: RuntimeKind, settings: &RuntimeSettings) -> Result<Self> {
        let (cpus, mem) = match kind {
            RuntimeKind::Firecracker => (settings.firecracker_cpus, settings.firecracker_mem_mib),
            _ => (settings.qemu_cpus, settings.qemu_mem_mib),
        };
        let wanted = match cpu_limit(spec)? {
            Some((quota, period)) => quota.div_ceil(period),
            // As many as it may run on, which is what it would see without a VM.
            None => cpu_set(spec).unwrap_or(cpus.into()),
        };
        let available = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
        let cpus = wanted.clamp(1, available.min(MAX_CPUS));
        let mem_mib = match memory_limit(spec) {
            Some(bytes) => checked(bytes.div_ceil(1 << 20).saturating_add(GUEST_OVERHEAD_MIB))?,
            None => mem,
        };
        // At most MAX_CPUS.
        Ok(Self { cpus: cpus as u8, mem_mib: mem_mib.get() })
    }
}

impl VmSize {
    /// Refuses limits that a VM of this size cannot give.
    pub(crate) fn check(self, change: &LimitChange) -> Result<()> {
        let refuse = |text: String| Err(Error::new(ErrorKind::Unsupported, text));
        let most = u64::from(self.mem_mib).saturating_sub(GUEST_OVERHEAD_MIB);
        if change.memory_bytes.is_some_and(|bytes| bytes > most << 20) {
            return refuse(format!(
                "a running VM does not grow: this one can give its container {most} MiB of memory; create another \
                 container for more"
            ));
        }
        let cpus = u64::from(self.cpus);
        if change.nano_cpus.is_some_and(|nanos| nanos > cpus * 1_000_000_000) {
            return refuse(format!(
                "a running VM does not grow: this one has {cpus} processors; create another container for more"
            ));
        }
        Ok(())
    }
}

impl VmSize {
    /// MiB that neither the guest itself nor a container with so much memory needs.
    pub(crate) fn beyond(self, container_bytes: u64) -> u32 {
        let needed = container_bytes.div_ceil(1 << 20).saturating_add(GUEST_OVERHEAD_MIB);
        self.mem_mib.saturating_sub(u32::try_from(needed).unwrap_or(u32::MAX))
    }
}

fn checked(mib: u64) -> Result<MemoryMib> {
    let size = u32::try_from(mib).ok().and_then(|mib| MemoryMib::try_from(mib).ok());
    size.ok_or_else(|| Error::new(ErrorKind::Unsupported, format!("a VM cannot have {mib} MiB of memory")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(resources: &str) -> Result<VmSize> {
        let json = format!(r#"{{"ociVersion":"1.0.2","linux":{{"resources":{resources}}}}}"#);
        let settings = RuntimeSettings { qemu_cpus: 1, ..RuntimeSettings::default() };
        VmSize::of(&serde_json::from_str(&json).unwrap(), RuntimeKind::Qemu, &settings)
    }

    #[test]
    fn limits_round_up_and_the_settings_fill_in() {
        assert_eq!(size("{}").unwrap(), VmSize { cpus: 1, mem_mib: 512 });
        assert_eq!(size(r#"{"memory":{"limit":67108865}}"#).unwrap().mem_mib, 65 + 128);
        assert_eq!(size(r#"{"memory":{"limit":-1}}"#).unwrap().mem_mib, 512);
        assert_eq!(size(r#"{"cpu":{"quota":50000,"period":100000}}"#).unwrap().cpus, 1);
        assert_eq!(size(r#"{"cpu":{"cpus":"0"}}"#).unwrap().cpus, 1);
        let all = std::thread::available_parallelism().unwrap().get();
        assert_eq!(usize::from(size(r#"{"cpu":{"cpus":"0-1,3"}}"#).unwrap().cpus), all.min(3));
        assert_eq!(
            usize::from(size(r#"{"cpu":{"quota":99000000,"period":100000}}"#).unwrap().cpus),
            all.min(32)
        );
    }

    #[test]
    fn a_vm_gives_up_to_its_size() {
        let size = VmSize { cpus: 2, mem_mib: 192 };
        let memory = |mib: u64| LimitChange { memory_bytes: Some(mib << 20), ..LimitChange::default() };
        size.check(&memory(64)).unwrap();
        assert!(size.check(&memory(65)).unwrap_err().to_string().contains("64 MiB"));
        assert_eq!((size.beyond(32 << 20), size.beyond(64 << 20), size.beyond(u64::MAX)), (32, 0, 0));
        let cpus = |nanos| LimitChange { nano_cpus: Some(nanos), ..LimitChange::default() };
        size.check(&cpus(2_000_000_000)).unwrap();
        assert!(size.check(&cpus(2_000_000_001)).unwrap_err().to_string().contains("2 processors"));
    }

    #[test]
    fn a_size_that_no_machine_has_is_refused() {
        assert!(size(r#"{"memory":{"limit":9223372036854775807}}"#).is_err());
        assert!(size(r#"{"cpu":{"quota":1,"period":1}}"#).is_err());
    }
}
