//! rtnetlink(7): links, addresses, routes and queueing disciplines of one network namespace; and the connections that its
//! kernel tracks.
//!
//! A [`Socket`] belongs to the namespace in which its thread was when it was opened, and may be used from anywhere after
//! that. Requests are made one at a time, each is answered, and each answer has a deadline. The guest's init uses the same
//! code as the host: it is small, synchronous and has no dependencies.

mod message;
mod socket;

pub mod connections;
pub mod events;
pub mod filter;
pub mod link;
pub mod route;

pub use message::{Attributes, Message};
pub use socket::Socket;

/// Bytes in the order of the machine: what netlink's headers are made of.
pub(crate) fn native(value: u32) -> [u8; 4] {
    value.to_ne_bytes()
}

#[cfg(test)]
mod tests;
