//! Copying files between a tar stream and a tree, `cp`'s two ends.
//!
//! The tree may be a container's, changed by its processes while it is copied, and the stream may come from a container.
//! So (CVE-2018-15664, CVE-2019-14271):
//!
//! - a path is only ever resolved by the kernel below the tree's root (`openat2`): a container's with `RESOLVE_IN_ROOT`,
//!   in which its own links mean what they mean to it; a user's destination with `RESOLVE_BENEATH` and no links at all;
//! - a file is opened without being opened for reading first; only what turns out to be a regular file or a directory is,
//!   by the descriptor that was looked at;
//! - what is unpacked replaces what was there by name and never writes through it;
//! - nothing of the tree is executed or loaded; devices, sockets and pipes are neither read nor made.
//!
//! ```text
//! pack     tree ──▶ tar     names begin with the file's own name, or with `.` for what is in a directory
//! unpack   tar ──▶ tree     docker's rule decides from the first entry what the destination is
//! ```

mod error;
mod pack;
mod path;
mod tree;
mod unpack;

#[cfg(test)]
mod tests;

pub use error::{Error, ErrorKind, Result};
pub use pack::pack;
pub use tree::{Links, Tree};
pub use unpack::{Owner, Unpacking, content, unpack};
