//! Registries: pulling images into the store, pushing them out of it, and docker's credentials.
//!
//! ```text
//! name ──mirrors, then the registry──▶ index ──platform──▶ manifest ─▶ configuration ─▶ layers, three at a time
//!                                                                          │               │ each resumed where it broke
//!                                                              beta9_image::Ingest: verified by digest and size
//! ```
//!
//! [`Registries::pull`] gives an image its name only when all of it is in the store; what was fetched until an
//! interruption stays for the next attempt. [`Registries::push`] uploads what the registry has not.
//! [`DockerConfig`] finds and keeps credentials where docker does, credential helpers included.
//!
//! A registry is not trusted. Refused: content that is not what its digest or size says, answers larger than their caps,
//! answers slower than [`Waits::idle`] allows, manifests that can be read in two ways, and addresses that a registry sends
//! us to unless they are reached by https (by HTTP only where the registry itself is) and are no nearer to this machine
//! than the registry is. Credentials and tokens go to the registry they are for, and to its token service.

mod auth;
mod credentials;
mod docker_config;
mod error;
mod manifest;
mod progress;
mod pull;
mod push;
mod reach;
mod registries;
mod tls;
mod transport;

pub use credentials::{Credentials, Secret};
pub use docker_config::{DockerConfig, Kept};
pub use error::{Error, ErrorKind, Result};
pub use progress::{Status, Transfer, Watch};
pub use pull::Pull;
pub use push::Push;
pub use registries::Registries;
pub use transport::Waits;
