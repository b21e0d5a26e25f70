//! What a container has beside its image, when the process that makes or serves it dies.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use beta9_types::RuntimeKind;
use rustix::process::Signal;

use super::at;
use super::supervisor::{self, is_lost};
use super::traces::{Trace, Watch};
use crate::{Site, World};

/// The supervisor dies at each step of making a layer with a limit: its file, its mount, what is on it.
pub(super) fn lose_the_maker_of_a_limited_layer(runtime: RuntimeKind) -> Result<()> {
    use Trace::{Container, State};
    const STEPS: &[Trace] = &[
        Container("supervisor.sock"),
        Container("layer.ext4"),
        Container("layer"),
        Container("bundle"),
        State("running"),
    ];
    at(Site::prepare()?, |site| {
        let world = World::new(site, runtime, "layer");
        let flags = ["--storage-opt", "size=48m"];
        for step in STEPS.windows(2) {
            let [done, next] = step else { continue };
            let container = supervisor::killed_between(&world, site, &flags, *done, *next)?;
            is_lost(&container)?;
            // What is left of the first start does not stand in the way of the next.
            container.run(&["start"])?.ends_with(0).with_context(|| format!("after {done:?}"))?;
            let write =
                "echo kept > /file && dd if=/dev/zero of=/big bs=1M count=64 2>&1 | grep -c 'No space left'";
            container.exec(&[], &["sh", "-c", write]).finish()?.prints("1")?;
            container.run(&["rm", "-f"])?.ends_with(0)?;
        }
        Ok(())
    })
}

/// Whoever makes and fills a volume dies on the way: the volume is whole or is not there, and the next one makes it.
pub(super) fn lose_the_maker_of_a_volume() -> Result<()> {
    at(Site::prepare()?, |site| {
        let world = World::new(site, RuntimeKind::Runc, "volume");
        let whole = world.run(&[], &["sh", "-c", "ls /bin | wc -l"])?.ends_with(0)?.out();
        let volumes = site.root().join("volumes");
        fs::create_dir_all(&volumes)?;
        // At the first trace of it, and a little later each time: made, named, being filled, filled, in use.
        for late in 0..12 {
            let name = format!("filled-{late}");
            let mount = format!("{name}:/bin");
            let watch = Watch::over(&volumes)?;
            let (container, client) = world.run_kept_aside(&["-d", "-v", &mount], &["true"])?;
            watch.entry(&volumes, if late < 4 { ".new-" } else { &name })?;
            std::thread::sleep(Duration::from_micros(500) * late);
            client.signal(Signal::KILL)?;
            client.finish()?;
            drop(container);
            let said = world.run(&["-v", &mount], &["sh", "-c", "ls /bin | wc -l"])?.ends_with(0)?.out();
            ensure!(said == whole, "{name} has {said} of {whole} files");
            world.worker(&["volume", "rm", &name])?.ends_with(0)?;
            // It would pass for the next one's first trace.
            remove_what_was_cut_short(&volumes)?;
        }
        Ok(())
    })
}

/// What was cut short goes with a later removal, once it is too old to be under way: nobody waits for that here.
fn remove_what_was_cut_short(volumes: &Path) -> Result<()> {
    for entry in fs::read_dir(volumes)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(b".new-") {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}
