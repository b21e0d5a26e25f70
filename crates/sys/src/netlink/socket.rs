use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

use super::message::{Message, attributes, text};
use crate::error::Explained;
use crate::{Error, Result};

/// The kernel answers while the request is being sent; only one that is stuck does not.
const DEADLINE: Duration = Duration::from_secs(10);
/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// The kernel cuts lists into pieces of at most this size.
const BUFFER: usize = 64 << 10;
/// More pieces than any list of a namespace's links, addresses, routes or connections has.
const MAX_PIECES: usize = 1 << 16;

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
/// `NLM_F_CREATE | NLM_F_EXCL`.
pub(super) const CREATE: u16 = 0x600;
/// `NLM_F_CREATE | NLM_F_REPLACE`.
pub(super) const REPLACE: u16 = 0x500;
/// The error carries attributes (`NLM_F_ACK_TLVS`), after a copy of the request's header alone (`NLM_F_CAPPED`).
const ACK_TLVS: u16 = 0x200;
const CAPPED: u16 = 0x100;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `NLMSGERR_ATTR_MSG`: what was wrong, in words.
const ERROR_TEXT: u16 = 1;

/// A connection to the kernel's side of one network namespace.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

/// One message of an answer.
pub(super) struct Answer {
    pub(super) kind: u16,
    pub(super) body: Vec<u8>,
}

impl Socket {
    /// Opens one for the namespace that this thread is in.
    pub fn open() -> Result<Self> {
        Self::open_to(None)
    }

    /// The same to another part of the kernel than the one for links, addresses and routes.
    pub(super) fn open_to(part: Option<Protocol>) -> Result<Self> {
        let failed = |e: io::Error| Error::new("open a netlink socket", e);
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, part)
            .map_err(|e| failed(e.into()))?;
        set_socket_timeout(&fd, Timeout::Recv, Some(DEADLINE)).map_err(|e| failed(e.into()))?;
        // Better errors; kernels that do not know an option go without.
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            enable(&fd, option);
        }
        Ok(Self { fd, sequence: 0 })
    }

    /// Has the kernel do something; `operation` continues "cannot" in the error.
    pub fn request(&mut self, operation: &'static str, message: &Message) -> Result<()> {
        self.ask(message, ACK).map(drop).map_err(|e| Error::new(operation, e))
    }

    /// Asks for one thing.
    pub(super) fn get(&mut self, operation: &'static str, message: &Message) -> Result<Option<Answer>> {
        let answers = self.ask(message, ACK).map_err(|e| Error::new(operation, e))?;
        Ok(answers.into_iter().next())
    }

    /// Asks for everything of a kind.
    pub(super) fn list(&mut self, operation: &'static str, message: &Message) -> Result<Vec<Answer>> {
        self.ask(message, DUMP).map_err(|e| Error::new(operation, e))
    }

    /// The same for what there may be very many of: each is looked at once, and none is kept.
    pub(super) fn look_through(
        &mut self,
        operation: &'static str,
        message: &Message,
        mut each: impl FnMut(&[u8]),
    ) -> Result<()> {
        let asked = self.say(message, DUMP).and_then(|()| self.answers(|_, body| each(body)));
        asked.map_err(|e| Error::new(operation, e))
    }

    fn ask(&mut self, message: &Message, flags: u16) -> io::Result<Vec<Answer>> {
        self.say(message, flags)?;
        let mut answers = Vec::new();
        self.answers(|kind, body| answers.push(Answer { kind, body: body.to_vec() }))?;
        Ok(answers)
    }

    fn say(&mut self, message: &Message, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = HEADER + message.body.len();
        let mut bytes = Vec::with_capacity(length);
        bytes.extend_from_slice(&u32::try_from(length).map_err(io::Error::other)?.to_ne_bytes());
        bytes.extend_from_slice(&message.kind.to_ne_bytes());
        bytes.extend_from_slice(&(message.flags | flags | REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&self.sequence.to_ne_bytes());
        // The port; the kernel fills it in.
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&message.body);
        // A socket that was never connected sends to the kernel.
        send(&self.fd, &bytes, SendFlags::empty())?;
        Ok(())
    }

    /// Reads up to the end of the answer to the latest request; what is left of an earlier one is passed over.
    fn answers(&self, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        for _ in 0..MAX_PIECES {
            let (count, _) = match recv(&self.fd, buffer.as_mut_slice(), RecvFlags::empty()) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::AGAIN) => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel did not answer"));
                }
                received => received?,
            };
            for piece in messages(&buffer[..count]) {
                if piece.sequence != self.sequence {
                    continue;
                }
                match piece.kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        return match errno(piece.body) {
                            0 => Ok(()),
                            number => Err(explained(number, piece.flags, piece.body)),
                        };
                    }
                    kind => each(kind, piece.body),
                }
            }
        }
        Err(io::Error::other("the kernel's answer has no end"))
    }
}

pub(super) struct Piece<'a> {
    pub(super) kind: u16,
    flags: u16,
    sequence: u32,
    pub(super) body: &'a [u8],
}

/// The messages in what was received. One that is cut off or impossible ends them.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Piece<'_>> {
    let short = |bytes: &[u8], at: usize| Some(u16::from_ne_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let body = bytes.get(HEADER..length)?;
        let sequence = u32::from_ne_bytes(*bytes.get(8..)?.first_chunk()?);
        let piece = Piece { kind: short(bytes, 4)?, flags: short(bytes, 6)?, sequence, body };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(piece)
    })
}

/// The errno of an error message, positive; 0 is an acknowledgement.
fn errno(body: &[u8]) -> i32 {
    body.first_chunk().map_or(libc::EIO, |bytes| -i32::from_ne_bytes(*bytes))
}

/// The error with the kernel's words for it, if it has any. The number stays what the error is known by.
fn explained(number: i32, flags: u16, body: &[u8]) -> io::Error {
    let error = io::Error::from_raw_os_error(number);
    if flags & ACK_TLVS == 0 {
        return error;
    }
    let request = match body.get(4..).and_then(|rest| rest.first_chunk()) {
        Some(length) if flags & CAPPED == 0 => u32::from_ne_bytes(*length) as usize,
        _ => HEADER,
    };
    let rest = body.get(4 + request.next_multiple_of(4)..).unwrap_or_default();
    match attributes(rest).find(|(kind, _)| *kind == ERROR_TEXT) {
        Some((_, words)) => {
            // What callers tell apart is the kind; the words are for a reader.
            io::Error::new(error.kind(), Explained { number, words: text(words) })
        }
        None => error,
    }
}

fn enable(fd: &OwnedFd, option: libc::c_int) {
    let on: libc::c_int = 1;
    // SAFETY: the value lives through the call and the length is its own.
    unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const on).cast(),
            size_of_val(&on) as u32,
        )
    };
}
