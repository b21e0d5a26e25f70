//! More of something than anybody wants.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use beta9_types::RuntimeKind;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use rustix::process::Signal;

use super::kernel::hostile;
use super::{at, supervisor};
use crate::processes::signal;
use crate::site::images;
use crate::{Site, World};

/// Every line of it has to be taken in, or the VM stands still; and it must fill neither disk nor memory.
pub(super) fn of_the_console(runtime: RuntimeKind) -> Result<()> {
    hostile(runtime, "exec /busybox yes beta9-vm-init: a line of a flood", |finished| {
        let finished = finished.complains_of(&["the guest did not report within", "a line of a flood"])?;
        ensure!(finished.stderr.len() < 4096, "the error repeats the flood\n{finished}");
        Ok(())
    })
}

/// A supervisor that stands still leaves the guest's output, and Firecracker's log, unread for a while.
pub(super) fn meets_no_reader(runtime: RuntimeKind) -> Result<()> {
    at(Site::prepare()?, |site| {
        let world = World::new(site, runtime, "unread");
        let script = "echo ready; head -c 3000000 /dev/zero | tr '\\0' x; exit 29";
        let container = world.detach_ready(&[], script)?;
        let owner = supervisor::supervisor(site, &container)?;
        signal(owner, Signal::STOP)?;
        sleep(Duration::from_secs(4));
        signal(owner, Signal::CONT)?;
        ensure!(container.wait()? == 29, "the container did not end by itself");
        let logged = container.run(&["logs"])?.ends_with(0)?.stdout.len();
        ensure!(logged == "ready\n".len() + 3_000_000, "{logged} bytes were logged");
        Ok(())
    })
}

/// A container that is allowed every system call opens connections to the host by the thousand.
pub(super) fn of_the_vsock(runtime: RuntimeKind) -> Result<()> {
    const NAME: &str = "flooding";
    let layout = images().join("debian-bookworm-python3");
    if !layout.exists() {
        println!("skipped: there is no {}: `cargo xtask setup --all` makes it", layout.display());
        return Ok(());
    }
    // Ports of the protocol and others, each connection left open, some with a byte of nonsense.
    let script = "import socket, sys\nopen_ = []\nfailed = 0\nfor n in range(4000):\n  s = socket.socket(40, socket.SOCK_STREAM)\n  \
                  s.settimeout(0.2)\n  try:\n    s.connect((2, 1024 + n % 5))\n    s.send(b'x' * (n % 3))\n    open_.append(s)\n  \
                  except OSError:\n    failed += 1\nprint(len(open_) + failed)\nsys.exit(31)";
    at(Site::prepare()?, |site| {
        let import = ["image".into(), "import".into(), "-t".into(), NAME.into(), layout.into_os_string()];
        site.command(import).finish()?.ends_with(0)?;
        let world = World::new(site, runtime, "neighbour");
        let neighbour = world.detach_ready(&[], super::OBEDIENT)?;
        let words =
            ["run", "--runtime", runtime.as_str(), "--name", NAME, "--security-opt", "seccomp=unconfined"];
        let finished = site.command(words.into_iter().chain([NAME, "python3", "-c", script])).finish()?;
        // It is ended for it, or it gets nowhere with it; it does not hold anything up.
        let code = finished.code();
        ensure!([31, 125].contains(&code), "neither ended nor ignored\n{finished}");
        site.command(["rm", NAME]).finish()?.ends_with(0)?;
        neighbour.run(&["kill", "-s", "KILL"])?.ends_with(0)?;
        ensure!(neighbour.wait()? == 137, "the neighbour was harmed");
        Ok(())
    })
}

/// The host has no room for what the guest writes: the guest's program is told, and the VM goes on.
pub(super) fn of_the_disk(runtime: RuntimeKind) -> Result<()> {
    at(Site::prepare()?, |site| {
        let world = World::new(site, runtime, "full");
        let small = Small::over(site.root().join("containers"))?;
        let script = "trap 'exit 41' USR1; echo ready; \
                      if dd if=/dev/zero of=/big bs=1M count=200 conv=fsync; then echo written; else echo refused; fi \
                      > /dev/shm/outcome; while true; do sleep 0.1; done";
        let container = world.detach_ready(&[], script)?;
        // Its log is on the full disk as well; what another process says is not.
        let end = Instant::now() + Duration::from_secs(150);
        let outcome = loop {
            let outcome = container.exec(&[], &["cat", "/dev/shm/outcome"]).finish()?;
            if !outcome.stdout.is_empty() {
                break outcome.out();
            }
            ensure!(
                Instant::now() < end,
                "the guest did not fill the disk, {} blocks are free",
                small.free()?
            );
            sleep(Duration::from_millis(500));
        };
        ensure!(outcome == "refused", "the guest's program was not told of the full disk");
        // There is room for the verdict again.
        small.grow()?;
        container.run(&["kill", "-s", "USR1"])?.ends_with(0)?;
        let code = container.wait()?;
        ensure!(code == 41, "the container ended with {code}");
        container.run(&["rm"])?.ends_with(0)?;
        drop(small);
        Ok(())
    })
}

/// A small file system, mounted over a directory.
struct Small(PathBuf);

impl Small {
    fn over(directory: PathBuf) -> Result<Self> {
        mount("tmpfs", &directory, "tmpfs", MountFlags::empty(), Some(c"size=96m,mode=700"))
            .context("cannot mount a small file system")?;
        Ok(Self(directory))
    }

    fn grow(&self) -> Result<()> {
        mount_remount(&self.0, MountFlags::empty(), c"size=1g").context("cannot grow the small disk")
    }

    fn free(&self) -> Result<u64> {
        let directory = File::open(Path::new(&self.0)).context("cannot open the small disk")?;
        Ok(rustix::fs::fstatfs(&directory).context("cannot measure the small disk")?.f_bavail)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}
