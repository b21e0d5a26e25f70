//! Host files and directories inside a container.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

use anyhow::{Context, Result, ensure};

use super::stories;
use crate::World;

stories![
    Core a_directory_is_shared_both_ways,
    Core a_read_only_mount_refuses_writes,
    Core a_mounted_file_stays_a_file,
    Full mount_targets_are_made,
    Full a_missing_source_is_refused,
    Full owners_and_modes_are_the_hosts,
    Full links_in_a_mount_lead_into_the_container,
    Full a_mount_below_a_mount,
    Full large_files_cross_a_mount_whole,
];

fn a_directory_is_shared_both_ways(world: &World<'_>) -> Result<()> {
    let directory = world.directory()?;
    fs::write(directory.join("from-host"), "hello\n")?;
    let volume = format!("{}:/data", directory.display());
    let script = "cat /data/from-host; echo early > /data/from-guest; mkdir /data/sub; echo ready
        until [ -e /data/later ]; do sleep 0.1; done; cat /data/later; rm /data/from-host; mv /data/sub /data/moved";
    let container = world.detach_ready(&["-v", &volume], script)?;
    ensure!(
        fs::read_to_string(directory.join("from-guest"))? == "early\n",
        "the guest's file is not the host's"
    );
    fs::write(directory.join("new"), "made later\n")?;
    fs::rename(directory.join("new"), directory.join("later"))?;
    ensure!(container.wait()? == 0, "{} failed", container.name);
    container.run(&["logs"])?.prints("hello\nready\nmade later")?;
    ensure!(!directory.join("from-host").exists(), "what the guest removed is still there");
    ensure!(directory.join("moved").is_dir(), "what the guest renamed is not");
    Ok(())
}

fn a_read_only_mount_refuses_writes(world: &World<'_>) -> Result<()> {
    let directory = world.directory()?;
    fs::write(directory.join("file"), "kept\n")?;
    let volume = format!("{}:/data:ro", directory.display());
    let script = "cat /data/file
        for action in 'touch /data/new' 'rm /data/file' 'mkdir /data/d' 'chmod 777 /data/file' 'mv /data/file /data/x'
        do $action 2>&1 | grep -c 'Read-only file system'; done
        (echo x >> /data/file) 2>&1 | grep -c 'Read-only file system'";
    world.run(&["-v", &volume], &["sh", "-c", script])?.prints("kept\n1\n1\n1\n1\n1\n1")?;
    ensure!(fs::read_to_string(directory.join("file"))? == "kept\n", "the file was changed");
    Ok(())
}

fn a_mounted_file_stays_a_file(world: &World<'_>) -> Result<()> {
    let directory = world.directory()?;
    for name in ["writable", "fixed", "neighbour"] {
        fs::write(directory.join(name), format!("{name}\n"))?;
    }
    let writable = format!("{}:/etc/passwd", directory.join("writable").display());
    let fixed = format!("{}:/mnt/deep/fixed:ro", directory.join("fixed").display());
    let script =
        "test -f /etc/passwd && cat /etc/passwd /mnt/deep/fixed; ls /mnt/deep; echo more >> /etc/passwd
        (echo x > /mnt/deep/fixed) 2>&1 | grep -c 'Read-only file system'";
    world
        .run(&["-v", &writable, "-v", &fixed], &["sh", "-c", script])?
        .prints("writable\nfixed\nfixed\n1")?;
    ensure!(
        fs::read_to_string(directory.join("writable"))? == "writable\nmore\n",
        "the write is not on the host"
    );
    Ok(())
}

fn mount_targets_are_made(world: &World<'_>) -> Result<()> {
    let directory = world.directory()?;
    fs::write(directory.join("file"), "here\n")?;
    let (first, second) =
        (format!("{}:/not/there/yet", directory.display()), format!("{}:/etc", directory.display()));
    let script = "cat /not/there/yet/file; ls /etc | head -n 1";
    world.run(&["-v", &first, "-v", &second], &["sh", "-c", script])?.prints("here\nfile")?;
    Ok(())
}

