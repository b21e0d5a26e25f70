//! One container's name server: on the gateway's address, at a port of its own to which the container's questions to port 53
//! are redirected. It lives in the container's supervisor, and so as long as the container does.
//!
//! ```text
//! question ─▶ whose name is it? ── a container's of this worker ──▶ its addresses
//!                 └─ anybody's ──▶ may it be asked for? ──▶ the host's name servers ──▶ its addresses are let through ──▶ answer
//!                                       └─ no ──▶ there is no such name
//! ```
//!
//! Where the container may talk to everybody every question is passed on. Where it may talk to few, a name is asked for
//! only if it is among them, or of a server that is among them: else the names would be a way out. A container that may talk to
//! nobody reaches no name server either.
//!
//! What it does for a container is limited: questions per second, questions that wait, connections, bytes, time. It knows the
//! container by the address that the rules let nobody else use.

mod judge;
mod message;
mod service;
mod upstream;

pub use service::{Answering, Bound, Source};

#[cfg(test)]
mod tests;
