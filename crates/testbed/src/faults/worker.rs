//! The daemon dies.

use anyhow::{Context, Result, ensure};
use beta9_types::RuntimeKind;
use rustix::process::Signal;

use super::{OBEDIENT, at};
use crate::{Running, Site, World};

/// Containers that run when it happens.
const CONTAINERS: usize = 10;

/// Of these, how many in VMs, which take long to boot where they are emulated.
const VMS: usize = 2;

/// A daemon that accepts requests.
pub(super) fn serve(site: &Site) -> Result<Running> {
    let worker = site.command(["serve"]).spawn()?;
    worker.stderr_shows("worker is serving")?;
    Ok(worker)
}

pub(super) fn is_killed(available: &[RuntimeKind]) -> Result<()> {
    at(Site::prepare()?, |site| {
        let first = serve(site)?;
        let mut vms = available.iter().copied().filter(|runtime| runtime.is_microvm()).cycle().take(VMS);
        let mut others = available.iter().copied().filter(|runtime| !runtime.is_microvm()).cycle();
        let runtimes: Vec<_> = vms.by_ref().chain(others.by_ref()).take(CONTAINERS).collect();
        let worlds: Vec<_> = runtimes.into_iter().map(|runtime| World::new(site, runtime, "mixed")).collect();
        let mut containers = Vec::new();
        for (number, world) in worlds.iter().enumerate() {
            let code = i32::try_from(number)? + 30;
            // Some end while nobody serves.
            let script = if number % 4 == 3 { "echo ready; sleep 2; exit $CODE" } else { OBEDIENT };
            containers.push((
                code,
                number % 4 == 3,
                world.detach_ready(&["-e", &format!("CODE={code}")], script)?,
            ));
        }
        let (_, _, watched) = containers.first().context("no containers")?;
        let follower = watched.follow()?;
        follower.stdout_shows("ready\n")?;

        first.signal(Signal::KILL)?;
        first.finish()?;
        let cut_off = follower.finish()?;
        ensure!(cut_off.code() != 0, "a client whose worker died was not told\n{cut_off}");
        for (code, ends_alone, container) in &containers {
            if *ends_alone {
                ensure!(container.wait()? == *code, "{} did not end with {code}", container.name);
            }
        }

        let second = site.command(["serve"]).spawn()?;
        second.stderr_shows("containers of an earlier worker adopted")?;
        second.stderr_shows("worker is serving")?;
        for (code, ends_alone, container) in &containers {
            if !*ends_alone {
                ensure!(container.inspect()?["status"] == "running", "{} did not go on", container.name);
                container.run(&["kill", "-s", "USR1"])?.ends_with(0)?;
            }
            ensure!(container.wait()? == *code, "{} did not end with {code}", container.name);
            container.ended(*code, "exited")?;
        }
        drop(containers);
        second.signal(Signal::TERM)?;
        second.finish()?.ends_with(0)?;
        Ok(())
    })
}

pub(super) fn is_doubled() -> Result<()> {
    at(Site::prepare()?, |site| {
        let first = serve(site)?;
        site.command(["serve"]).finish()?.ends_with(1)?.complains_of(&["another worker"])?;
        first.signal(Signal::TERM)?;
        first.finish()?.ends_with(0)?;
        Ok(())
    })
}
