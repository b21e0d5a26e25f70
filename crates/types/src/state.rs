use serde::{Deserialize, Serialize};

use crate::Exit;

/// Where a container is in its life.
///
/// ```text
/// created ──▶ starting ──▶ running ──▶ exited ──▶ starting, when somebody starts it again
///                 │▲          │           ▲
///                 │└restarting◀── by its restart policy
///                 │         ▲   ▼           │
///                 │         paused ─────────┤
///                 └───────────────────────┘
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub enum ContainerState {
    /// The record exists; nothing has been started for it.
    Created,
    /// The supervisor is preparing the root file system, the runtime or the VM.
    Starting,
    /// The container's process runs.
    Running {
        /// Its process id on the host: the container's init, or the VMM.
        pid: u32,
    },
    /// The container's processes are frozen.
    Paused {
        /// As of one that runs.
        pid: u32,
    },
    /// It is over. The record stays until the container is removed.
    Exited(Exit),
    /// It ended so, and its restart policy starts it again after a pause.
    Restarting(Exit),
}

impl ContainerState {
    /// The word used in tables and filters.
    pub fn status(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running { .. } => "running",
            Self::Paused { .. } => "paused",
            Self::Exited(_) => "exited",
            Self::Restarting(_) => "restarting",
        }
    }

    /// Whether the start is behind it, however it went.
    pub fn is_started(&self) -> bool {
        matches!(self, Self::Running { .. } | Self::Paused { .. } | Self::Exited(_) | Self::Restarting(_))
    }

    /// The process that stands for the container on the host, while there is one.
    pub fn pid(&self) -> Option<u32> {
        match self {
            Self::Running { pid } | Self::Paused { pid } => Some(*pid),
            _ => None,
        }
    }

    /// How it ended, if it did.
    pub fn exit(&self) -> Option<&Exit> {
        match self {
            Self::Exited(exit) => Some(exit),
            _ => None,
        }
    }
}

/// A step of a start, in the order in which they happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The worker accepted the request.
    Requested,
    /// The supervisor's first instruction.
    SupervisorStarted,
    /// Root file system and writable layer are in place.
    RootfsReady,
    /// The container's network is connected, if it has one.
    NetworkReady,
    /// The engine process runs (microVMs).
    EngineStarted,
    /// The guest's kernel began to count time (microVMs).
    GuestKernel,
    /// The guest's kernel has booted and executed its init (microVMs).
    GuestInit,
    /// The guest's PID 1 has dialled the host (microVMs).
    GuestReady,
    /// The container's root file system is mounted in the guest (microVMs).
    GuestMounted,
    /// The runtime has prepared the container and not yet executed its process.
    Created,
    /// The container's process runs.
    Running,
    /// The container's process is gone.
    Exited,
    /// Its VM's engine is gone (microVMs).
    EngineEnded,
    /// Everything the container held has been given back.
    Cleaned,
}

impl Phase {
    /// The word used in records and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::SupervisorStarted => "supervisor_started",
            Self::RootfsReady => "rootfs_ready",
            Self::NetworkReady => "network_ready",
            Self::EngineStarted => "engine_started",
            Self::GuestKernel => "guest_kernel",
            Self::GuestInit => "guest_init",
            Self::GuestReady => "guest_ready",
            Self::GuestMounted => "guest_mounted",
            Self::Created => "created",
            Self::Running => "running",
            Self::Exited => "exited",
            Self::EngineEnded => "engine_ended",
            Self::Cleaned => "cleaned",
        }
    }
}

/// When a phase was reached: what `inspect --timeline` draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseMark {
    /// The step.
    pub phase: Phase,
    /// Microseconds since the Unix epoch, by the host's clock.
    pub at_us: u64,
}
