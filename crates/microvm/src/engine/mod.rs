//! An engine starts, stops and describes a VM, and hands over the way to reach its guest. Nothing above this
//! module knows which engine it is.
//!
//! ```text
//! VmDirectory ──settle──▶ (a place and a user for the VM)
//! VmConfig ──start──▶ Vm ──▶ ended (the VMM or a helper of it is gone)
//!                      └─ stop: deadline, then SIGKILL
//! ```
//!
//! A guest that connects to the host (CID 2) on vsock port `P` arrives at the Unix socket `<VSOCK>_P` in the
//! VM's directory, with either engine.

mod controls;
mod directory;
mod drain;
pub(crate) mod firecracker;
mod process;
pub(crate) mod qemu;
mod socket;
mod user;
mod watchdog;

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use beta9_runtime::{Error, ErrorKind, Result, find_program};
use beta9_sys::reaper::ChildExit;
use beta9_types::{DiskRate, MacAddress, RuntimeSettings, VmId};
use rustix::process::Pid;

pub(crate) use controls::{Change, Controls};
pub(crate) use directory::{VmDirectory, clear, remove};
pub(crate) use drain::{Tail, drain};
pub(crate) use process::{Host, KILL_DEADLINE, Process, describe};
pub(crate) use socket::Appearance;
pub(crate) use user::{VmUser, check_shared, hand_over};
pub(crate) use watchdog::Stuck;

/// The vsock device's Unix socket in the VM's directory.
pub(crate) const VSOCK: &str = "v.sock";
/// The guest's own address. Every VM is alone on its device, so they can all have the same.
pub(crate) const GUEST_CID: u32 = 3;
/// What the guest's console said.
pub(crate) const CONSOLE_LOG: &str = "console.log";

/// Kernel arguments for every engine: the processor's random numbers are good enough to boot with, ciphers need no
/// tests at each boot, and nobody else is there to be disturbed by expedited grace periods, which every mount and
/// cgroup waits for. Together they are a third of a stock kernel's boot.
pub(crate) const COMMON_KERNEL_ARGS: &str =
    "random.trust_cpu=on cryptomgr.notests=1 rcupdate.rcu_expedited=1";

/// How long an ended VMM's last words may take to arrive.
const SETTLE: Duration = Duration::from_millis(500);

/// A VM to start.
#[derive(Debug, Clone)]
pub(crate) struct VmConfig {
    /// Its name towards the engine.
    pub(crate) id: VmId,
    /// Where its files are.
    pub(crate) directory: VmDirectory,
    /// An ELF kernel.
    pub(crate) kernel: PathBuf,
    /// The initramfs.
    pub(crate) initrd: PathBuf,
    /// vCPUs.
    pub(crate) cpus: u8,
    /// Memory.
    pub(crate) mem_mib: u32,
    /// `vda`, `vdb`, …
    pub(crate) drives: Vec<Drive>,
    /// Its network interface, if it has one.
    pub(crate) network: Option<NetworkDevice>,
    /// For each of them.
    pub(crate) disk_limit: DiskLimit,
    /// Whether memory is taken back from it.
    pub(crate) balloon: Balloon,
    /// What the kernel says on its console.
    pub(crate) console: Console,
}

/// The device by which the host takes memory back from a guest. The guest gets it again when it would have to kill
/// somebody otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Balloon {
    Absent,
    /// Empty at the start.
    Present,
}

impl Balloon {
    pub(crate) fn of(settings: &RuntimeSettings) -> Self {
        if settings.memory_balloon { Self::Present } else { Self::Absent }
    }
}

/// A network interface of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetworkDevice {
    /// The TAP device in the network namespace that the engine's programs join.
    pub(crate) tap: String,
    /// What the guest sees as its own address.
    pub(crate) mac: MacAddress,
}

/// What a disk may do in a second; no limit where absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct DiskLimit {
    pub(crate) bytes: Option<u64>,
    pub(crate) operations: Option<u64>,
}

impl DiskLimit {
    /// What was asked for, and what the pool says where nothing was.
    pub(crate) fn of(asked: DiskRate, settings: &RuntimeSettings) -> Self {
        let pool = DiskRate {
            bytes: Some(u64::from(settings.disk_mib_per_second) << 20),
            operations: Some(settings.disk_operations_per_second.into()),
        };
        let DiskRate { bytes, operations } = asked.or(pool);
        let some = |number: Option<u64>| number.filter(|number| *number > 0);
        Self { bytes: some(bytes), operations: some(operations) }
    }

    /// This with what `change` says.
    pub(crate) fn changed(self, change: DiskRate) -> Self {
        let new = |now: Option<u64>, to: Option<u64>| to.map_or(now, |to| Some(to).filter(|to| *to > 0));
        Self { bytes: new(self.bytes, change.bytes), operations: new(self.operations, change.operations) }
    }
}

/// A file that is a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Drive {
    /// A raw image.
    pub(crate) path: PathBuf,
    /// Whether the guest may write.
    pub(crate) access: DriveAccess,
}

/// Whether a guest may write to a drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DriveAccess {
    /// Shared with other VMs.
    ReadOnly,
    /// This VM's alone, and worthless after it: the host need not flush it.
    Scratch,
}

