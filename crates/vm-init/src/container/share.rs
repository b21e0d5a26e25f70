//! The host's directories and files in the guest: a FUSE mount whose messages go over vsock.
//!
//! The host serves one file system per container, with one directory per export, named by the export's index. Messages are
//! passed on as they are ([`relay`]).

mod relay;

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use beta9_types::ContainerId;
use beta9_wire::{SHARE_PORT, ShareOpen, write_message};
use rustix::fs::OFlags;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::control;
use crate::failure::{Context, Result};
use crate::modules::Modules;
use crate::report;
use relay::Relay;

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
        beta9_sys::vsock::set_buffer_size(&host, relay::ROOM).context(|| "make room for replies")?;
        rustix::io::ioctl_fionbio(&host, true)
            .context(|| "make the file server's connection non-blocking")?;
        let device = File::options()
            .read(true)
            .write(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open("/dev/fuse")
            .context(|| "open /dev/fuse")?;

        let path = place.join("share");
        fs::create_dir_all(&path).context(|| format!("create {}", path.display()))?;
        let data = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
            device.as_raw_fd()
        );
        let data = std::ffi::CString::new(data).context(|| "mount options")?;
        mount("beta9", &path, "fuse", MountFlags::NODEV, data.as_c_str()).context(|| "mount the share")?;
        let share = Self { path };

        spawn("share", move || Relay::new(device, host).run())?;
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
