//! The demonstration's pools: how they are configured, what became of them, and what a program in them should do.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::guest::Guest;

/// The pools, in the order in which they are shown.
pub(super) const POOLS: [&str; 4] = ["runc", "gvisor", "microvm", "firecracker"];

/// What is run in every pool.
pub(super) const PROGRAM: &str = "\
import os, platform, sys
print('kernel', platform.release())
print('pid', os.getpid())
print('sum of squares', sum(n * n for n in range(1000)))
sys.exit(7)";

/// Its exit code, chosen so that nothing else has it.
const EXIT_CODE: i32 = 7;

/// Its last line.
const LAST_LINE: &str = "sum of squares 332833500";

/// The worker's configuration. Only the last pool may fall back.
pub(super) fn config(place: &Path, guest: &Guest, tools: &Path) -> Result<String> {
    // A JSON string is a YAML string.
    let quoted = |path: &Path| {
        let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
        Ok::<_, anyhow::Error>(Value::from(text).to_string())
    };
    let (root, vms, gvisor) =
        (quoted(&place.join("root"))?, quoted(&place.join("vms"))?, quoted(&place.join("gvisor"))?);
    let kernel = quoted(&guest.kernel)?;
    let vsock = quoted(&tools.join("vhost-device-vsock"))?;
    Ok(format!(
        "\
worker:
  root: {root}
  default_pool: runc
  pools:
    runc:
      container_runtime: runc
    gvisor:
      container_runtime: gvisor
      runtime_fallback: []
      container_runtime_config:
        gvisor_root: {gvisor}
    # Firecracker where it works, else QEMU; never anything that is not a microVM.
    microvm:
      container_runtime: microvm
      runtime_fallback: []
      container_runtime_config: &vm
        firecracker_root: {vms}
        firecracker_kernel: {kernel}
        qemu_root: {vms}
        qemu_kernel: {kernel}
        vhost_device_vsock_bin: {vsock}
    # Falls back to runc, which is the default, where Firecracker does not work.
    firecracker:
      container_runtime: firecracker
      container_runtime_config: *vm
"
    ))
}

/// A pool as `status` shows it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Pool {
    pub(super) name: String,
    pub(super) runtime_asked: String,
    pub(super) runtime: Option<String>,
    pub(super) ready: bool,
    pub(super) fell_back: bool,
    pub(super) failures: Vec<Failure>,
}

/// A runtime that was tried and does not work.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Failure {
    pub(super) runtime: String,
    pub(super) error: String,
}

/// One run of the program.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) output: String,
    pub(super) errors: String,
    pub(super) exit_code: Option<i32>,
    /// From the request to the running process, as the container's record has it.
    pub(super) start_ms: Option<u64>,
}

/// A pool and what happened in it; nothing where it is not ready.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) pool: Pool,
    pub(super) ran: Option<Ran>,
}

impl Row {
    /// What is wrong, in one sentence.
    pub(super) fn failure(&self) -> Option<String> {
        let name = &self.pool.name;
        let Some(ran) = &self.ran else {
            let reasons: Vec<_> = self.pool.failures.iter().map(|failure| failure.error.as_str()).collect();
            return Some(format!("pool {name} is not ready: {}", reasons.join("; ")));
        };
        match ran.exit_code {
            Some(EXIT_CODE) if ran.output.lines().last() == Some(LAST_LINE) => None,
            Some(EXIT_CODE) => Some(format!("the program in pool {name} printed something else")),
            Some(code) => {
                let said = ran.errors.trim();
                let said = if said.is_empty() { String::new() } else { format!(": {said}") };
                Some(format!("the program in pool {name} ended with {code} instead of {EXIT_CODE}{said}"))
            }
            None => Some(format!("the program in pool {name} has no exit code")),
        }
    }

    /// Whether it ran in a virtual machine.
    pub(super) fn is_microvm(&self) -> bool {
        self.ran.is_some() && matches!(self.pool.runtime.as_deref(), Some("firecracker" | "qemu"))
    }

    /// The kernel that the program saw.
    pub(super) fn kernel(&self) -> &str {
        let lines = self.ran.iter().flat_map(|ran| ran.output.lines());
        lines.filter_map(|line| line.strip_prefix("kernel ")).next().unwrap_or("-")
    }
}
