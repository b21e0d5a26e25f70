//! Images on disk: everything that turns a file into a root file system, each made exactly once.
//!
//! ```text
//! network ─ingest─▶
//! file ──import──▶ blobs, verified ──tree──▶ unpacked tree ──block──▶ read-only block image
//!                  (named in the index)      (OCI runtimes)           (every VM shares it)
//!                                            empty ext4 ──create_scratch──▶ writable disk of one VM
//! ```
//!
//! A [`Store`] holds content by its digest, so equal images share their blobs, trees and block images under any
//! number of names. Something unfinished lives in a directory of its own, and is complete when it is renamed to its
//! place: a killed process leaves nothing half-made where others look. Builders of the same thing wait for each other.
//!
//! Refused: whatever does not have its announced digest, images for other machines, and layers that break the rules
//! of [`Limits`] or try to reach out of their root (see the `apply` module). Nothing is fetched from
//! a network here: whoever does that hands the bytes over, to an [`Ingest`].

mod ahead;
mod apply;
mod blobs;
mod block;
mod compression;
mod error;
mod export;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod image;
mod index;
mod ingest;
mod layout;
mod lock;
mod merge;
mod progress;
mod prune;
mod remove;
pub mod scratch;
mod source;
mod squashfs;
mod store;
mod tap;
mod tool;

pub use apply::Limits;
pub use block::{BlockFormat, BlockImage};
pub use error::{Error, ErrorKind, Result};
pub use export::ExportFormat;
pub use image::{Documents, Image, Layer};
pub use ingest::{Ingest, Partial, Plan, Wanted};
pub use progress::{Progress, Step};
pub use prune::{InUse, Lease, Pruned, Unused};
pub use store::Store;