/// How much the guest's kernel says on its console. It is captured in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Console {
    /// Panics and what init says.
    Quiet,
    /// The boot log too, which costs time.
    Verbose,
}

impl Console {
    /// The kernel arguments for it.
    pub(crate) fn kernel_args(self) -> &'static str {
        match self {
            Self::Quiet => "console=ttyS0 quiet loglevel=3",
            Self::Verbose => "console=ttyS0 loglevel=7",
        }
    }
}

/// A program by its path. Engines run without an environment, so nobody looks along `PATH` for them later. One that
/// is not there keeps its name for the error.
fn located(program: &Path) -> PathBuf {
    find_program(program).unwrap_or_else(|| program.to_owned())
}

/// What a program starts and ends VMs with.
#[async_trait]
pub(crate) trait Engine: Send + Sync {
    /// How much longer than on hardware everything takes.
    fn pace(&self) -> Pace;

    /// Memory of the engine's processes beside the guest's own.
    fn overhead_mib(&self) -> u32;

    /// Makes the place in a VM's directory that its programs will work in, before anything is put there.
    fn settle(&self, directory: VmDirectory, id: &VmId) -> Result<VmDirectory>;

    /// Starts a VM; comes back when its processor runs. On failure nothing runs.
    async fn start(&self, config: &VmConfig, host: &Host) -> Result<Vm>;
}

/// How a guest's processor is run; decides deadlines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// On hardware.
    Native,
    /// In software, or on a machine that is itself emulated.
    Emulated,
}

impl Pace {
    /// The pace of a KVM guest on this machine.
    pub(crate) fn of_kvm() -> Self {
        if beta9_sys::processor::is_emulated() { Self::Emulated } else { Self::Native }
    }

    /// `native`, stretched where the guest is emulated.
    pub(crate) fn deadline(self, native: Duration) -> Duration {
        match self {
            Self::Native => native,
            Self::Emulated => native * 6,
        }
    }
}

/// A started VM. Dropping it kills it.
pub(crate) struct Vm {
    /// The VMM.
    pub(crate) vmm: Process,
    /// Programs that the VMM cannot do without.
    pub(crate) helpers: Vec<Process>,
    /// The process that connects on the guest's behalf.
    pub(crate) dialer: Pid,
    /// The guest's console.
    pub(crate) console: Tail,
    /// What the VMM says about itself.
    pub(crate) log: Tail,
    /// Why it was killed, if it gave no sign of life.
    pub(crate) stuck: Stuck,
    /// What may be changed of it while it runs.
    pub(crate) controls: Controls,
}

impl Vm {
    /// Waits for the end of the VMM or of a program it needs; says which and how. May be cancelled and repeated.
    pub(crate) async fn ended(&self) -> (&'static str, ChildExit) {
        let helper = async {
            match self.helpers.first() {
                Some(helper) => (helper.name(), helper.ended().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // The helper ends because the VMM did, so the VMM is asked first.
            biased;
            exit = self.vmm.ended() => (self.vmm.name(), exit),
            end = helper => end,
        }
    }

    /// Waits up to `grace` for the VMM to end by itself; then everything of the VM is killed.
    pub(crate) async fn stop(&self, grace: Duration) -> Result<()> {
        let _ = tokio::time::timeout(grace, self.vmm.ended()).await;
        let mut result = self.vmm.end().await;
        for helper in &self.helpers {
            result = result.and(helper.end().await);
        }
        result
    }

    /// Takes in what an ended VMM still has in its pipes.
    pub(crate) async fn settle(&self) {
        let _ = tokio::time::timeout(SETTLE, async {
            self.console.ended().await;
            self.log.ended().await;
        })
        .await;
    }

    /// Adds to `message` what console and VMM said last.
    pub(crate) fn complain(&self, kind: ErrorKind, message: String) -> Error {
        Error::new(kind, self.with_last_words(message))
    }

    /// `message`, and what console and VMM said last.
    pub(crate) fn with_last_words(&self, mut message: String) -> String {
        if let Some(reason) = self.stuck.reason() {
            message.push_str(&format!("; {} was killed because {reason}", self.vmm.name()));
        }
        for (whose, tail) in [("console", &self.console), (self.vmm.name(), &self.log)] {
            if let Some(excerpt) = tail.excerpt() {
                message.push_str(&format!("; {whose}: {excerpt}"));
            }
        }
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_wins_over_the_pool_and_changes_keep_what_they_do_not_say() {
        let settings = RuntimeSettings { disk_mib_per_second: 3, ..RuntimeSettings::default() };
        let asked = DiskRate { bytes: None, operations: Some(50) };
        let limit = DiskLimit::of(asked, &settings);
        assert_eq!(limit, DiskLimit { bytes: Some(3 << 20), operations: Some(50) });
        assert_eq!(
            DiskLimit::of(DiskRate { bytes: Some(0), operations: None }, &settings),
            DiskLimit::default()
        );
        let change = DiskRate { bytes: Some(7), operations: None };
        assert_eq!(limit.changed(change), DiskLimit { bytes: Some(7), operations: Some(50) });
        let lifted = limit.changed(DiskRate { bytes: Some(0), operations: Some(0) });
        assert_eq!(lifted, DiskLimit::default());
    }
}
