//! Containers in microVMs: Firecracker, or QEMU's `microvm` machine where Firecracker or KVM is missing.
//!
//! One VM per container, driven from the container's supervisor process:
//!
//! ```text
//!  Microvm (Runtime) ── prepare: refuse what a guest does not do
//!      │ create
//!      ├─ guest_spec   OCI spec ─▶ wire spec            sizing   limits ─▶ vCPUs, memory
//!      ├─ sandbox      binds the guest's three ports, then owns the VM: hello, create, start, exit, shutdown
//!      ├─ engine       firecracker │ qemu: starts the VM in the container's cgroup and network namespace
//!      │   └─ confine  what they see of the host
//!      └─ share        a process that serves the container's host directories to its guest
//! ```
//!
//! A container is `creating ▶ created ▶ running ▶ exited`; the sandbox's documentation has the whole picture.
//! Everything of a VM lives in `<root>/<container id>/`. After a failed start its logs stay there until
//! [`forget`] is called; otherwise nothing stays.
//!
//! Everything here runs on a current-thread tokio runtime in a process whose children belong to one
//! [`Reaper`](beta9_sys::reaper::Reaper); nothing here waits for a child in another way.

mod confine;
mod container;
mod engine;
mod guest_spec;
mod knobs;
mod operations;
mod own_program;
mod place;
mod probe;
mod runtime;
mod sandbox;
pub mod share;
mod sizing;

use std::path::Path;

use beta9_runtime::{Error, ErrorKind};

pub use confine::enter as confine;
pub use engine::firecracker::EngineCounters;
pub(crate) use own_program::OwnProgram;
pub use probe::{ProbeReport, find_jailer, jailer_flaws, probe, probe_key, probe_with};
pub use runtime::{CAPABILITIES, Microvm, engine_counters, forget};

/// A step on a file that failed.
fn failed(operation: &str, path: &Path, error: std::io::Error) -> Error {
    Error::caused(ErrorKind::Failed, format!("{operation} {}", path.display()), error)
}
