//! What a container has mounted does not answer any more.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use beta9_types::RuntimeKind;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::at;
use crate::{Site, World};

/// Kill, give up, take away: each has a deadline of its own.
const PATIENCE: Duration = Duration::from_secs(90);

pub(super) fn hangs(runtime: RuntimeKind) -> Result<()> {
    at(Site::prepare()?, |site| {
        let world = World::new(site, runtime, "hanging");
        let source = Hanging::mount(&world.directory()?)?;
        let volume = format!("{}:/data", source.point.display());
        let container =
            world.detach_ready(&["-v", &volume], "echo ready; cat /data/slow & sleep 1; cat /data/slow")?;
        // It is stuck by now, or will be; neither its stop nor another container may be.
        std::thread::sleep(Duration::from_secs(2));
        world.run(&[], &["echo", "another"])?.prints("another")?;
        let began = Instant::now();
        container.run(&["stop", "-t", "1"])?.ends_with(0)?;
        ensure!(began.elapsed() < PATIENCE, "the stop took {:.0} s", began.elapsed().as_secs_f64());
        drop(source);
        container.run(&["rm", "-f"])?.ends_with(0)?;
        Ok(())
    })
}

/// A directory whose server says that it is one, and nothing of what is in it. Dropped, whoever waits gets an error.
struct Hanging {
    point: PathBuf,
    server: Option<File>,
}

impl Hanging {
    fn mount(point: &Path) -> Result<Self> {
        let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        let device = File::from(device.context("cannot open /dev/fuse")?);
        let data = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let (data, flags) = (CString::new(data)?, MountFlags::NOSUID | MountFlags::NODEV);
        mount("hanging", point, "fuse", flags, data.as_c_str()).context("cannot mount it")?;
        let server = device.try_clone()?;
        std::thread::spawn(move || answer(device));
        Ok(Self { point: point.to_owned(), server: Some(server) })
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        // Ends the connection, which a descriptor alone does not while the other thread reads from it.
        let device = rustix::fs::stat(&self.point).map(|stat| rustix::fs::minor(stat.st_dev));
        let _ = unmount(&self.point, UnmountFlags::DETACH);
        if let Ok(minor) = device {
            let _ = fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1");
        }
        drop(self.server.take());
    }
}

/// The few answers (linux/fuse.h) that make it a directory.
fn answer(mut device: File) {
    const LOOKUP: u32 = 1;
    const FORGET: [u32; 3] = [2, 36, 42];
    const GETATTR: u32 = 3;
    const INIT: u32 = 26;
    const ENOSYS: i32 = 38;
    let mut request = vec![0; 1 << 20];
    while let Ok(length) = device.read(&mut request) {
        let opcode = request[4..length].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        let (error, body) = match opcode {
            LOOKUP => continue,
            opcode if FORGET.contains(&opcode) => continue,
            INIT => (0, words(&[7, 31, 0, 0, 0, 4096]).into_iter().chain([0; 40]).collect()),
            GETATTR => {
                // How long it is true, number, size, blocks and times; the rest is `struct fuse_attr`'s second half.
                let mut body = vec![0; 16];
                body.extend(1u64.to_le_bytes());
                body.extend([0; 40]);
                body.extend(words(&[0, 0, 0, 0o040_755, 2, 0, 0, 0, 4096, 0]));
                (0, body)
            }
            _ => (-ENOSYS, Vec::new()),
        };
        let mut reply = words(&[16 + body.len() as u32]);
        reply.extend(i32::to_le_bytes(error));
        reply.extend(&request[8..16]);
        reply.extend(body);
        if device.write_all(&reply).is_err() {
            return;
        }
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
