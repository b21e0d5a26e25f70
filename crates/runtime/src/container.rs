use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use beta9_sys::cgroup::Cgroup;
use beta9_types::{
    Attachment, BindMount, ContainerId, DiskRate, Exit, Phase, PhaseMark, RuntimeKind, TerminalSize,
};
use oci_spec::runtime::Spec;

use crate::{Capabilities, Operations, Processes, Result};

/// A way of isolating containers.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// Which one.
    fn kind(&self) -> RuntimeKind;

    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// In which form it takes a container's root file system.
    fn rootfs_form(&self) -> RootfsForm;

    /// Adapts a spec to this runtime, or refuses what it cannot do, by name. Touches nothing else.
    fn prepare(&self, spec: &mut Spec) -> Result<()>;

    /// Prepares a container up to the point where only its process is missing. On failure nothing is left.
    async fn create(&self, request: CreateRequest) -> Result<Box<dyn Container>>;

    /// Takes away everything a container left whose supervisor is gone, or whose start was abandoned half-way.
    /// `dir` and `cgroup` are those of its [`CreateRequest`]. Missing is fine.
    async fn clean(&self, id: &ContainerId, dir: &Path, cgroup: &Cgroup) -> Result<()>;
}

/// One created container.
#[async_trait]
pub trait Container: Send + Sync {
    /// Executes the container's process.
    async fn start(&mut self) -> Result<()>;

    /// The process on the host that stands for the container: its init, or the VMM.
    fn pid(&self) -> u32;

    /// Waits for the verdict. May be called again after it was cancelled; after the verdict it repeats it.
    async fn exit(&mut self) -> Exit;

    /// A handle to send signals with while somebody else waits for the exit.
    fn signals(&self) -> Arc<dyn Signals>;

    /// A handle to operate it with while somebody else waits for the exit.
    fn operations(&self) -> Arc<dyn Operations>;

    /// A handle to start and reach other processes with while somebody else waits for the exit.
    fn processes(&self) -> Arc<dyn Processes>;

    /// Gives back everything the container holds. Ends it if it still runs. May be repeated.
    async fn delete(&mut self) -> Result<()>;
}

/// Sends signals to a running container.
#[async_trait]
pub trait Signals: Send + Sync {
    /// Sends signal `number` to the container's main process, or to every process of it.
    async fn send(&self, number: i32, target: SignalTarget) -> Result<()>;
}

/// Who gets a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalTarget {
    /// The container's main process.
    Main,
    /// Every process of the container.
    All,
}

/// In which form a runtime takes a root file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootfsForm {
    /// A directory on the host.
    Directory,
    /// A read-only block image and a block device for changes.
    Block,
}

/// A root file system that is ready for one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rootfs {
    /// A writable directory.
    Directory(PathBuf),
    /// Two files that become drives of a VM.
    Block {
        /// The read-only image, shared by every container of the image.
        image: PathBuf,
        /// Its file system: `erofs`, `squashfs` or `ext4`.
        format: String,
        /// An empty ext4 file system of this container's own; the guest's memory where absent.
        scratch: Option<PathBuf>,
        /// The most that the writable layer holds where it is in the guest's memory.
        memory_layer_bytes: Option<u64>,
    },
}

/// What a runtime needs to create one container.
pub struct CreateRequest {
    /// The container.
    pub id: ContainerId,
    /// A directory of the container's own for the runtime's files. Exists.
    pub dir: PathBuf,
    /// What to run; already given to [`Runtime::prepare`].
    pub spec: Spec,
    /// Where its root file system is.
    pub rootfs: Rootfs,
    /// The host paths among the spec's mounts.
    pub mounts: Vec<BindMount>,
    /// The container's ends of its streams.
    pub stdio: ContainerStdio,
    /// The container's cgroup on the host; exists.
    pub cgroup: Cgroup,
    /// Where the timeline is written.
    pub marks: Marks,
    /// Its end of a network, in a namespace that the spec names; none where it has loopback only, or the host's own.
    pub network: Option<Attachment>,
    /// What it may do on its own disks.
    pub disk: DiskRate,
}

/// The container's ends of its streams, or of those of one more process of it. Dropping them is end-of-file for whoever
/// holds the other ends.
pub struct ContainerStdio {
    /// Read by the container; `/dev/null` where absent.
    pub stdin: Option<OwnedFd>,
    /// Written by the container.
    pub stdout: OwnedFd,
    /// Written by the container; by nobody where it has a terminal.
    pub stderr: OwnedFd,
    /// The process has a terminal of this size, which the runtime makes: what is written to `stdin` is typed there, and
    /// what appears there comes out of `stdout`.
    pub terminal: Option<TerminalSize>,
}

/// The timeline of a container's start. Cheap to clone; every clone writes to the same line.
#[derive(Debug, Clone, Default)]
pub struct Marks {
    marks: Arc<Mutex<Vec<PhaseMark>>>,
}

impl Marks {
    /// Records that a phase was reached now. Returns the mark.
    pub fn reach(&self, phase: Phase) -> PhaseMark {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Microseconds since 1970 fit into 64 bits for another half a million years.
        let mark = PhaseMark { phase, at_us: since_epoch.as_micros() as u64 };
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).push(mark);
        mark
    }

    /// Records, in its place, what was reached `ago` as somebody else tells it. It is not believed to have been before
    /// the first mark, and only once.
    pub fn reached(&self, phase: Phase, ago: Duration) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at_us = now.saturating_sub(ago).as_micros() as u64;
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let at_us = marks.first().map_or(at_us, |first| first.at_us.max(at_us));
        if marks.iter().all(|mark| mark.phase != phase) {
            let place = marks.partition_point(|mark| mark.at_us <= at_us);
            marks.insert(place, PhaseMark { phase, at_us });
        }
    }

    /// Everything recorded so far.
    pub fn all(&self) -> Vec<PhaseMark> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A program of an operator's choosing, found the way a shell finds it.
pub fn find_program(program: &Path) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let runnable = |path: &PathBuf| {
        path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if program.components().count() > 1 {
        return Some(program.to_owned()).filter(runnable);
    }
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(program)).find(runnable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_tells_later_goes_where_it_belongs_and_only_once() {
        let marks = Marks::default();
        marks.reach(Phase::SupervisorStarted);
        std::thread::sleep(Duration::from_millis(30));
        marks.reach(Phase::GuestReady);
        marks.reached(Phase::GuestInit, Duration::from_millis(15));
        marks.reached(Phase::GuestInit, Duration::ZERO);
        // A guest that lies is not before its own supervisor.
        marks.reached(Phase::GuestKernel, Duration::from_secs(4000));
        let all = marks.all();
        let phases: Vec<_> = all.iter().map(|mark| mark.phase).collect();
        let expected = [Phase::SupervisorStarted, Phase::GuestKernel, Phase::GuestInit, Phase::GuestReady];
        assert_eq!(phases, expected);
        assert!(all.is_sorted_by_key(|mark| mark.at_us));
    }
}
