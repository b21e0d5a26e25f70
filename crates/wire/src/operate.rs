use beta9_types::{ContainerId, CopyIn, CopyOut, LimitChange, ProcessInfo, Usage};
use serde::{Deserialize, Serialize};

/// Something to do with a running container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Freeze every process.
    Pause,
    /// Let frozen processes go on.
    Resume,
    /// Say what it uses.
    Usage,
    /// List its processes.
    Processes,
    /// Change its limits.
    Update(LimitChange),
    /// Open a copy connection and send an archive by it.
    CopyOut(CopyOut),
    /// Open a copy connection and unpack the archive that comes by it.
    CopyIn(CopyIn),
}

/// How an operation went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Done, and there is nothing to say.
    Done,
    /// The answer to `Usage`.
    Usage(Usage),
    /// The answer to `Processes`: as many as fit into a frame.
    Processes(Vec<ProcessInfo>),
    /// It failed.
    Failed(OperationFailure),
}

/// Why an operation failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationFailure {
    /// Whether something that was named does not exist.
    pub is_missing: bool,
    /// One sentence: what was tried and what went wrong.
    pub message: String,
}

/// The first frame of a copy connection, from the guest. Data frames and one [`StreamControl::End`] follow, from the
/// guest for `CopyOut` and from the host for `CopyIn`; the receiver answers [`StreamControl::EndAck`]. How it went is said
/// on the control connection.
///
/// [`StreamControl::End`]: crate::StreamControl::End
/// [`StreamControl::EndAck`]: crate::StreamControl::EndAck
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyOpen {
    /// Whose files.
    pub container: ContainerId,
    /// The operation's number.
    pub operation: u32,
}
