//! Files in and out of containers.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use anyhow::{Result, ensure};

use super::stories;
use crate::World;

stories![
    Core a_file_goes_in_and_comes_out,
    Full directories_follow_dockers_rule,
    Full archives_go_through_pipes,
    Full links_of_a_container_do_not_lead_out,
    Full a_link_that_moves_does_not_lead_out,
    Full a_copy_that_cannot_be_is_one_sentence,
    Full a_container_that_is_over_has_its_files,
    Full what_is_copied_into_one_that_is_over_is_there_when_it_starts,
];

const SLEEPER: &str =
    "mkdir -p /things/sub; echo inside > /things/file; echo deep > /things/sub/deep; mkfifo /things/pipe
    echo ready; while true; do sleep 0.2; done";

/// Says the words of a file when it is told to.
const READER: &str = "trap 'cat /things/new; stat -c %u /things/new' USR1; mkdir /things; echo ready
    while true; do sleep 0.1; done";

fn a_file_goes_in_and_comes_out(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&[], READER)?;
    let files = world.directory()?;
    let (here, back) = (files.join("here"), files.join("back"));
    fs::write(&here, "from the host\n")?;
    let inside = format!("{}:/things/new", container.name);
    let [here, back] = [&here, &back].map(|path| path.to_string_lossy().into_owned());
    world.worker(&["cp", &here, &inside])?.ends_with(0)?;
    let log = container.follow()?;
    container.run(&["kill", "-s", "USR1"])?.ends_with(0)?;
    log.stdout_shows("from the host\n0\n")?;
    world.worker(&["cp", &inside, &back])?.ends_with(0)?;
    ensure!(fs::read_to_string(&back)? == "from the host\n", "it came back changed");
    // Larger than any buffer on the way.
    let big: Vec<u8> = (0..5_000_000u32).map(|number| (number % 251) as u8).collect();
    fs::write(&here, &big)?;
    world.worker(&["cp", &here, &inside])?.ends_with(0)?;
    world.worker(&["cp", &inside, &back])?.ends_with(0)?;
    ensure!(fs::read(&back)? == big, "a large file came back changed");
    Ok(())
}

fn directories_follow_dockers_rule(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&[], SLEEPER)?;
    let files = world.directory()?;
    let at = |name: &str| files.join(name).to_string_lossy().into_owned();
    let inside = |path: &str| format!("{}:{path}", container.name);
    fs::create_dir(files.join("exists"))?;
    for (from, to, file) in [
        ("/things", "exists", "exists/things/sub/deep"),
        ("/things", "made", "made/sub/deep"),
        ("/things/.", "exists", "exists/sub/deep"),
        ("things/sub/deep", "exists/", "exists/deep"),
        ("/things/sub/deep", "renamed", "renamed"),
    ] {
        world.worker(&["cp", &inside(from), &at(to)])?.ends_with(0)?;
        ensure!(fs::read_to_string(files.join(file))? == "deep\n", "{from} to {to} is not at {file}");
    }
    world.worker(&["cp", &at("made"), &inside("/things")])?.ends_with(0)?;
    world.worker(&["cp", &format!("{}/.", at("made")), &inside("/other")])?.ends_with(0)?;
    for path in ["/things/made/sub/deep", "/other/sub/deep"] {
        world.worker(&["cp", &inside(path), &at("again")])?.ends_with(0)?;
    }
    world.worker(&["cp", &inside("/things/file"), &at("none/")])?.ends_with(1)?;
    world
        .worker(&["cp", &inside("/things"), &at("renamed")])?
        .ends_with(1)?
        .complains_of(&["onto the file"])?;
    Ok(())
}

fn archives_go_through_pipes(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&[], SLEEPER)?;
    let out = world.worker(&["cp", &format!("{}:/things", container.name), "-"])?.ends_with(0)?;
    ensure!(out.stdout.len() % 512 == 0 && out.stdout.starts_with(b"things/"), "no archive came out");
    let target = format!("{}:/tmp", container.name);
    world.site().command(["cp", "-", &target]).input(out.stdout.clone()).finish()?.ends_with(0)?;
    let again =
        world.worker(&["cp", &format!("{}:/tmp/things/sub/deep", container.name), "-"])?.ends_with(0)?;
    ensure!(again.stdout.windows(5).any(|window| window == b"deep\n"), "what went in is not there");
    // Half of an archive is none.
    let half = out.stdout[..out.stdout.len() / 2].to_vec();
    let cut = world.site().command(["cp", "-", &target]).input(half).finish()?.ends_with(1)?;
    cut.complains_of(&["cut off"])?;
    Ok(())
}

fn links_of_a_container_do_not_lead_out(world: &World<'_>) -> Result<()> {
    let files = world.directory()?;
    let secret = files.join("secret");
    fs::write(&secret, "the host's\n")?;
    let path = secret.to_string_lossy();
    let script = format!(
        "mkdir /w; ln -s {path} /w/absolute; ln -s ../../../../../..{path} /w/relative; ln -s /proc/1/root{path} /w/magic
        echo ready; while true; do sleep 0.2; done"
    );
    let container = world.detach_ready(&[], &script)?;
    let at = |name: &str| files.join(name).to_string_lossy().into_owned();
    for link in ["absolute", "relative", "magic"] {
        let inside = format!("{}:/w/{link}", container.name);
        world.worker(&["cp", "-L", &inside, &at("stolen")])?.ends_with(1)?;
        ensure!(!files.join("stolen").exists(), "{link} led out");
        // As itself it is a link, and here it means what it says: it is not followed while anything is written.
        world.worker(&["cp", &inside, &at(link)])?.ends_with(0)?;
        ensure!(fs::symlink_metadata(files.join(link))?.is_symlink(), "{link} is not a link");
    }
    fs::write(files.join("in"), "overwritten\n")?;
    for link in ["absolute", "relative", "magic"] {
        // Whether there is a directory for it in the container does not matter; the host's file does.
        world.worker(&["cp", &at("in"), &format!("{}:/w/{link}", container.name)])?;
    }
    ensure!(fs::read_to_string(&secret)? == "the host's\n", "the host's file was written");
    Ok(())
}

