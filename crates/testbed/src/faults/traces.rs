//! The steps of a container's life, each seen by what it leaves on disk, so that a fault hits the step it is meant for.
//!
//! ```text
//! runc, gVisor   supervisor.sock ─▶ rootfs ─▶ bundle ─▶ oci.pid ─▶ running
//! a VM           supervisor.sock ─▶ scratch.ext4 ─▶ QEMU's workplace ─▶ the engine's log ─▶ started ─▶ running
//! ```
//!
//! Inotify tells of each within microseconds. A fault hit its step if the next one's trace never came.

use std::fs;
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use beta9_types::RuntimeKind;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::process::{Pid, setpriority_process};
use serde_json::Value;

/// An emulated VM in a nested machine takes long to boot.
const DEADLINE: Duration = Duration::from_secs(120);

/// Directories in which something is to appear.
pub(super) struct Watch(OwnedFd);

impl Watch {
    /// Looks into `directory`, which must exist.
    pub(super) fn over(directory: &Path) -> Result<Self> {
        let watch = Self(inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?);
        watch.add(directory)?;
        Ok(watch)
    }

    fn add(&self, directory: &Path) -> Result<()> {
        inotify::add_watch(&self.0, directory, WatchFlags::CREATE | WatchFlags::MOVED_TO)
            .with_context(|| format!("cannot watch {}", directory.display()))?;
        Ok(())
    }

    /// What `look` finds, looked for each time that something appears.
    fn until<T>(&self, what: &str, look: impl Fn() -> Option<T>) -> Result<T> {
        let end = Instant::now() + DEADLINE;
        loop {
            // Events are taken first: what appears while we look is told again.
            self.forget_events()?;
            if let Some(found) = look() {
                return Ok(found);
            }
            let left = Timespec::try_from(end.saturating_duration_since(Instant::now()))?;
            let ready = poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&left))?;
            ensure!(ready > 0, "{what} did not appear within {DEADLINE:?}");
        }
    }

    fn forget_events(&self) -> Result<()> {
        let mut buffer = [MaybeUninit::uninit(); 16 << 10];
        let mut events = Reader::new(&self.0, &mut buffer);
        loop {
            match events.next() {
                Ok(_) => {}
                Err(Errno::WOULDBLOCK) => return Ok(()),
                Err(error) => return Err(error).context("cannot read what appeared"),
            }
        }
    }

    /// Waits until something is in `parent`, which is watched, whose name begins with `start`.
    pub(super) fn entry(&self, parent: &Path, start: &str) -> Result<()> {
        let begins = |entry: fs::DirEntry| entry.file_name().as_encoded_bytes().starts_with(start.as_bytes());
        let look = || fs::read_dir(parent).ok()?.flatten().any(begins).then_some(());
        self.until(start, look)
    }

    /// The one directory in `parent`, which is watched.
    pub(super) fn first_entry(&self, parent: &Path) -> Result<PathBuf> {
        self.until("a container", || Some(fs::read_dir(parent).ok()?.next()?.ok()?.path()))
    }
}

/// What a step leaves when it is over.
#[derive(Debug, Clone, Copy)]
pub(super) enum Trace {
    /// A file or directory in the container's directory.
    Container(&'static str),
    /// One in the VM's.
    Vm(&'static str),
    /// The container's record says so.
    State(&'static str),
}

/// The steps of a start with this runtime, in order.
pub(super) fn start(runtime: RuntimeKind) -> &'static [Trace] {
    use Trace::{Container, State, Vm};
    const RUNNING: Trace = State("running");
    match runtime {
        RuntimeKind::Qemu => &[
            Container("supervisor.sock"),
            Container("scratch.ext4"),
            Vm("run"),
            Vm("qemu.log"),
            Vm("started"),
            RUNNING,
        ],
        RuntimeKind::Firecracker => &[
            Container("supervisor.sock"),
            Container("scratch.ext4"),
            Vm("firecracker.log"),
            Vm("started"),
            RUNNING,
        ],
        _ => &[
            Container("supervisor.sock"),
            Container("rootfs"),
            Container("bundle"),
            Container("oci.pid"),
            RUNNING,
        ],
    }
}

/// Where one container leaves its traces.
pub(super) struct Places {
    watch: Watch,
    pub(super) container: PathBuf,
    /// The directory of all VMs of the runtime.
    vms: PathBuf,
    _haste: Haste,
}

/// While it lives, its thread is scheduled before everything else of the machine. Processes started by the thread
/// meanwhile would be, too.
pub(super) struct Haste(());

impl Haste {
    pub(super) fn make() -> Self {
        // Where it is not allowed, more attempts are needed.
        let _ = setpriority_process(None, -20);
        Self(())
    }
}

impl Drop for Haste {
    fn drop(&mut self) {
        let _ = setpriority_process(None, 0);
    }
}

impl Places {
    pub(super) fn new(container: PathBuf, vms: PathBuf, haste: Haste) -> Result<Self> {
        let watch = Watch::over(&container)?;
        watch.add(&vms)?;
        Ok(Self { watch, container, vms, _haste: haste })
    }

    fn vm(&self) -> PathBuf {
        self.vms.join(self.container.file_name().unwrap_or_default())
    }

    pub(super) fn has(&self, trace: Trace) -> bool {
        match trace {
            Trace::Container(name) => fs::symlink_metadata(self.container.join(name)).is_ok(),
            Trace::Vm(name) => fs::symlink_metadata(self.vm().join(name)).is_ok(),
            Trace::State(state) => {
                let text = fs::read_to_string(self.container.join("state.json")).unwrap_or_default();
                let known: Value = serde_json::from_str(&text).unwrap_or_default();
                known["state"]["status"] == state
            }
        }
    }

    /// Waits for a trace.
    pub(super) fn reach(&self, trace: Trace) -> Result<()> {
        if let Trace::Vm(_) = trace {
            let vm = self.vm();
            self.watch.until("the VM's directory", || vm.is_dir().then_some(()))?;
            self.watch.add(&vm)?;
        }
        self.watch.until(&format!("{trace:?}"), || self.has(trace).then_some(()))
    }

    /// Whether everything that the container held was given back.
    pub(super) fn is_cleaned(&self) -> bool {
        let text = fs::read_to_string(self.container.join("state.json")).unwrap_or_default();
        serde_json::from_str::<Value>(&text).is_ok_and(|known| known["cleaned"] == true)
    }

    /// The supervisor: whoever listens on its socket.
    pub(super) fn supervisor(&self) -> Result<Pid> {
        self.reach(Trace::Container("supervisor.sock"))?;
        let socket = self.container.join("supervisor.sock");
        let connection = self.watch.until("somebody who listens", || UnixStream::connect(&socket).ok())?;
        Ok(socket_peercred(&connection)?.pid)
    }
}
