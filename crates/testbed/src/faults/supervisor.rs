//! The process that owns a container dies: nobody knows how the container would have ended, and nobody guesses.

use anyhow::{Result, bail, ensure};
use beta9_types::RuntimeKind;

use super::at;
use super::traces::{self, Haste, Places, Trace, Watch};
use crate::processes::{self, kill};
use crate::world::Container;
use crate::{Running, Site, World};

/// How often a step is tried that may be over before it can be hit.
const ATTEMPTS: usize = 30;

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

/// Every step is hit: seen by its trace, with that of the next one still to come.
pub(super) fn is_killed_at_the_start(runtime: RuntimeKind) -> Result<()> {
    at(Site::prepare()?, |site| {
        let world = World::new(site, runtime, "starting");
        for step in traces::start(runtime).windows(2) {
            let [done, next] = step else { continue };
            killed_between(&world, site, &[], *done, *next)?.run(&["rm"])?.ends_with(0)?;
        }
        Ok(())
    })
}

/// A container whose supervisor was killed when `done` was there and `next` was not, and that is recorded so.
pub(super) fn killed_between<'w, 'a>(
    world: &'w World<'a>,
    site: &Site,
    flags: &[&str],
    done: Trace,
    next: Trace,
) -> Result<Container<'w, 'a>> {
    for _ in 0..ATTEMPTS {
        let (container, client, places) = begin(world, site, flags, &["sleep", "1000"])?;
        let process = places.supervisor()?;
        places.reach(done)?;
        kill(process)?;
        let is_hit = !places.has(next);
        drop(places);
        // Killed in time it failed; and it may have been up by then.
        let finished = client.finish()?;
        ensure!(finished.code() == 125 || !is_hit, "a start that was cut short\n{finished}");
        is_lost(&container)?;
        if is_hit {
            return Ok(container);
        }
        container.run(&["rm"])?.ends_with(0)?;
    }
    bail!("{ATTEMPTS} times {next:?} was there before the supervisor was killed at {done:?}")
}

/// The verdict is on disk, and what the container held is not given back yet: the verdict stays.
pub(super) fn is_killed_while_cleaning_up(runtime: RuntimeKind) -> Result<()> {
    at(Site::prepare()?, |site| {
        let world = World::new(site, runtime, "cleaning");
        for _ in 0..ATTEMPTS {
            let (container, client, places) = begin(&world, site, &[], &["sh", "-c", "exit 33"])?;
            let process = places.supervisor()?;
            places.reach(Trace::State("exited"))?;
            // It may be quicker than we are; then there is nothing to kill.
            let killed = kill(process);
            let is_hit = !places.is_cleaned();
            drop(places);
            client.finish()?;
            if is_hit {
                killed?;
                ensure!(container.wait()? == 33, "the verdict was lost");
                container.ended(33, "exited")?;
            }
            container.run(&["rm"])?.ends_with(0)?;
            if is_hit {
                return Ok(());
            }
        }
        bail!("{ATTEMPTS} times everything was clean before the supervisor was killed")
    })
}

/// Starts a container in the background, and says where its traces will be as soon as it has a directory.
pub(super) fn begin<'w, 'a>(
    world: &'w World<'a>,
    site: &Site,
    flags: &[&str],
    command: &[&str],
) -> Result<(Container<'w, 'a>, Running, Places)> {
    let containers = site.root().join("containers");
    let watch = Watch::over(&containers)?;
    let (container, client) = world.run_kept_aside(&[&["-d"], flags].concat(), command)?;
    // Only now, so that the container's processes do not inherit it: who is told of a trace has to be quick.
    let haste = Haste::make();
    let directory = watch.first_entry(&containers)?;
    Ok((container, client, Places::new(directory, site.vms(world.runtime()), haste)?))
}

pub(super) fn is_lost(container: &Container<'_, '_>) -> Result<()> {
    let known = container.ended(125, "supervisor_lost")?;
    ensure!(known["exit"]["message"].is_string(), "the record does not say what happened: {known:#}");
    ensure!(container.wait()? == 125, "wait did not print 125");
    Ok(())
}

pub(super) fn supervisor(site: &Site, container: &Container<'_, '_>) -> Result<rustix::process::Pid> {
    let directory = site.root().join("containers").join(&container.id);
    processes::appears(&format!("supervise\0{}", directory.display()))
}