fn a_link_that_moves_does_not_lead_out(world: &World<'_>) -> Result<()> {
    let files = world.directory()?;
    fs::write(files.join("secret"), "the host's\n")?;
    fs::write(files.join("in"), "written\n")?;
    // A directory and a link to the host's take turns under one name.
    let path = files.to_string_lossy();
    let script = format!(
        "mkdir -p /a/real; echo inside > /a/real/secret; echo ready
        while true; do rm -rf /a/x; ln -s {path} /a/x; rm -f /a/x; cp -r /a/real /a/x; done"
    );
    let container = world.detach_ready(&[], &script)?;
    let rounds = if world.runtime().is_microvm() { 5 } else { 25 };
    for _ in 0..rounds {
        let out = world.worker(&["cp", &format!("{}:/a/x/secret", container.name), "-"])?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        ensure!(!text.contains("the host's"), "a file of the host came out");
        let input = files.join("in").to_string_lossy().into_owned();
        world.worker(&["cp", &input, &format!("{}:/a/x/secret", container.name)])?;
        ensure!(
            fs::read_to_string(files.join("secret"))? == "the host's\n",
            "a file of the host was written"
        );
    }
    Ok(())
}

fn a_copy_that_cannot_be_is_one_sentence(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&[], SLEEPER)?;
    let files = world.directory()?;
    let here = files.to_string_lossy().into_owned();
    let inside = |path: &str| format!("{}:{path}", container.name);
    fs::write(files.join("file"), "x")?;
    let file = files.join("file").to_string_lossy().into_owned();
    for (from, to, word) in [
        (inside("/none"), here.clone(), "/none"),
        (inside(""), here.clone(), "no path"),
        (inside("/things/pipe"), here.clone(), "things/pipe"),
        (inside("/things/file/"), here.clone(), "/things/file"),
        (file.clone(), inside("/none/there"), "create it first"),
        (file.clone(), inside("/things/none/"), "create it first"),
        (files.join("none").to_string_lossy().into_owned(), inside("/things"), "none"),
        (here.clone(), inside("/things/file"), "onto the file"),
        (file.clone(), here.clone(), "neither side"),
        (inside("/things"), inside("/other"), "between containers"),
        ("nobody:/x".to_owned(), here.clone(), "no such container"),
    ] {
        let refused = world.worker(&["cp", &from, &to])?.ends_with(1)?.complains_of(&[word])?;
        ensure!(refused.err().lines().count() == 1, "more than one sentence\n{refused}");
    }
    ensure!(container.inspect()?["status"] == "running", "it does not run any more");
    Ok(())
}

fn a_container_that_is_over_has_its_files(world: &World<'_>) -> Result<()> {
    let files = world.directory()?;
    let volume = files.join("volume");
    fs::create_dir(&volume)?;
    let mount = format!("{}:/data", volume.display());
    let script = "echo kept > /kept; ln -s /data /link; echo shared > /data/f";
    let (container, finished) = world.run_kept(&["-v", &mount], &["sh", "-c", script])?;
    finished.ends_with(0)?;
    let at = |name: &str| files.join(name).to_string_lossy().into_owned();
    let inside = |path: &str| format!("{}:{path}", container.name);
    for (path, text) in [("/kept", "kept\n"), ("/data/f", "shared\n"), ("/link/f", "shared\n")] {
        world.worker(&["cp", &inside(path), &at("out")])?.ends_with(0)?;
        ensure!(fs::read_to_string(files.join("out"))? == text, "{path} is something else");
    }
    world.worker(&["cp", &at("out"), &inside("/link/new")])?.ends_with(0)?;
    ensure!(fs::read_to_string(volume.join("new"))? == "shared\n", "it is not in the volume");
    symlink("/etc/hostname", files.join("a-link"))?;
    world.worker(&["cp", "-a", &at("a-link"), &inside("/copied-link")])?.ends_with(0)?;
    world.worker(&["cp", "-a", &inside("/copied-link"), &at("link-again")])?.ends_with(0)?;
    ensure!(fs::read_link(files.join("link-again"))?.to_string_lossy() == "/etc/hostname", "another link");
    ensure!(fs::symlink_metadata(files.join("link-again"))?.uid() == 0, "another owner");
    world.worker(&["cp", &inside("/none"), &at("none")])?.ends_with(1)?.complains_of(&["/none"])?;
    // It ended, and so it stays; what was copied into it is there for its next start.
    container.ended(0, "exited")?;
    fs::write(files.join("script"), "cat /kept\n")?;
    world.worker(&["cp", &at("script"), &inside("/script")])?.ends_with(0)?;
    container.run(&["rm"])?.ends_with(0)?;
    Ok(())
}

fn what_is_copied_into_one_that_is_over_is_there_when_it_starts(world: &World<'_>) -> Result<()> {
    let files = world.directory()?;
    let (container, finished) =
        world.run_kept(&[], &["sh", "-c", "test ! -e /given || cat /given; echo over"])?;
    finished.prints("over")?;
    fs::write(files.join("given"), "given\n")?;
    let given = files.join("given").to_string_lossy().into_owned();
    world.worker(&["cp", &given, &format!("{}:/given", container.name)])?.ends_with(0)?;
    container.run(&["start", "-a"])?.prints("given\nover")?;
    Ok(())
}
