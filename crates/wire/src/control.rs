use beta9_types::{ContainerId, ExecId, TerminalSize};
use serde::{Deserialize, Serialize};

use crate::{ContainerSpec, Operation, Outcome, Process};

/// What the host says on the control connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToGuest {
    /// The answer to `Hello`, before anything else.
    Welcome {
        /// The version the host speaks.
        protocol: u16,
        /// The sandbox this VM is: its containers are named in later messages.
        sandbox: ContainerId,
        /// The host's wall clock, nanoseconds since the Unix epoch; the guest sets its own by it.
        unix_ns: u64,
        /// Fresh randomness from the host for the guest's pool.
        entropy: [u8; 32],
    },
    /// Prepare a container: mounts, root, cgroup, streams. Its process is not executed yet.
    Create {
        /// The container's identity in every later message.
        container: ContainerId,
        /// Where its root file system is.
        root: RootDisk,
        /// What to run, and how.
        spec: Box<ContainerSpec>,
    },
    /// Execute the process of a created container.
    Start {
        /// Which one.
        container: ContainerId,
    },
    /// Send a signal to the container's main process.
    Signal {
        /// Which container.
        container: ContainerId,
        /// The kernel's number for it.
        signal: i32,
        /// Every process of the container, not only its main one.
        all: bool,
    },
    /// The report of an exit has been stored; the guest stops repeating it.
    ExitAck {
        /// Which container.
        container: ContainerId,
    },
    /// Sync and restart the machine, which ends the VMM.
    Shutdown,
    /// Execute another process in a running container.
    Exec {
        /// In which one.
        container: ContainerId,
        /// The process's identity in every later message.
        exec: ExecId,
        /// What to run, and how.
        process: Box<Process>,
    },
    /// Send a signal to a process that `Exec` started.
    SignalExec {
        /// In which container.
        container: ContainerId,
        /// Which process.
        exec: ExecId,
        /// The kernel's number for it.
        signal: i32,
    },
    /// Change the size of a process's terminal.
    Resize {
        /// In which container.
        container: ContainerId,
        /// Which process; absent for the main one.
        exec: Option<ExecId>,
        /// The new size.
        size: TerminalSize,
    },
    /// Do something with a running container.
    Operate {
        /// Which one.
        container: ContainerId,
        /// The number that the answer carries; those under way differ.
        number: u32,
        /// What to do.
        operation: Operation,
    },
    /// Time went on without the guest, or the clocks drifted apart: the same as a part of `Welcome`, at any time.
    Renew {
        /// The host's wall clock, nanoseconds since the Unix epoch.
        unix_ns: u64,
        /// Fresh randomness from the host for the guest's pool.
        entropy: [u8; 32],
    },
}

/// What the guest says on the control connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromGuest {
    /// The first message: the guest is up.
    Hello {
        /// The version the guest speaks.
        protocol: u16,
        /// `uname -r` inside.
        kernel: String,
    },
    /// The container is prepared; `Start` will execute its process.
    Created {
        /// Which one.
        container: ContainerId,
    },
    /// The container's process has been executed.
    Started {
        /// Which one.
        container: ContainerId,
    },
    /// `Create` or `Start` failed. Everything of the container has been undone.
    Failed {
        /// Which one.
        container: ContainerId,
        /// Why, as an exit code tells it.
        failure: StartFailure,
        /// One sentence: what was tried and what went wrong.
        message: String,
    },
    /// The container's process is gone. Repeated until `ExitAck`.
    Exited {
        /// Which one.
        container: ContainerId,
        /// How.
        exit: GuestExit,
    },
    /// The program of an `Exec` has been executed.
    ExecStarted {
        /// In which container.
        container: ContainerId,
        /// Which process.
        exec: ExecId,
    },
    /// An `Exec` failed. Nothing of it is left.
    ExecFailed {
        /// In which container.
        container: ContainerId,
        /// Which process.
        exec: ExecId,
        /// Why, as an exit code tells it.
        failure: StartFailure,
        /// One sentence: what was tried and what went wrong.
        message: String,
    },
    /// A process that `Exec` started is gone. Said once: nothing waits for it but the host. The totals are those of the
    /// bytes that the process wrote; a process that it left behind may hold its streams open and write more.
    ExecExited {
        /// In which container.
        container: ContainerId,
        /// Which process.
        exec: ExecId,
        /// How.
        exit: GuestExit,
    },
    /// An operation is over.
    Operated {
        /// On which container.
        container: ContainerId,
        /// Which one.
        number: u32,
        /// How it went.
        outcome: Outcome,
    },
    /// How far the guest had come, and how long ago. For people; nothing depends on it.
    Reached {
        /// For which container it did.
        container: ContainerId,
        /// What was reached since the last such message.
        marks: Vec<GuestMark>,
    },
}

/// Something that the guest reached on the way to a running container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestMoment {
    /// The kernel's clock started.
    Kernel,
    /// The kernel has booted and executed its init.
    Init,
    /// The container's root file system is mounted.
    Mounted,
}

/// When something was reached, as the guest's clock has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestMark {
    /// What was reached.
    pub moment: GuestMoment,
    /// How long before this message was sent, in microseconds.
    pub ago_us: u32,
}

/// Why a container's process could not be executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartFailure {
    /// Preparing it failed: exit code 125.
    Setup,
    /// The file exists and cannot be executed: exit code 126.
    CannotExecute,
    /// The file does not exist: exit code 127.
    NotFound,
}

/// The verdict on a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestExit {
    /// Its exit code, when it ended by itself.
    pub code: u8,
    /// The signal that ended it; 0 for none.
    pub signal: u8,
    /// Whether the kernel killed a process of the container for memory (`memory.events`, `oom_kill`).
    pub oom: bool,
    /// Bytes that its stdout carried, all sent before this.
    pub stdout_bytes: u64,
    /// Bytes that its stderr carried.
    pub stderr_bytes: u64,
}

/// Where a container's root file system is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootDisk {
    /// The read-only image: the drive's index in the order in which the engine attached them, 0 = `vda`.
    pub drive: u8,
    /// Its file system: `erofs`, `squashfs` or `ext4`.
    pub format: String,
    /// Where changes go.
    pub writable: WritableLayer,
}

/// Where a container's changes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WritableLayer {
    /// An ext4 file system on this drive.
    Drive(u8),
    /// The guest's memory, at most this many bytes.
    Memory(u64),
}
