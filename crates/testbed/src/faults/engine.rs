//! The program that runs a VM dies.

use anyhow::{Context, Result, ensure};
use beta9_types::RuntimeKind;

use super::at;
use crate::processes::{self, kill};
use crate::{Site, World};

pub(super) fn is_killed(runtime: RuntimeKind) -> Result<()> {
    at(Site::prepare()?, |site| {
        let world = World::new(site, runtime, "vmm");
        let container = world.detach_ready(&[], "echo ready; sleep 1000")?;
        let program = if runtime == RuntimeKind::Qemu { "qemu-system" } else { "firecracker" };
        let process = processes::of_container(&container.id)?
            .into_iter()
            .find(|(_, command_line)| {
                command_line.split('\0').next().is_some_and(|name| name.contains(program))
            })
            .with_context(|| format!("no {program} in the container's cgroup"))?;
        kill(process.0)?;
        ensure!(container.wait()? == 125, "wait did not print 125");
        let known = container.ended(125, "vmm_lost")?;
        ensure!(known["exit"]["message"].is_string(), "the record does not say what happened: {known:#}");
        container.run(&["logs"])?.prints("ready")?;
        container.run(&["rm"])?.ends_with(0)?;
        Ok(())
    })
}
