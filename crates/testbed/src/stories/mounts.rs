//! Host files and directories inside a container.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

use anyhow::{Context, Result, ensure};
use beta9_types::RuntimeKind;
use sha2::{Digest, Sha256};

use super::stories;
use crate::World;

stories![
    Core a_directory_is_shared_both_ways,
    Core a_read_only_mount_refuses_writes,
    Core a_mounted_file_stays_a_file,
    Full mount_targets_are_made,
    Full a_missing_source_is_made_or_refused,
    Full owners_and_modes_are_the_hosts,
    Full links_in_a_mount_lead_into_the_container,
    Full a_mount_below_a_mount,
    Full large_files_cross_a_mount_whole,
    Full mounts_are_asked_for_by_keys,
    Full programs_of_a_mount_run_or_not,
    Full set_user_id_in_a_mount_counts_or_not,
    Full read_only_is_so_all_the_way_down,
    Full two_mounts_at_one_place_are_refused,
    Full propagation_is_refused_where_there_is_none,
    Full a_group_beside_the_users_own_may_write,
    Full a_cached_mount_is_seen_a_second_later,
    Full large_files_of_a_cached_mount_are_read_whole,
    Full many_small_files_arrive,
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

fn a_missing_source_is_made_or_refused(world: &World<'_>) -> Result<()> {
    let missing = world.directory()?.join("missing");
    let name = missing.to_string_lossy();
    let mount = format!("type=bind,source={name},target=/data");
    world.run(&["--mount", &mount], &["true"])?.ends_with(125)?.complains_of(&[&name, "does not exist"])?;
    ensure!(!missing.exists(), "the missing source was made");
    let volume = format!("{name}/deep:/data");
    world.run(&["-v", &volume], &["sh", "-c", "touch /data/file; stat -c '%u %a' /data"])?.prints("0 755")?;
    ensure!(missing.join("deep/file").exists(), "the missing source was not made");
    Ok(())
}

fn mounts_are_asked_for_by_keys(world: &World<'_>) -> Result<()> {
    let directory = world.directory()?;
    fs::write(directory.join("file"), "here\n")?;
    let bind = format!("type=bind,src={},dst=/data,ro", directory.display());
    let tmpfs = "type=tmpfs,target=/scratch,tmpfs-size=1m,tmpfs-mode=1750";
    let script = "cat /data/file; (echo x > /data/new) 2>&1 | grep -c 'Read-only file system'
        stat -c %a /scratch; dd if=/dev/zero of=/scratch/big bs=64k count=32 2>&1 | grep -c 'No space left'";
    world.run(&["--mount", &bind, "--mount", tmpfs], &["sh", "-c", script])?.prints("here\n1\n1750\n1")?;
    for bad in
        ["type=bind,target=/data", "type=bind,source=/a,target=data", "type=x,target=/data", "dst=/d,what=1"]
    {
        world.run(&["--mount", bad], &["true"])?.ends_with(125)?.complains_of(&[bad])?;
    }
    Ok(())
}

fn programs_of_a_mount_run_or_not(world: &World<'_>) -> Result<()> {
    let directory = world.directory()?;
    let script = "cp /bin/busybox /data/busybox && chmod 755 /data/busybox && /data/busybox echo runs";
    let volume = format!("{}:/data", directory.display());
    world.run(&["-v", &volume], &["sh", "-c", script])?.prints("runs")?;
    let script = "/data/busybox echo runs 2>&1 | grep -c 'Permission denied'";
    world.run(&["-v", &format!("{volume}:noexec")], &["sh", "-c", script])?.prints("1")?;
    Ok(())
}

fn set_user_id_in_a_mount_counts_or_not(world: &World<'_>) -> Result<()> {
    let directory = world.directory()?;
    let volume = format!("{}:/data", directory.display());
    let script = "cp /bin/busybox /data/su && chown 0:0 /data/su && chmod 4755 /data/su";
    world.run(&["-v", &volume], &["sh", "-c", script])?.ends_with(0)?;
    // busybox's own words for one that does not run as root.
    let script = "/data/su -c true 2>&1 </dev/null | grep -c 'must be suid'; true";
    world.run(&["-u", "app", "-v", &volume], &["sh", "-c", script])?.prints("0")?;
    world.run(&["-u", "app", "-v", &format!("{volume}:nosuid")], &["sh", "-c", script])?.prints("1")?;
    Ok(())
}

/// A memory file system of the host's, mounted by this.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn at(path: std::path::PathBuf) -> Result<Self> {
        fs::create_dir_all(&path)?;
        rustix::mount::mount("tmpfs", &path, "tmpfs", rustix::mount::MountFlags::empty(), None)
            .context("cannot mount a memory file system")?;
        Ok(Self(path))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

fn read_only_is_so_all_the_way_down(world: &World<'_>) -> Result<()> {
    let directory = world.directory()?;
    let below = Mounted::at(directory.join("below"))?;
    fs::write(below.0.join("file"), "below\n")?;
    let volume = format!("{}:/data", directory.display());
    let script = "cat /data/below/file; touch /data/below/new 2>&1 | grep -c 'Read-only file system'; exit 0";
    world.run(&["-v", &format!("{volume}:ro")], &["sh", "-c", script])?.prints("below\n1")?;
    world.run(&["-v", &volume], &["sh", "-c", script])?.prints("below\n0")?;
    ensure!(below.0.join("new").exists(), "the write went elsewhere");
    Ok(())
}

fn two_mounts_at_one_place_are_refused(world: &World<'_>) -> Result<()> {
    let directory = world.directory()?;
    let (first, second) =
        (format!("{}:/data", directory.display()), format!("{}:/data/", directory.display()));
    world
        .run(&["-v", &first, "-v", &second], &["true"])?
        .ends_with(125)?
        .complains_of(&["/data", "two mounts"])?;
    world
        .run(&["-v", &first, "--tmpfs", "/data"], &["true"])?
        .ends_with(125)?
        .complains_of(&["two mounts"])?;
    Ok(())
}

fn propagation_is_refused_where_there_is_none(world: &World<'_>) -> Result<()> {
    let directory = world.directory()?;
    let mount = |propagation: &str| {
        format!("type=bind,source={},target=/data,bind-propagation={propagation}", directory.display())
    };
    world.run(&["--mount", &mount("rprivate")], &["true"])?.ends_with(0)?;
    world
        .run(&["--mount", &mount("rshared")], &["true"])?
        .ends_with(125)?
        .complains_of(&["bind-propagation"])?;
    if world.runtime() != RuntimeKind::Runc {
        world
            .run(&["--mount", &mount("rslave")], &["true"])?
            .ends_with(125)?
            .complains_of(&["bind-propagation"])?;
        return Ok(());
    }
    // The container's mount is the host's, later mounts included, where that is shared.
    let host = Mounted::at(directory.join("shared"))?;
    rustix::mount::mount_change(&host.0, rustix::mount::MountPropagationFlags::SHARED)?;
    let mount = format!("type=bind,source={},target=/data,bind-propagation=rslave", host.0.display());
    let script = "mkdir /data/later; echo ready; until [ -e /data/later/file ]; do sleep 0.1; done; cat /data/later/file";
    let container = world.detach_ready(&["--mount", &mount], script)?;
    let later = Mounted::at(host.0.join("later"))?;
    fs::write(later.0.join("file"), "later\n")?;
    ensure!(container.wait()? == 0, "{} failed", container.name);
    container.run(&["logs"])?.prints("ready\nlater")?;
    Ok(())
}

fn a_group_beside_the_users_own_may_write(world: &World<'_>) -> Result<()> {
    let directory = world.directory()?;
    // Of which nobody in the image is.
    chown(&directory, Some(0), Some(2222))?;
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o2770))?;
    let volume = format!("{}:/data", directory.display());
    let script =
        "echo x > /data/file && mkdir /data/sub && ln -s file /data/link && mkfifo /data/pipe && echo made";
    let flags = ["-u", "app", "-v", &volume];
    world.run(&flags, &["sh", "-c", script])?.complains_of(&["Permission denied"])?;
    world.run(&[&flags[..], &["--group-add", "2222"]].concat(), &["sh", "-c", script])?.prints("made")?;
    for name in ["file", "sub", "link", "pipe"] {
        let meta = fs::symlink_metadata(directory.join(name))?;
        ensure!((meta.uid(), meta.gid()) == (1000, 2222), "{name} belongs to {}:{}", meta.uid(), meta.gid());
    }
    Ok(())
}

