//! The host's directories and files in the guest: a FUSE mount whose messages go over vsock.
//!
//! The host serves one file system per container, with one directory per export, named by the export's index. Nothing
//! is interpreted here but lengths: requests go from the kernel to the host, replies back, each message in one piece.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use beta9_types::ContainerId;
use beta9_wire::{SHARE_PORT, ShareOpen, write_message};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::net::Shutdown;

use crate::control;
use crate::failure::{Context, Result};
use crate::modules::Modules;
use crate::report;

/// The largest FUSE message: a write or read of 1 MiB, and room for its headers.
const MAX_MESSAGE: usize = (1 << 20) + 4096;
/// `struct fuse_out_header`: length, error, unique.
const OUT_HEADER: usize = 16;

/// Every file that this kernel knows costs the host's file server a descriptor and memory. So when there are many, it is
/// told to forget those that nobody uses; how many there are is looked at once in so many requests.
const MOST_FILES: u64 = 16_384;
const FORGET_EVERY: u32 = 512;

/// The mounted share of one container. Dropping it unmounts it and ends the relay.
pub(super) struct Share {
    path: PathBuf,
}

impl Share {
    /// Mounts the share below `place` and starts to relay.
    pub(super) fn mount(place: &Path, container: &ContainerId, modules: &Modules) -> Result<Self> {
        modules.load("fuse");
        let mut host = control::connect(SHARE_PORT).context(|| "connect to the host's file server")?;
        write_message(&mut host, &ShareOpen { container: container.clone() })
            .context(|| "open the share at the host's file server")?;
        let device = File::options().read(true).write(true).open("/dev/fuse").context(|| "open /dev/fuse")?;

        let path = place.join("share");
        fs::create_dir_all(&path).context(|| format!("create {}", path.display()))?;
        let data = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
            device.as_raw_fd()
        );
        let data = std::ffi::CString::new(data).context(|| "mount options")?;
        mount("beta9", &path, "fuse", MountFlags::NODEV, data.as_c_str()).context(|| "mount the share")?;
        let share = Self { path };

        let (device_too, host_too) = (
            device.try_clone().context(|| "keep /dev/fuse")?,
            host.try_clone().context(|| "keep the file server's connection")?,
        );
        spawn("share-requests", move || requests(device, host))?;
        spawn("share-replies", move || replies(host_too, device_too))?;
        // Not before: what is asked of the mount is answered by these.
        share.read_ahead();
        Ok(share)
    }

    /// Has the kernel read as far ahead as one request carries, where an export lets it keep what it reads.
    fn read_ahead(&self) {
        let Ok(stat) = rustix::fs::stat(&self.path) else { return };
        let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
        // Without it reading is slower, and nothing else.
        let _ = fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), "1024");
    }

    /// Where it is mounted.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Sends what was written through mappings and has not reached the host yet; gives up after `deadline`.
    pub(super) fn sync(&self, deadline: Duration) {
        let Ok(root) = File::open(&self.path) else { return };
        let (done, finished) = sync_channel(1);
        // A thread of its own, because a file server that does not answer would hold this one.
        let synced = spawn("share-sync", move || {
            let _ = rustix::fs::syncfs(&root);
            let _ = done.send(());
        });
        if synced.is_ok() && finished.recv_timeout(deadline).is_err() {
            report::warn("the host's file server did not take everything in time");
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        // Detached, the mount goes with its last user, and with it the device: the relay sees that and ends.
        if let Err(error) = unmount(&self.path, UnmountFlags::DETACH) {
            report::warn(&format!("unmount the share: {error}"));
        }
        let _ = fs::remove_dir(&self.path);
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(body).map(drop).context(|| "start a thread")
}

/// Passes the kernel's requests on until the share is unmounted or the host has closed it.
fn requests(mut device: File, mut host: File) {
    let mut buffer = vec![0; MAX_MESSAGE];
    let mut passed = 0u32;
    loop {
        passed = passed.wrapping_add(1);
        if passed.is_multiple_of(FORGET_EVERY)
            && knows_many_files()
            && !FORGETTING.swap(true, Ordering::Relaxed)
        {
            // A thread of its own: forgetting may take an answer of the host's, which comes for what this one sends.
            let forgetting = spawn("share-forget", || {
                const NAMES_AND_FILES: &str = "2";
                let _ = fs::write("/proc/sys/vm/drop_caches", NAMES_AND_FILES);
                FORGETTING.store(false, Ordering::Relaxed);
            });
            if forgetting.is_err() {
                FORGETTING.store(false, Ordering::Relaxed);
            }
        }
        let mut ready = [
            PollFd::from_borrowed_fd(device.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(host.as_fd(), PollFlags::RDHUP),
        ];
        match poll(&mut ready, None) {
            Ok(_) if !ready[1].revents().is_empty() => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => break,
        }
        // The kernel gives exactly one message for one read.
        match device.read(&mut buffer) {
            Ok(length) => {
                if host.write_all(&buffer[..length]).is_err() {
                    break;
                }
            }
            // ENOENT: the request was taken back before it was read.
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::INTR | Errno::NOENT)) => {}
            Err(_) => break,
        }
    }
    let _ = rustix::net::shutdown(&host, Shutdown::Both);
}

/// Whether caches are being dropped (Documentation/admin-guide/sysctl/vm.rst).
static FORGETTING: AtomicBool = AtomicBool::new(false);

fn knows_many_files() -> bool {
    let count = fs::read_to_string("/proc/sys/fs/inode-nr").ok();
    let count = count.as_deref().and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
    count.is_some_and(|count| count > MOST_FILES)
}

/// Passes the host's replies on until either side is gone or the host breaks the protocol.
fn replies(mut host: File, mut device: File) {
    if let Err(error) = pass_replies(&mut host, &mut device) {
        report::warn(&format!("share: {error}"));
    }
    // Ends the other half, and with it the last use of the device: every process in the share gets an error.
    let _ = rustix::net::shutdown(&host, Shutdown::Both);
}

fn pass_replies(host: &mut File, device: &mut File) -> io::Result<()> {
    let mut buffer = vec![0; MAX_MESSAGE];
    loop {
        match host.read_exact(&mut buffer[..OUT_HEADER]) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
        let length =
            message_length(&buffer).ok_or_else(|| io::Error::other("a reply of impossible length"))?;
        host.read_exact(&mut buffer[OUT_HEADER..length])?;
        match device.write(&buffer[..length]) {
            Ok(_) => {}
            // The request was interrupted and nobody waits for its reply.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => {}
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NODEV) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// The length that a reply says it has, if it can have it.
fn message_length(header: &[u8]) -> Option<usize> {
    let bytes = header.get(..4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok())?;
    let length = u32::from_ne_bytes(bytes) as usize;
    (OUT_HEADER..=MAX_MESSAGE).contains(&length).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_that_is_too_short_or_too_long_is_refused() {
        let header = |length: usize| message_length(&(length as u32).to_ne_bytes());
        assert_eq!(header(OUT_HEADER - 1), None);
        assert_eq!(header(OUT_HEADER), Some(OUT_HEADER));
        assert_eq!(header(MAX_MESSAGE), Some(MAX_MESSAGE));
        assert_eq!(header(MAX_MESSAGE + 1), None);
        assert_eq!(message_length(&[1, 2]), None);
    }
}