fn a_missing_source_is_refused(world: &World<'_>) -> Result<()> {
    let missing = world.directory()?.join("missing");
    let volume = format!("{}:/data", missing.display());
    let name = missing.to_string_lossy();
    world.run(&["-v", &volume], &["true"])?.ends_with(125)?.complains_of(&[&name])?;
    ensure!(!missing.exists(), "the missing source was made");
    Ok(())
}

fn owners_and_modes_are_the_hosts(world: &World<'_>) -> Result<()> {
    let directory = world.directory()?;
    let file = directory.join("file");
    fs::write(&file, "mine\n")?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640))?;
    chown(&file, Some(1000), Some(2000)).context("cannot chown")?;
    fs::write(directory.join("secret"), "root's\n")?;
    fs::set_permissions(directory.join("secret"), fs::Permissions::from_mode(0o600))?;
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o777))?;
    let volume = format!("{}:/data", directory.display());
    let script = "stat -c '%a %u %g' /data/file; cat /data/file; cat /data/secret 2>&1 | grep -c denied
        umask 027; echo new > /data/new; ln /data/new /data/hard; ln -s new /data/soft; chmod 604 /data/file";
    world.run(&["-u", "app", "-v", &volume], &["sh", "-c", script])?.prints("640 1000 2000\nmine\n1")?;
    let made = fs::metadata(directory.join("new"))?;
    let facts = (made.uid(), made.gid(), made.mode() & 0o7777, made.nlink());
    ensure!(facts == (1000, 1000, 0o640, 2), "the new file has owner, mode, links {facts:?}");
    ensure!(fs::read_link(directory.join("soft"))?.as_os_str() == "new", "the link leads elsewhere");
    ensure!(fs::metadata(&file)?.mode() & 0o7777 == 0o604, "chmod did not reach the host");
    Ok(())
}

fn links_in_a_mount_lead_into_the_container(world: &World<'_>) -> Result<()> {
    let directory = world.directory()?;
    let outside = world.directory()?.join("secret");
    fs::write(&outside, "the host's\n")?;
    symlink(&outside, directory.join("absolute"))?;
    symlink("../../../../../../etc/group", directory.join("climbing"))?;
    let volume = format!("{}:/data", directory.display());
    let script = "cat /data/absolute 2>/dev/null; ls /data/../etc/passwd; tail -n 1 /data/climbing";
    // The image's own group file, not the host's.
    world.run(&["-v", &volume], &["sh", "-c", script])?.prints("/data/../etc/passwd\nextra:x:2000:app")?;
    Ok(())
}

fn a_mount_below_a_mount(world: &World<'_>) -> Result<()> {
    let (outer, inner) = (world.directory()?, world.directory()?);
    fs::create_dir(outer.join("inner"))?;
    fs::write(outer.join("inner/hidden"), "")?;
    fs::write(inner.join("seen"), "")?;
    let (outer, inner) =
        (format!("{}:/data:ro", outer.display()), format!("{}:/data/inner", inner.display()));
    let script =
        "ls /data/inner; touch /data/inner/new && touch /data/new 2>&1 | grep -c 'Read-only file system'";
    world.run(&["-v", &outer, "-v", &inner], &["sh", "-c", script])?.prints("seen\n1")?;
    Ok(())
}

fn large_files_cross_a_mount_whole(world: &World<'_>) -> Result<()> {
    let directory = world.directory()?;
    let volume = format!("{}:/data", directory.display());
    let script = "head -c 8000000 /dev/urandom > /data/big && sha256sum < /data/big && cp /data/big /tmp/copy \
                  && cmp /tmp/copy /data/big && cp /tmp/copy /data/again";
    world.run(&["-v", &volume], &["sh", "-c", script])?.ends_with(0)?;
    let (big, again) = (fs::read(directory.join("big"))?, fs::read(directory.join("again"))?);
    ensure!(big.len() == 8_000_000 && big == again, "{} bytes went in, {} came back", big.len(), again.len());
    Ok(())
}
