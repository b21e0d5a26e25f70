//! The process that owns a container dies: nobody knows how the container would have ended, and nobody guesses.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use beta9_types::RuntimeKind;

use super::at;
use crate::processes::{self, kill};
use crate::world::Container;
use crate::{Site, World};

pub(super) fn is_killed_while_running(runtime: RuntimeKind) -> Result<()> {
    at(Site::prepare()?, |site| {
        let world = World::new(site, runtime, "running");
        let container = world.detach_ready(&[], "echo ready; sleep 1000")?;
        kill(supervisor(site, &container)?)?;
        is_lost(&container)?;
        container.run(&["logs"])?.prints("ready")?;
        ensure!(processes::of_container(&container.id)?.is_empty(), "processes of the container go on");
        container.run(&["rm"])?.ends_with(0)?;
        Ok(())
    })
}

pub(super) fn is_killed_while_stopping(runtime: RuntimeKind) -> Result<()> {
    at(Site::prepare()?, |site| {
        let world = World::new(site, runtime, "stopping");
        let script = "trap 'echo told' TERM; echo ready; while true; do sleep 0.1; done";
        let container = world.detach_ready(&[], script)?;
        let log = container.follow()?;
        let stop = container.command(&["stop", "-t", "100"]).spawn()?;
        log.stdout_shows("told")?;
        kill(supervisor(site, &container)?)?;
        // It may report the loss as a failure or as the end that was asked for; it must not wait on.
        stop.finish()?;
        log.finish()?;
        is_lost(&container)?;
        Ok(())
    })
}

pub(super) fn is_killed_at_the_start(runtime: RuntimeKind) -> Result<()> {
    at(Site::prepare()?, |site| {
        let world = World::new(site, runtime, "starting");
        // The steps of a start take milliseconds with runc and seconds with an emulated VM.
        let moments: &[u64] = if runtime.is_microvm() { &[300, 3000] } else { &[0, 10, 30, 60, 100, 200] };
        for moment in moments {
            let (container, client) = world.run_kept_aside(&["-d"], &["sleep", "1000"])?;
            let supervise = format!("supervise\0{}/", site.root().join("containers").display());
            let process = processes::appears(&supervise)?;
            thread::sleep(Duration::from_millis(*moment));
            kill(process)?;
            let finished = client.finish()?;
            // Killed in time it failed; and it may have been up by then.
            ensure!(matches!(finished.code(), 0 | 125), "expected 0 or 125\n{finished}");
            let known = container.inspect()?;
            let is_untouched = known["status"] == "created";
            let is_lost = known["exit"]["code"] == 125 && known["exit"]["reason"] == "supervisor_lost";
            ensure!(is_untouched || is_lost, "after {moment} ms: {known:#}");
            container.run(&["rm"])?.ends_with(0)?;
        }
        Ok(())
    })
}

fn is_lost(container: &Container<'_, '_>) -> Result<()> {
    let known = container.ended(125, "supervisor_lost")?;
    ensure!(known["exit"]["message"].is_string(), "the record does not say what happened: {known:#}");
    ensure!(container.wait()? == 125, "wait did not print 125");
    Ok(())
}

fn supervisor(site: &Site, container: &Container<'_, '_>) -> Result<rustix::process::Pid> {
    let directory = site.root().join("containers").join(&container.id);
    processes::appears(&format!("supervise\0{}", directory.display()))
}
