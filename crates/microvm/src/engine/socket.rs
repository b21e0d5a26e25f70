//! Waiting for a program to make its socket, without asking again and again.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use beta9_runtime::{Error, ErrorKind, Result};
use rustix::fs::inotify;
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use crate::engine::VmDirectory;

/// The appearance of one name in a VM's directory, watched since before the program was started.
pub(crate) struct Appearance {
    name: &'static str,
    events: AsyncFd<OwnedFd>,
}

impl Appearance {
    pub(crate) fn of(directory: &VmDirectory, name: &'static str) -> Result<Self> {
        let watch =
            |e| Error::caused(ErrorKind::Failed, format!("watch {}", directory.workplace().display()), e);
        let events = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .map_err(|e| watch(e.into()))?;
        inotify::add_watch(&events, directory.reach("."), inotify::WatchFlags::CREATE)
            .map_err(|e| watch(e.into()))?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe, for descriptors that are not owned as this one is"
        )]
        let events = AsyncFd::new(events).map_err(watch)?;
        Ok(Self { name, events })
    }

    /// Comes back when the name exists.
    pub(crate) async fn wait(&self) -> Result<()> {
        let failed = |e| Error::caused(ErrorKind::Failed, format!("wait for {}", self.name), e);
        loop {
            let mut ready = self.events.readable().await.map_err(failed)?;
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut reader = inotify::Reader::new(&self.events, &mut buffer);
            loop {
                match reader.next() {
                    Ok(event) if event.file_name().map(CStr::to_bytes) == Some(self.name.as_bytes()) => {
                        return Ok(());
                    }
                    Ok(_) => {}
                    Err(Errno::WOULDBLOCK) => break,
                    Err(e) => return Err(failed(e.into())),
                }
            }
            ready.clear_ready();
        }
    }
}
