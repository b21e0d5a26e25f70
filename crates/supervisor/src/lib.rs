//! One container's life: its root file system, its streams and log, its runtime, its exit.
//!
//! A supervisor is a process of its own (`beta9-worker supervise DIR`), so that a worker can be killed, upgraded or
//! crash and lose nothing. It talks to the world through files in the container's directory and one socket:
//!
//! ```text
//! <root>/containers/<id>/
//!   record.json       what was asked for and what it became; written once by the worker
//!   config.json       the OCI runtime spec, before the runtime adapts it
//!   network.json      what there is of its network, written before it is made
//!   state.json        where the container is in its life; replaced atomically by the supervisor
//!   log               stdout and stderr, one entry per line or piece, in the CRI log format
//!   log.<position>    the same, what came before; the oldest are thrown away
//!   supervisor.lock   held for as long as the supervisor lives: the proof that it does
//!   supervisor.sock   signals, stop, streams, more processes, and state changes
//!   supervisor.log    what the supervisor itself has to say
//!   lending lender.sock   while the files of a container that does not run are lent out
//!   upper/ work/ layer/ layer.ext4 rootfs/ scratch.ext4   the writable layer
//! ```
//!
//! ```text
//! start ─▶ lock, socket ─▶ rootfs ─▶ runtime.create ─▶ runtime.start ─▶ running ─▶ verdict ─▶ delete ─▶ exited, cleaned
//!             └──────────────── any failure, stop or signal ───────────────────────┴▶ undo ─▶ exited, cleaned
//! ```
//!
//! A verdict is written before the clean-up and announced after it: whoever reads `exited` from the socket knows that
//! nothing of the container is left, and a supervisor that dies in between loses no exit code.
//!
//! The container never waits for a client: output goes to the log, and clients read the log at their own pace.

mod attach;
mod client;
mod directory;
mod error;
mod exec;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzzing;
mod lend;
mod life;
mod lock;
mod log;
mod network;
mod operate;
mod protocol;
mod record;
mod recover;
mod restart;
mod rootfs;
mod runtimes;
mod server;
mod stdio;
mod stopped;
mod volumes;

pub use client::{CopyStream, ExecFailure, SessionInput, SessionOutput, Supervisor, Updates};
pub use directory::ContainerDirectory;
pub use error::{Error, ErrorKind, Result};
pub use lend::end_lending;
pub use life::{Purpose, cgroup_oci_path, supervise};
pub use lock::{Liveness, await_end, liveness};
pub use log::{LogEntry, LogFiles, LogParser, Stream, timestamp};
pub use operate::{Answer, Copy, Operation, Refusal};
pub use protocol::{AttachFrom, ExecSpec, Piece, Reads, Until, Update};
pub use record::{Record, RootfsSource, StateFile};
pub use recover::{forget, needs_recovery};
pub use stopped::copy_stopped;
pub use volumes::{OwnVolumes, volumes_in_use};
