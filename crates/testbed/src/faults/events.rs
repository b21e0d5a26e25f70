//! What a worker tells of, seen by a client that listens all the time.

use anyhow::{Result, ensure};
use beta9_types::RuntimeKind;
use rustix::process::Signal;

use super::{at, worker::serve};
use crate::{Running, Site, World};

/// Takes all the memory that there is.
const HOG: &str = "a=0123456789abcdef; while true; do a=$a$a; done";

pub(super) fn are_told(runtime: RuntimeKind) -> Result<()> {
    at(Site::prepare()?, |site| {
        let daemon = serve(site)?;
        let world = World::new(site, runtime, "told");
        // `--since` begins before the request, so what is told while it is under way is not missed.
        let listen = |filter: &str| -> Result<Running> {
            site.command([
                "events",
                "--since",
                "1h",
                "--filter",
                filter,
                "--format",
                "{{.event}} {{.name}} {{json .attributes}}",
            ])
            .spawn()
        };
        let container =
            world.detach_ready(&["-l", "role=told"], "echo ready; while :; do sleep 0.2; done")?;
        let told = listen("label=role=told")?;
        let name = &container.name;
        let shows = |words: &[&str]| words.iter().try_for_each(|word| told.stdout_shows(word));
        shows(&[&format!("create {name} "), &format!("start {name} ")])?;
        container.exec(&[], &["sh", "-c", "exit 3"]).finish()?.ends_with(3)?;
        shows(&[
            &format!("exec_create {name} "),
            &format!("exec_start {name} "),
            &format!("exec_die {name} "),
            "\"exit_code\":\"3\"",
        ])?;
        container.exec(&["-d"], &["sh", "-c", "exit 4"]).finish()?.ends_with(0)?;
        shows(&["\"exit_code\":\"4\""])?;
        container.exec(&[], &["no-such-program"]).finish()?.ends_with(127)?;
        shows(&["\"exit_code\":\"127\""])?;
        container.run(&["pause"])?.ends_with(0)?;
        container.run(&["unpause"])?.ends_with(0)?;
        shows(&[&format!("pause {name} "), &format!("unpause {name} ")])?;
        container.run(&["stop", "-s", "KILL"])?.ends_with(0)?;
        shows(&[&format!("stop {name} "), &format!("die {name} "), "\"exit_code\":\"137\""])?;
        container.run(&["rm"])?.ends_with(0)?;
        shows(&[&format!("destroy {name} ")])?;
        drop(told);

        let memory = listen("event=oom")?;
        let (hungry, finished) = world.run_kept(&["-m", "64m"], &["sh", "-c", HOG])?;
        finished.ends_with(137)?;
        memory.stdout_shows(&format!("oom {} ", hungry.name))?;
        drop((memory, hungry));

        let archive = world.directory()?.join("image.tar").to_string_lossy().into_owned();
        for words in [
            &["image", "export", "busybox", &archive][..],
            &["image", "import", "-t", "again:1", &archive],
            &["image", "rm", "again:1"],
        ] {
            site.command(words.iter().copied()).finish()?.ends_with(0)?;
        }
        let images = site
            .command(["events", "--since", "1h", "--until", "0s", "--filter", "type=image"])
            .finish()?
            .ends_with(0)?;
        for word in ["image export", "image import", "again:1", "image untag"] {
            ensure!(images.out().contains(word), "{word:?} was not told\n{images}");
        }
        ensure!(!images.out().contains(" container "), "something else was told\n{images}");
        daemon.signal(Signal::TERM)?;
        daemon.finish()?.ends_with(0)?;
        Ok(())
    })
}
