//! What the project's tests stand on. Nothing here runs in production.
//!
//! - [`stories`]: what a container must do, written once and run on every runtime.
//! - [`faults`]: what survives when a process of the worker is killed or a runtime is missing.
//! - [`leak`]: what is on the machine that was not there before.
//!
//! Stories and faults drive the real `beta9-worker` program through its command line, as a user does, on a state
//! directory of their own ([`Site`]).

pub mod exclusions;
pub mod faults;
pub mod leak;
pub mod stories;
pub mod suite;

mod error;
mod processes;
mod program;
mod screen;
mod site;
mod world;

pub use error::{Error, Result};
pub use program::{Finished, Invocation, Running};
pub use screen::Screen;
pub use site::{Availability, Site, SiteWatch};
pub use world::{Container, World};
