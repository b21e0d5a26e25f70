//! The worker's configuration: a YAML file, one environment variable, and defaults for the rest.
//!
//! [`Config`] holds every pool with its runtime and settings, each value together with the [`Source`] it came from.
//! [`Selection`] is the rule that turns what a pool asks for into what it gets, and [`messages`] says so in the log.
//!
//! What it refuses: a key or a value it does not know, a key given twice or in two spellings, a value of the wrong type
//! or out of range, a file larger than 1 MiB, aliases that expand beyond reason. Every refusal is one sentence with the
//! key's path, the file, the line and what is allowed. Nothing is corrected silently: a typing error in
//! `container_runtime` would otherwise run untrusted code with less isolation than asked.
//!
//! The crate reads files and nothing else of the outside world; the environment is handed in.

mod config;
mod error;
mod file;
pub mod messages;
mod near;
mod network;
mod node;
mod pool;
mod reader;
mod registries;
mod select;
mod settings;
mod show;
mod size;
mod warning;

pub use config::Config;
pub use error::{Error, ErrorKind, Position, Result};
pub use pool::{Pool, Source};
pub use select::{Attempt, Selection, Step};
pub use warning::Warning;
