//! Volumes: made, filled, shared, kept and removed.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::stories;
use crate::World;
use crate::site::Site;

stories![
    Core a_volume_outlives_its_containers,
    Full an_empty_volume_gets_what_the_image_has,
    Full a_containers_own_volumes_go_with_it,
    Full an_image_says_what_its_volumes_are,
    Full volumes_of_another_container,
    Full volumes_that_nobody_has_are_pruned,
];

/// A volume's name; whatever happens, the volume goes.
struct Volume<'w, 'a> {
    world: &'w World<'a>,
    name: String,
}

impl Volume<'_, '_> {
    fn of<'w, 'a>(world: &'w World<'a>) -> Volume<'w, 'a> {
        Volume { world, name: world.name() }
    }

    fn at(&self, target: &str) -> String {
        format!("{}:{target}", self.name)
    }

    fn inspect(&self) -> Result<Value> {
        let finished = self.world.worker(&["volume", "inspect", &self.name])?.ends_with(0)?;
        let mut all: Vec<Value> = serde_json::from_slice(&finished.stdout).context("not JSON")?;
        ensure!(all.len() == 1, "expected one volume\n{finished}");
        Ok(all.remove(0))
    }

    fn path(&self) -> Result<PathBuf> {
        Ok(self.inspect()?["path"].as_str().context("a volume has a path")?.into())
    }
}

impl Drop for Volume<'_, '_> {
    fn drop(&mut self) {
        let _ = self.world.worker(&["volume", "rm", "-f", &self.name]);
    }
}

fn a_volume_outlives_its_containers(world: &World<'_>) -> Result<()> {
    let volume = Volume::of(world);
    let make = ["volume", "create", "--label", "of=story", &volume.name];
    world.worker(&make)?.prints(&volume.name)?;
    world.worker(&make)?.prints(&volume.name)?;
    let script = "echo kept > /data/file; chmod 640 /data/file; chown 1000:2000 /data/file";
    world.run(&["-v", &volume.at("/data")], &["sh", "-c", script])?.prints("")?;
    let file = volume.path()?.join("file");
    let meta = fs::metadata(&file).context("the volume does not have the file")?;
    ensure!(
        (meta.uid(), meta.gid(), meta.mode() & 0o7777) == (1000, 2000, 0o640),
        "owner and mode are others"
    );
    let (container, finished) = world.run_kept(
        &["--mount", &format!("source={},target=/data,readonly", volume.name)],
        &["sh", "-c", "cat /data/file; (echo x > /data/new) 2>&1 | grep -c 'Read-only file system'"],
    )?;
    finished.prints("kept\n1")?;
    let known = volume.inspect()?;
    let id = container.inspect()?["id"].clone();
    ensure!(known["containers"][0] == id && known["labels"]["of"] == "story", "volume is {known:#}");
    // A container that is over has it still.
    world.worker(&["volume", "rm", &volume.name])?.ends_with(1)?.complains_of(&[&volume.name, "in use"])?;
    container.run(&["rm", "-v"])?.ends_with(0)?;
    ensure!(file.exists(), "a volume that has a name went with a container");
    world.worker(&["volume", "rm", &volume.name])?.prints(&volume.name)?;
    ensure!(!file.exists(), "the volume is still there");
    world.worker(&["volume", "rm", &volume.name])?.ends_with(1)?.complains_of(&["no such volume"])?;
    world.worker(&["volume", "rm", "-f", &volume.name])?.ends_with(0)?;
    Ok(())
}

fn an_empty_volume_gets_what_the_image_has(world: &World<'_>) -> Result<()> {
    let volume = Volume::of(world);
    // What the image has in /home, with the owner of /home/app.
    let script = "stat -c '%u %g %a' /home/app; echo more > /home/app/more; ls /home";
    world.run(&["-v", &volume.at("/home")], &["sh", "-c", script])?.prints("1000 1000 755\napp")?;
    let host = volume.path()?;
    ensure!(host.join("app/more").exists(), "the volume does not have what was written");
    fs::remove_dir_all(host.join("app"))?;
    fs::write(host.join("own"), "")?;
    let look = ["ls", "/home"];
    world.run(&["-v", &volume.at("/home")], &look)?.prints("own")?;
    fs::remove_file(host.join("own"))?;
    world.run(&["-v", &volume.at("/home:nocopy")], &look)?.prints("")?;
    world.run(&["-v", &volume.at("/home")], &look)?.prints("app")?;
    Ok(())
}

fn a_containers_own_volumes_go_with_it(world: &World<'_>) -> Result<()> {
    let source = |container: &crate::world::Container<'_, '_>| -> Result<(String, PathBuf)> {
        let known = container.inspect()?;
        let mount = &known["mounts"][0];
        ensure!(mount["type"] == "volume" && mount["target"] == "/data", "mounts are {known:#}");
        let text = |value: &Value| value.as_str().map(str::to_owned).context("a text");
        Ok((text(&mount["volume"])?, text(&mount["source"])?.into()))
    };
    let (container, finished) = world.run_kept(&["-v", "/data"], &["sh", "-c", "echo x > /data/file"])?;
    finished.ends_with(0)?;
    let (_, path) = source(&container)?;
    ensure!(path.join("file").exists(), "it was written elsewhere");
    container.run(&["rm", "-v"])?.ends_with(0)?;
    ensure!(!path.exists(), "it did not go with its container");

    let container = world
        .detach(&["-v", "/data", "--rm"], &["sh", "-c", "until [ -e /data/end ]; do sleep 0.1; done"])?;
    let (_, path) = source(&container)?;
    let mut waiting = container.command(&["wait"]).spawn()?;
    fs::write(path.join("end"), "")?;
    waiting.close_input();
    waiting.finish()?;
    let gone = || !path.exists();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !gone() && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    ensure!(gone(), "it did not go with a container that was to be removed");

    let (container, finished) = world.run_kept(&["-v", "/data"], &["true"])?;
    finished.ends_with(0)?;
    let (name, path) = source(&container)?;
    container.run(&["rm"])?.ends_with(0)?;
    ensure!(path.exists(), "it went although nobody said so");
    world.worker(&["volume", "rm", &name])?.ends_with(0)?;
    Ok(())
}

