use beta9_types::{ContainerId, ExecId};
use serde::{Deserialize, Serialize};

/// Which stream of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum StreamKind {
    /// Host to guest.
    Stdin,
    /// Guest to host.
    Stdout,
    /// Guest to host.
    Stderr,
}

/// The first frame of a stream connection, from the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamOpen {
    /// Whose stream.
    pub container: ContainerId,
    /// Which process; absent for the main one.
    pub exec: Option<ExecId>,
    /// Which stream.
    pub stream: StreamKind,
}

/// The first frame of a share connection, from the guest. Raw FUSE messages follow, each with the kernel's own
/// header: requests (`fuse_in_header`) to the host, replies (`fuse_out_header`) to the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareOpen {
    /// Whose mounts.
    pub container: ContainerId,
}

/// The frames beside data on a stream connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamControl {
    /// The sender has nothing more to say; it sent this many bytes in all.
    End {
        /// Bytes of all data frames before this one.
        total: u64,
    },
    /// The receiver has everything up to `End` and passed it on. Only now may the sender close.
    EndAck,
    /// The receiver will take no more (the process closed its stdin). The sender stops.
    Refused,
}
