//! `beta9-worker`: runs OCI containers in runc, gVisor, Firecracker or QEMU.
//!
//! ```text
//! cli      what a user types              ─┐
//! client   a worker, found or hosted here  ├─ speak only `api`, the gRPC service
//! service  what a worker does             ─┘
//!    ├─ pools     which runtime a request gets, decided once per pool
//!    ├─ runtimes  whether a runtime works here
//!    ├─ guest     the init of VMs, carried in this program
//!    └─ spec      image and request → OCI runtime spec
//! ```
//!
//! The same program is also each container's supervisor, its file server and the prober of VMs, by hidden commands.

mod api;
mod cli;
mod client;
mod detach_keys;
mod error;
mod guest;
mod metrics;
mod mounts;
mod point_in_time;
mod pools;
mod runtimes;
mod service;
mod spec;
mod terminal;
mod tty;

fn main() -> std::process::ExitCode {
    cli::main()
}
