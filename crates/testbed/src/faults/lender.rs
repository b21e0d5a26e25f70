//! The process dies that boots a VM over the disks of a container that is over, to copy its files.

use anyhow::{Result, ensure};
use beta9_types::RuntimeKind;

use super::at;
use crate::processes::{self, kill};
use crate::{Site, World};

pub(super) fn is_killed(runtime: RuntimeKind) -> Result<()> {
    at(Site::prepare()?, |site| {
        let world = World::new(site, runtime, "lending");
        let script = "test -e /big || head -c 30000000 /dev/zero > /big; exit 7";
        let (container, finished) = world.run_kept(&[], &["sh", "-c", script])?;
        finished.ends_with(7)?;
        let id = container.inspect()?["id"].as_str().unwrap_or_default().to_owned();
        let directory = site.root().join("containers").join(&id);
        let lender = format!("supervise\0{}\0--lend", directory.display());
        let big = format!("{}:/big", container.name);

        // While the VM boots.
        let copy = site.command(["cp", &big, "-"]).spawn()?;
        kill(processes::appears(&lender)?)?;
        let finished = copy.finish()?.ends_with(1)?;
        ensure!(finished.err().lines().count() == 1, "more than one sentence\n{finished}");
        container.ended(7, "exited")?;
        ensure!(processes::of_container(&id)?.is_empty(), "programs of the VM go on");

        // While files are on their way.
        let copy = site.command(["cp", &big, "-"]).unread().spawn()?;
        let process = processes::appears(&lender)?;
        while !directory.join("lender.sock").exists() {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        kill(process)?;
        copy.finish()?.ends_with(1)?;

        // What was left behind is no hindrance, and neither is a copy that is abandoned.
        let copy = site.command(["cp", &big, "-"]).unread().spawn()?;
        processes::appears(&lender)?;
        drop(copy);
        container.run(&["start", "-a"])?.ends_with(7)?;
        container.ended(7, "exited")?;
        let copy = site.command(["cp", &big, "-"]).finish()?.ends_with(0)?;
        ensure!(copy.stdout.len() > 30_000_000, "{} bytes came", copy.stdout.len());
        container.run(&["rm"])?.ends_with(0)?;
        Ok(())
    })
}