/// The stories' image with a volume at `path`, under a name of the story's.
fn image_with_volume(world: &World<'_>, path: &str) -> Result<String> {
    let layout = world.directory()?.join("layout");
    let run = |program: &str, args: &[&str]| -> Result<()> {
        let finished =
            Command::new(program).args(args).output().with_context(|| format!("cannot run {program}"))?;
        ensure!(finished.status.success(), "{program}: {}", String::from_utf8_lossy(&finished.stderr));
        Ok(())
    };
    let (from, to) = (Site::requirements()?, layout.display().to_string());
    run("cp", &["-a", &from.display().to_string(), &to])?;
    run("umoci", &["config", "--image", &format!("{to}:latest"), "--config.volume", path])?;
    let name = world.name().replace('_', "-");
    world.worker(&["image", "import", "-t", &name, &to])?.ends_with(0)?;
    Ok(name)
}

fn an_image_says_what_its_volumes_are(world: &World<'_>) -> Result<()> {
    let image = image_with_volume(world, "/home")?;
    let run = |flags: &[&str], script: &str| {
        let runtime = world.runtime();
        let name = world.name();
        let mut args = vec!["run", "--rm", "--runtime", runtime.as_str(), "--name", &name];
        args.extend(flags);
        args.extend([image.as_str(), "sh", "-c", script]);
        world.worker(&args)
    };
    let script = "grep -c ' /home ' /proc/mounts; ls /home; touch /home/app/new";
    run(&[], script)?.prints("1\napp")?;
    let directory = world.directory()?;
    run(&["-v", &format!("{}:/home/", directory.display())], "ls /home; touch /home/here")?.prints("")?;
    ensure!(directory.join("here").exists(), "the image's volume hides the caller's mount");
    run(&["--tmpfs", "/home"], "ls /home; grep -c ' /home tmpfs ' /proc/mounts")?.prints("1")?;
    let outcome = run(&["-v", "/home/../etc"], "true")?.ends_with(125)?.complains_of(&["/home/../etc"]);
    world.worker(&["image", "rm", &image])?.ends_with(0)?;
    outcome.map(drop)
}

fn volumes_of_another_container(world: &World<'_>) -> Result<()> {
    let (directory, volume) = (world.directory()?, Volume::of(world));
    fs::write(directory.join("file"), "here\n")?;
    let bind = format!("{}:/host:ro", directory.display());
    let (first, finished) =
        world.run_kept(&["-v", &bind, "-v", &volume.at("/data")], &["touch", "/data/made"])?;
    finished.ends_with(0)?;
    let script =
        "cat /host/file; ls /data; touch /host/new 2>&1 | grep -c 'Read-only file system'; touch /data/more";
    world.run(&["--volumes-from", &first.name], &["sh", "-c", script])?.prints("here\nmade\n1")?;
    let from = format!("{}:ro", first.name);
    let script = "ls /data; touch /data/again 2>&1 | grep -c 'Read-only file system'; ls /host";
    let other = world.directory()?;
    let own = format!("{}:/host", other.display());
    world.run(&["--volumes-from", &from, "-v", &own], &["sh", "-c", script])?.prints("made\nmore\n1")?;
    world.run(&["--volumes-from", "nobody"], &["true"])?.ends_with(125)?.complains_of(&["nobody"])?;
    drop(first);
    Ok(())
}

fn volumes_that_nobody_has_are_pruned(world: &World<'_>) -> Result<()> {
    let (kept, used, unused) = (Volume::of(world), Volume::of(world), Volume::of(world));
    let label = format!("of={}", world.name());
    for volume in [&used, &unused] {
        world.worker(&["volume", "create", "--label", &label, &volume.name])?.ends_with(0)?;
    }
    world.worker(&["volume", "create", &kept.name])?.ends_with(0)?;
    let path = used.path()?;
    chown(&path, Some(1000), Some(1000))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
    let container = world
        .detach_ready(&["-v", &used.at("/data"), "-u", "app"], "touch /data/mine; echo ready; sleep 100")?;
    let filter = format!("label={label}");
    world.worker(&["volume", "prune", "--filter", &filter])?.ends_with(1)?.complains_of(&["--force"])?;
    world.worker(&["volume", "prune", "--force", "--filter", &filter])?.prints("0 B freed")?;
    let pruned = world.worker(&["volume", "prune", "--force", "--all", "--filter", &filter])?.ends_with(0)?;
    ensure!(pruned.out().lines().next() == Some(&unused.name), "expected the unused one\n{pruned}");
    let listed = world.worker(&["volume", "ls", "-q", "--filter", &filter])?;
    listed.prints(&used.name)?;
    let dangling = world.worker(&["volume", "ls", "-q", "--filter", "dangling=true"])?.ends_with(0)?;
    ensure!(dangling.out().lines().any(|name| name == kept.name), "expected {}\n{dangling}", kept.name);
    drop(container);
    Ok(())
}
