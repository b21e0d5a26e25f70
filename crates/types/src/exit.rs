use serde::{Deserialize, Serialize};

/// Why a container is no longer running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// The process ended by itself.
    Exited,
    /// A signal ended the process.
    Signaled,
    /// The container went over its memory limit and the kernel killed a process of it.
    Oom,
    /// The container never ran.
    StartFailed,
    /// The supervisor died; nobody saw the exit code.
    SupervisorLost,
    /// The VMM or the guest died without a report.
    VmmLost,
    /// The host's kernel killed the VMM for memory.
    VmmOom,
    /// The worker's own machine or pod went away.
    WorkerLost,
}

impl ExitReason {
    /// The word used in records and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exited => "exited",
            Self::Signaled => "signaled",
            Self::Oom => "oom",
            Self::StartFailed => "start_failed",
            Self::SupervisorLost => "supervisor_lost",
            Self::VmmLost => "vmm_lost",
            Self::VmmOom => "vmm_oom",
            Self::WorkerLost => "worker_lost",
        }
    }
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// 0 to 255, as a shell reports it: 128+n for signal n, 125 our failure, 126 cannot execute, 127 not found.
    pub code: u8,
    /// Why.
    pub reason: ExitReason,
    /// One sentence for a reader, where the code alone does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl Exit {
    /// Our own failure (docker's convention).
    pub const OUR_FAILURE: u8 = 125;
    /// The command exists and cannot be executed.
    pub const CANNOT_EXECUTE: u8 = 126;
    /// The command does not exist.
    pub const NOT_FOUND: u8 = 127;

    /// The process ended by itself with `code`.
    pub fn exited(code: u8) -> Self {
        Self { code, reason: ExitReason::Exited, message: None }
    }

    /// Signal `number` ended the process.
    pub fn signaled(number: u8) -> Self {
        Self { code: 128_u8.saturating_add(number), reason: ExitReason::Signaled, message: None }
    }

    /// The container never ran: `code` is 125, 126 or 127.
    pub fn start_failed(code: u8, message: impl Into<String>) -> Self {
        Self { code, reason: ExitReason::StartFailed, message: Some(message.into()) }
    }

    /// The container was lost: nobody knows how its process ended, so the code is 125 whatever happened inside.
    pub fn lost(reason: ExitReason, message: impl Into<String>) -> Self {
        Self { code: Self::OUR_FAILURE, reason, message: Some(message.into()) }
    }

    /// The kernel killed the container for memory.
    pub fn oom() -> Self {
        Self {
            code: 137,
            reason: ExitReason::Oom,
            message: Some("the container went over its memory limit".to_owned()),
        }
    }
}
