//! Images that come from a registry, and images that go.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::stories;
use crate::World;
use crate::site::{IMAGE, Site};

stories![
    Full an_image_is_pushed_pulled_and_run,
    Full images_that_no_container_has_are_pruned,
    Full a_pull_keeps_images_within_their_limit,
    Full a_source_that_does_not_answer_is_given_up,
];

/// `user` with the password `password`, as `htpasswd -B` writes it.
const HTPASSWD: &str = "user:$2y$04$kTNBXP1mhzdYXi7q8ws2ReH2rv0l5YaiEK2dbG795663ymeENBVMu\n";

/// Debian's docker-registry with a password. Dropped, it is gone.
struct Registry {
    child: Child,
    host: String,
}

impl Registry {
    fn start(world: &World<'_>, directory: &Path) -> Result<Self> {
        let at = directory.display();
        let config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {at}/data}}}}\n\
             http: {{addr: \"127.0.0.1:0\"}}\nauth: {{htpasswd: {{realm: test, path: {at}/htpasswd}}}}\n"
        );
        fs::write(directory.join("config.yml"), config)?;
        fs::write(directory.join("htpasswd"), HTPASSWD)?;
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(directory.join("config.yml"))
            .env("PATH", world.site().path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start docker-registry: `cargo xtask setup` fetches it")?;
        let mut stderr = BufReader::new(child.stderr.take().context("its stderr is a pipe")?);
        let mut said = String::new();
        let port = loop {
            let mut line = String::new();
            ensure!(stderr.read_line(&mut line)? > 0, "docker-registry ended: {said}");
            if let Some((_, rest)) = line.split_once("listening on 127.0.0.1:") {
                break rest.chars().take_while(char::is_ascii_digit).collect::<String>();
            }
            said += &line;
        };
        // Its log must not fill the pipe.
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        Ok(Self { child, host: format!("127.0.0.1:{port}") })
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn an_image_is_pushed_pulled_and_run(world: &World<'_>) -> Result<()> {
    let directory = world.directory()?;
    let registry = Registry::start(world, &directory)?;
    let name = format!("{}/{}:1", registry.host, world.name().replace('_', "-"));
    let worker = |args: &[&str]| world.site().command(args).env("DOCKER_CONFIG", directory.join("docker"));
    let run = |flags: &[&str], image: &str| {
        let mut args = vec!["run", "--rm", "--runtime", world.runtime().as_str()];
        args.extend(flags);
        args.extend([image, "echo", "hello"]);
        worker(&args).finish()
    };

    run(&["--pull", "never"], &name)?.ends_with(125)?.complains_of(&[&name, "is not in"])?;
    worker(&["push", IMAGE, &name]).finish()?.ends_with(1)?.complains_of(&["login"])?;
    let login = |password: &str| {
        worker(&["login", "-u", "user", "--password-stdin", &registry.host]).input(password).finish()
    };
    login("wrong\n")?.ends_with(1)?.complains_of(&["does not take"])?;
    login("password\n")?.ends_with(0)?;
    worker(&["push", "--quiet", IMAGE, &name]).finish()?.ends_with(0)?;
    ensure!(run(&[], &name)?.ends_with(0)?.out() == "hello", "it said something else");
    ensure!(run(&["--pull", "always"], &name)?.ends_with(0)?.out() == "hello", "it said something else");
    let other = run(&["--platform", "linux/s390x"], &name)?;
    other.ends_with(125)?.complains_of(&["linux/s390x"])?;
    worker(&["logout", &registry.host]).finish()?.ends_with(0)?;
    worker(&["pull", &name]).finish()?.ends_with(1)?.complains_of(&["login"])?;
    worker(&["image", "rm", &name]).finish()?.ends_with(0)?.prints(&format!("untagged {name}"))?;
    run(&["--pull", "never"], &name)?.ends_with(125)?;
    Ok(())
}

fn a_pull_keeps_images_within_their_limit(world: &World<'_>) -> Result<()> {
    let site = Site::prepare()?;
    let own = World::new(&site, world.runtime(), "limit");
    let directory = own.directory()?;
    let registry = Registry::start(&own, &directory)?;
    let name = format!("{}/big:1", registry.host);
    let worker = |args: &[&str]| site.command(args).env("DOCKER_CONFIG", directory.join("docker")).finish();
    site.command(["login", "-u", "user", "--password-stdin", &registry.host])
        .env("DOCKER_CONFIG", directory.join("docker"))
        .input("password\n")
        .finish()?
        .ends_with(0)?;
    for (image, content) in [("big", 7), ("unused", 8)] {
        let tree = own.directory()?;
        fs::write(tree.join("file"), vec![content; 3 << 20])?;
        worker(&["image", "import", "-t", image, &tree.to_string_lossy()])?.ends_with(0)?;
    }
    worker(&["push", "big", &name])?.ends_with(0)?;
    worker(&["image", "rm", "big"])?.ends_with(0)?;
    let container = own.detach_ready(&[], "echo ready; sleep 1000")?;

    let config = fs::read_to_string(site.config())?;
    fs::write(site.config(), config.replacen("worker:\n", "worker:\n  image_limit: 1MiB\n", 1))?;
    worker(&["pull", &name])?.ends_with(0)?;
    let left = worker(&["image", "ls", "--format", "{{.Repository}}"])?.ends_with(0)?;
    let left: Vec<_> = left.out().lines().map(str::to_owned).collect();
    ensure!(left.iter().any(|image| image.ends_with("/big")), "what was pulled is gone: {left:?}");
    ensure!(left.iter().any(|image| image.ends_with(IMAGE)), "what a container has is gone: {left:?}");
    ensure!(left.len() == 2, "there is more than what is needed: {left:?}");
    ensure!(container.inspect()?["status"] == "running", "the container lost its image");
    Ok(())
}

/// A file system whose server takes every question and answers none. Dropped, it is gone.
struct Silent {
    directory: std::path::PathBuf,
    _device: fs::File,
}

impl Silent {
    fn mount(directory: std::path::PathBuf) -> Result<Self> {
        let device =
            fs::File::options().read(true).write(true).open("/dev/fuse").context("cannot open /dev/fuse")?;
        let options =
            format!("fd={},rootmode=40000,user_id=0,group_id=0", std::os::fd::AsRawFd::as_raw_fd(&device));
        let options = std::ffi::CString::new(options)?;
        rustix::mount::mount(
            "silent",
            &directory,
            "fuse",
            rustix::mount::MountFlags::empty(),
            options.as_c_str(),
        )
        .context("cannot mount a FUSE file system")?;
        Ok(Self { directory, _device: device })
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.directory, rustix::mount::UnmountFlags::DETACH);
    }
}

fn a_source_that_does_not_answer_is_given_up(world: &World<'_>) -> Result<()> {
    let silent = Silent::mount(world.directory()?)?;
    let start = std::time::Instant::now();
    let path = silent.directory.join("image.tar").to_string_lossy().into_owned();
    let finished = world.worker(&["image", "import", "--patience", "2", &path])?.ends_with(1)?;
    let finished = finished.complains_of(&["gave nothing for 2 s", &path])?;
    ensure!(finished.err().lines().count() == 1, "more than one sentence\n{finished}");
    ensure!(start.elapsed().as_secs() < 30, "it took {:?}", start.elapsed());
    // The store is free for others.
    world.worker(&["image", "ls"])?.ends_with(0)?;
    Ok(())
}

fn images_that_no_container_has_are_pruned(world: &World<'_>) -> Result<()> {
    // Whatever is not in use goes, so it must be nobody else's.
    let site = Site::prepare()?;
    let own = World::new(&site, world.runtime(), "prune");
    let tree = own.directory()?;
    fs::write(tree.join("file"), "of an image")?;
    own.worker(&["image", "import", "-t", "unused", &tree.to_string_lossy()])?.ends_with(0)?;
    let container = own.detach_ready(&[], "echo ready; sleep 1000")?;
    let prune = |flags: &[&str]| -> Result<Value> {
        let words: Vec<_> = ["image", "prune", "--output", "json"].iter().chain(flags).copied().collect();
        let finished = own.worker(&words)?.ends_with(0)?;
        serde_json::from_slice(&finished.stdout).with_context(|| format!("it is not JSON\n{finished}"))
    };
    let pruned = prune(&[])?;
    ensure!(pruned["images"] == json!([]), "images with a name were pruned: {pruned:#}");
    let pruned = prune(&["--all"])?;
    ensure!(pruned["images"] == json!(["unused:latest"]), "not the unused image was pruned: {pruned:#}");
    ensure!(pruned["freed_bytes"].as_u64() > Some(0), "nothing was freed: {pruned:#}");
    own.worker(&["image", "inspect", "unused"])?.ends_with(1)?;
    ensure!(container.inspect()?["status"] == "running", "the container lost its image");
    container.run(&["rm", "-f"])?.ends_with(0)?;
    let finished = own.worker(&["image", "prune", "-a"])?.ends_with(0)?;
    let lines: Vec<_> = finished.out().lines().map(str::to_owned).collect();
    ensure!(
        lines.len() == 2 && lines[0] == format!("{IMAGE}:latest") && lines[1].ends_with(" freed"),
        "unexpected\n{finished}"
    );
    ensure!(prune(&["-a"])?["images"] == json!([]), "there was more");
    Ok(())
}
