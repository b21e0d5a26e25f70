//! A guest has less memory than it thought.

use anyhow::{Context, Result, ensure};
use beta9_types::RuntimeKind;

use super::at;
use crate::{Container, Site, World};

/// The host takes memory back, and the guest gets it again when it would have to kill somebody otherwise.
pub(super) fn is_filled(runtime: RuntimeKind) -> Result<()> {
    at(Site::with_settings("", "memory_balloon: true")?, |site| {
        let world = World::new(site, runtime, "balloon");
        let script = "echo ready; while true; do sleep 0.2; done";
        let container = world.detach_ready(&["-m", "256m", "--tmpfs", "/big:size=300m"], script)?;
        let touch = |megabytes: u32| {
            let script = format!("dd if=/dev/zero of=/big/file bs=1M count={megabytes} 2>/dev/null");
            container.exec(&[], &["sh", "-c", &script]).finish()?.ends_with(0)
        };
        // What was used once stays the VM's, also when its guest has no use for it.
        touch(180)?;
        container.exec(&[], &["rm", "/big/file"]).finish()?.ends_with(0)?;
        let before = of_vm(&container)?;
        container.run(&["update", "--memory-reservation", "32m"])?.prints(&container.name)?;
        let taken = before.saturating_sub(falls_below(&container, before - (100 << 20))?);
        ensure!(taken > 100 << 20, "the host got only {taken} bytes back");

        // Within its limit, and more than the guest has.
        touch(180)?;
        ensure!(container.inspect()?["status"] == "running", "it does not run any more");
        let again = of_vm(&container)?;
        ensure!(again > before - (60 << 20), "the VM has {again} bytes, and had {before}");
        Ok(())
    })
}

/// Bytes of memory on the host.
fn of_vm(container: &Container<'_, '_>) -> Result<u64> {
    let finished = container.run(&["stats", "--no-stream", "--output", "json"])?.ends_with(0)?;
    let stats: serde_json::Value = serde_json::from_slice(&finished.stdout)?;
    stats[0]["vm_bytes"].as_u64().with_context(|| format!("no memory of a VM\n{finished}"))
}

/// Waits for it to have less; how fast is the guest's own affair, and nobody tells when it is done.
fn falls_below(container: &Container<'_, '_>, most: u64) -> Result<u64> {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let bytes = of_vm(container)?;
        if bytes < most {
            return Ok(bytes);
        }
        ensure!(std::time::Instant::now() < end, "the VM still has {bytes} bytes");
    }
}
