//! The command line's process dies.

use anyhow::{Result, ensure};
use beta9_types::RuntimeKind;
use rustix::process::Signal;

use super::{OBEDIENT, at};
use crate::{Site, World};

pub(super) fn is_killed(runtime: RuntimeKind) -> Result<()> {
    at(Site::prepare()?, |site| {
        let world = World::new(site, runtime, "client");
        let (container, client) = world.run_kept_aside(&["-e", "CODE=21"], &["sh", "-c", OBEDIENT])?;
        client.stdout_shows("ready\n")?;
        client.signal(Signal::KILL)?;
        client.finish()?;
        ensure!(container.inspect()?["status"] == "running", "the container went with its client");
        container.run(&["kill", "-s", "USR1"])?.ends_with(0)?;
        ensure!(container.wait()? == 21, "wait did not print 21");
        container.run(&["logs"])?.prints("ready")?;
        Ok(())
    })
}
