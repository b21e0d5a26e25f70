//! Volumes: directories of the worker's that containers mount and that outlive them.
//!
//! ```text
//! <root>/volumes/
//!   .lock                  shared by whoever makes a container, exclusive for who removes volumes
//!   .new-… .gone-…         on their way in and out; what a crash leaves of them goes with the next removal
//!   <name>/
//!     volume.json          what it is; its lock while it is filled
//!     pending              the container that it is being made for; gone when that has a record
//!     _data/               what is mounted
//! ```
//!
//! ```text
//! absent ──create──▶ empty ──fill: what an image has there──▶ filled ──remove, prune──▶ absent
//!                      └──────────────────────────────────────────────────▶
//! ```
//!
//! A volume appears and disappears whole, by a rename, and so does what it is filled with. What is refused: removing one
//! that a container on record has, whether or not that runs.

mod copy;
mod error;
mod lock;
mod volume;

pub use error::{Error, ErrorKind, Result};
pub use lock::Hold;
pub use volume::{ImageContent, InUse, NewVolume, Unused, Volume, Volumes};
