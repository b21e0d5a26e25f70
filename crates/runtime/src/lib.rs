//! What every way of isolating a container promises, and the errors they share. No implementation.
//!
//! A runtime is driven by one supervisor for one container:
//!
//! ```text
//! prepare(spec) ─▶ create(request) ─▶ Box<dyn Container> ─▶ start ─▶ exit ─▶ delete
//!                      └── on failure it has undone its own steps
//! ```
//!
//! When a supervisor is lost, `clean` takes away what is left, by id alone.

mod capabilities;
mod container;
mod error;
mod operations;
mod process;

pub use capabilities::Capabilities;
pub use container::{
    Container, ContainerStdio, CreateRequest, Marks, Rootfs, RootfsForm, Runtime, SignalTarget, Signals,
    find_program,
};
pub use error::{Error, ErrorKind, Result};
pub use operations::Operations;
pub use process::{ExecRequest, Execution, Processes};