fn a_cached_mount_is_seen_a_second_later(world: &World<'_>) -> Result<()> {
    let directory = world.directory()?;
    fs::write(directory.join("file"), "old\n")?;
    let volume = format!("{}:/data:ro,cached", directory.display());
    let script = "cat /data/file; echo ready; until grep -q newer /data/file && [ -e /data/added ] && [ ! -e /data/gone ]
        do sleep 0.1; done; cat /data/file";
    fs::write(directory.join("gone"), "")?;
    let container = world.detach_ready(&["-v", &volume], script)?;
    fs::write(directory.join("file"), "newer\n")?;
    fs::write(directory.join("added"), "")?;
    fs::remove_file(directory.join("gone"))?;
    ensure!(container.wait()? == 0, "{} failed", container.name);
    container.run(&["logs"])?.prints("old\nready\nnewer")?;
    Ok(())
}

fn large_files_of_a_cached_mount_are_read_whole(world: &World<'_>) -> Result<()> {
    const SIZE: usize = 48 << 20;
    let directory = world.directory()?;
    // No part of it is like another.
    let counted: Vec<u8> = (0..SIZE as u64 / 8).flat_map(|number| (number * number).to_le_bytes()).collect();
    let whole: String = Sha256::digest(&counted).iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(directory.join("big"), counted)?;
    let volume = format!("{}:/data:ro,cached", directory.display());
    // Several at once are several large requests under way, beside many small ones.
    let script = "for i in 1 2 3; do sha256sum /data/big & done
        for i in $(seq 100); do ls -l /data > /dev/null || echo lost; done
        wait; dd if=/data/big bs=1M | sha256sum";
    let read = world.run(&["-v", &volume], &["sh", "-c", script])?.ends_with(0)?;
    let said = read.out();
    let are_whole = said.lines().all(|line| line.split(' ').next() == Some(&whole));
    ensure!(are_whole && said.lines().count() == 4, "not four times {whole}\n{read}");
    Ok(())
}

fn many_small_files_arrive(world: &World<'_>) -> Result<()> {
    let directory = world.directory()?;
    let volume = format!("{}:/data", directory.display());
    let script = "mkdir /tmp/from && cd /tmp/from && for i in $(seq 300); do echo $i > f$i; done
        tar cf - . | tar xf - -C /data && cd /data && ls | wc -l && tar cf - . | tar xf - -C /tmp/from && \
        find /data -type f | xargs cat | sort -n | tail -n 1 && rm -r /data/* && ls | wc -l";
    world.run(&["-v", &volume], &["sh", "-c", script])?.prints("300\n300\n0")?;
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
