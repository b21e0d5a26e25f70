//! What the project's tests stand on. Nothing here runs in production.

pub mod leak;

mod error;

pub use error::{Error, Result};
