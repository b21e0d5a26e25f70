//! From a runtime's name to the runtime.

use beta9_microvm::Microvm;
use beta9_oci::{Gvisor, Runc};
use beta9_runtime::{Result, Runtime};
use beta9_sys::reaper::Reaper;
use beta9_types::{RuntimeKind, RuntimeSettings};

pub(crate) fn build(
    kind: RuntimeKind,
    settings: &RuntimeSettings,
    reaper: &Reaper,
) -> Result<Box<dyn Runtime>> {
    Ok(match kind {
        RuntimeKind::Runc => Box::new(Runc::new(settings, reaper.clone())),
        RuntimeKind::Gvisor => Box::new(Gvisor::new(settings, reaper.clone())),
        RuntimeKind::Firecracker | RuntimeKind::Qemu => {
            Box::new(Microvm::new(kind, settings, reaper.clone())?)
        }
    })
}
