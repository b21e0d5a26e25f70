//! The messages that every start of a worker logs. Their words and fields are fixed: alerts and scripts match them.

use beta9_types::{PoolName, RuntimeChoice, RuntimeKind, RuntimeSettings};
use tracing::{error, info, warn};

use crate::select::{Selection, Step};

/// The target of these messages.
pub const TARGET: &str = "beta9_worker::pool";

/// A pool's runtime is about to be created.
pub fn initializing(pool: &PoolName, runtime: RuntimeChoice) {
    info!(target: TARGET, %pool, %runtime, "initializing container runtime for worker pool");
}

/// A runtime works. `settings` are those it was created with.
pub fn initialized(kind: RuntimeKind, settings: &RuntimeSettings) {
    let s = settings;
    match kind {
        RuntimeKind::Runc => {
            info!(target: TARGET, bin = %s.runc_bin.display(), "runc runtime initialized successfully");
        }
        RuntimeKind::Gvisor => info!(
            target: TARGET,
            bin = %s.gvisor_bin.display(),
            root = %s.gvisor_root.display(),
            platform = %s.gvisor_platform,
            "gVisor runtime initialized successfully"
        ),
        RuntimeKind::Firecracker => info!(
            target: TARGET,
            bin = %s.firecracker_bin.display(),
            root = %s.firecracker_root.display(),
            kernel = %s.firecracker_kernel.display(),
            cpus = s.firecracker_cpus,
            mem_mib = s.firecracker_mem_mib.get(),
            "Firecracker runtime initialized successfully"
        ),
        RuntimeKind::Qemu => info!(
            target: TARGET,
            bin = %s.qemu_bin.display(),
            root = %s.qemu_root.display(),
            kernel = %s.qemu_kernel.display(),
            cpus = s.qemu_cpus,
            mem_mib = s.qemu_mem_mib.get(),
            accel = s.qemu_accel.as_str(),
            "QEMU runtime initialized successfully"
        ),
    }
}

/// A runtime works, and there is something about it that its operator should know.
pub fn warned(pool: &PoolName, kind: RuntimeKind, warning: &str) {
    warn!(target: TARGET, %pool, runtime = %kind, warning, "container runtime works with a reservation");
}

/// The last attempt of a selection failed; `step` is what [`Selection::record`] made of it.
pub fn failed(selection: &Selection, step: Step) {
    let Some(attempt) = selection.reasons().last() else { return };
    let (kind, error) = (attempt.kind, attempt.error.as_str());
    match step {
        Step::Ready(_) => {}
        Step::TryNext(next) => warn!(target: TARGET, error, "failed to create {kind} runtime, trying {next}"),
        Step::FallBack(next) => {
            warn!(target: TARGET, error, "failed to create {kind} runtime, falling back to {next}");
        }
        Step::NotReady => {
            let pool = selection.pool();
            error!(target: TARGET, %pool, error, "failed to create {kind} runtime, pool is not ready");
        }
    }
}
