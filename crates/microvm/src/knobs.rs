//! What the host changes of a VM that runs, without its guest, and what that is at the moment.

use std::sync::{Arc, Mutex, PoisonError};

use beta9_runtime::Result;
use beta9_types::DiskRate;

use crate::engine::{Balloon, Change, Controls, DiskLimit};
use crate::sizing::VmSize;

/// Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Knobs {
    pub(crate) size: VmSize,
    controls: Controls,
    /// What was asked for last. An engine is told all of it, a request may say a part.
    disks: Arc<Mutex<DiskLimit>>,
    balloon: Balloon,
}

impl Knobs {
    pub(crate) fn new(size: VmSize, controls: Controls, disks: DiskLimit, balloon: Balloon) -> Self {
        Self { size, controls, disks: Arc::new(Mutex::new(disks)), balloon }
    }

    pub(crate) async fn limit_disks(&self, rate: DiskRate) -> Result<()> {
        let limit = {
            let mut disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
            *disks = disks.changed(rate);
            *disks
        };
        self.controls.change(Change::Disks(limit)).await
    }

    /// Leaves the guest so much memory for its container, as far as it can do without the rest. A VM without a balloon
    /// keeps all of it.
    pub(crate) async fn leave_memory(&self, bytes: u64) -> Result<()> {
        if self.balloon == Balloon::Absent {
            return Ok(());
        }
        let (taken, of) = (self.size.beyond(bytes), self.size.mem_mib);
        self.controls.change(Change::Balloon { taken, of }).await
    }
}
