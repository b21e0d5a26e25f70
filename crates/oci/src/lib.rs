//! The runtimes that are OCI programs: `runc` (crun has the same command line) and gVisor's `runsc`.
//!
//! Both are driven through the same few subcommands, and both leave the container's process as an orphan that this
//! process, a child subreaper, inherits:
//!
//! ```text
//! create ──▶ pid file ──▶ the reaper adopts that pid ──▶ start ──▶ its exit is the verdict ──▶ delete --force
//! ```
//!
//! For runc the adopted process is the container's init. For gVisor it is the sandbox, which ends with the exit code
//! of the container's main process (128+n for a signal). `runsc wait` is not used: a container that ends before
//! the waiting program is up answers "exit status is unavailable".
//!
//! The container's output never mixes with the program's own messages: those are read from its `--log` file.

mod container;
mod disks;
mod exec;
mod gvisor;
mod operations;
mod overlay;
mod program;
mod runc;
mod terminal;

pub use gvisor::{GVISOR_CAPABILITIES, Gvisor};
pub use overlay::mount_volumes;
pub use runc::{RUNC_CAPABILITIES, Runc};
