//! The kernel's interfaces that `std` and `rustix` do not cover safely, each behind a safe function.
//!
//! This is the only crate in which `unsafe` is allowed. Each block holds one operation, says why it is sound,
//! and is reached by a test. Nothing here knows what a container is.

#![allow(unsafe_code)]

pub mod cgroup;
pub mod command;
pub mod loop_device;
pub mod machine;
pub mod namespaces;
pub mod netlink;
pub mod passing;
pub mod processes;
pub mod processor;
pub mod program;
pub mod reaper;
pub mod seccomp;
pub mod signalfd;
pub mod signals;
pub mod tap;
pub mod vsock;

mod error;

pub use error::{Error, Result};
