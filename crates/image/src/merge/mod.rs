//! Layers merged into one tar stream, without a tree on the disk: what a program that makes file systems reads.
//!
//! ```text
//! layers ──first reading──▶ Index: every path that is left, in memory
//! layers ──second reading─▶ one tar: directories, then files as they come, then links, in an order of its own
//! ```
//!
//! The index hears exactly what the tree's applier hears (see the `apply` module) and does the same with it, so that
//! both come out equal; a property test holds them against each other. Nothing is written to a disk but the stream,
//! and no right is needed: owners, devices and attributes are only described.
//!
//! Equal images give equal streams, byte for byte.

mod index;
mod resolve;
mod stream;
mod tar_writer;

#[cfg(test)]
mod tests;

pub(crate) use index::{Index, Indexer};
pub(crate) use stream::{Copier, Form};
pub(crate) use tar_writer::{Header, end, pad};
