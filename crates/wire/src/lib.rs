//! The protocol between the host's supervisor and `beta9-vm-init`, the guest's PID 1.
//!
//! The guest dials the host (CID 2) on four vsock ports; the host never dials the guest:
//!
//! ```text
//! port 1024  control   one connection, both directions: Hello/Welcome, then requests and reports
//! port 1025  stream    one connection per stream of a process: StreamOpen, Data…, End ⇄ EndAck
//! port 1026  share     one connection per container: ShareOpen, then raw FUSE messages
//! port 1027  copy      one connection per copy: CopyOpen, then Data…, End ⇄ EndAck
//! ```
//!
//! Every frame is a fixed header and a body:
//!
//! ```text
//!  0        4      5        8
//! ├─length──┼─kind─┼─zeros──┼─ body: `length` bytes ─┤      length: u32 little endian, at most MAX_BODY
//! ```
//!
//! A control or stream-control body is one postcard-encoded message; a data body is the bytes themselves.
//! Firecracker's vsock has no half-close and may lose buffered bytes at a full close, so the end of a stream,
//! its length and its receipt are frames of their own, and a closed socket means nothing.
//!
//! Each stream has its own connection, so vsock's own credit is the flow control: whoever is slow stops only
//! that stream.
//!
//! Both sides treat the other as hostile: a length over the cap, an unknown kind, trailing bytes, or an id that
//! was never handed out ends the connection. Messages only ever grow at the end, behind a higher
//! [`PROTOCOL_VERSION`], because postcard does not describe itself.

mod codec;
mod control;
mod operate;
mod process;
mod stream;

pub use codec::{Error, Frame, FrameHeader, FrameKind, HEADER_LEN, MAX_BODY, MAX_DATA, decode, encode};
pub use codec::{read_frame, write_data, write_message};
pub use control::{
    FromGuest, GuestExit, GuestMark, GuestMoment, RootDisk, StartFailure, ToGuest, WritableLayer,
};
pub use operate::{CopyOpen, Operation, OperationFailure, Outcome};
pub use process::{
    Capabilities, ContainerSpec, GuestDevice, GuestMount, GuestNetwork, GuestRoute, Identity, MountSource,
    Process, Resources, Rlimit,
};
pub use stream::{ShareOpen, StreamControl, StreamKind, StreamOpen};

/// The version this build speaks. A host and a guest that differ part with a clear error.
pub const PROTOCOL_VERSION: u16 = 5;

/// vsock port of the control connection.
pub const CONTROL_PORT: u32 = 1024;
/// vsock port of the stream connections.
pub const STREAM_PORT: u32 = 1025;
/// vsock port of the file-sharing connections.
pub const SHARE_PORT: u32 = 1026;
/// vsock port of the connections that files are copied by.
pub const COPY_PORT: u32 = 1027;
