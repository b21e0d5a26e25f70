//! FUSE messages between `/dev/fuse` and the host's file server, each in one piece.
//!
//! ```text
//! kernel ──read──▶ request, 1 at a time ──▶ host
//! kernel ◀─write── replies, as they get whole ◀── host
//! ```
//!
//! Nothing is interpreted but how long a message is and how long its answer may get. It takes one thread, and takes no request
//! whose answer might find no room.
//!
//! Both are for the sake of vsock's credit. Each packet says how much its sender has taken so far, and what is said in two
//! threads at once may be sent in the wrong order. A peer that goes by the earlier word in the end counts more room than
//! there is, because its subtraction wraps; it sends all it has, and the kernel ends the connection for it. So replies and
//! requests do not have threads of their own, and the peer never comes to the end of its credit, when the kernel would
//! answer for this thread.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::Shutdown;

use super::spawn;
use crate::report;

/// The largest FUSE message: a write or read of 1 MiB, and room for its headers.
const MAX_MESSAGE: usize = (1 << 20) + 4096;
/// `struct fuse_out_header`: length, error, unique.
const OUT_HEADER: usize = 16;
/// What may wait in the connection for this reader.
pub(super) const ROOM: u64 = 4 << 20;
/// The longest that the answers to all requests under way may get. Each request tells the peer what was taken until then, so
/// at most this much of the room looks taken to it.
const MOST_AWAITED: usize = 3 << 20;

/// Every file that this kernel knows costs the host's file server a descriptor and memory. So when there are many, it is
/// told to forget those that nobody uses; how many there are is looked at once in so many requests.
const MOST_FILES: u64 = 16_384;
const FORGET_EVERY: u32 = 512;

/// What is under way between the two.
pub(super) struct Relay {
    device: File,
    host: File,
    /// A request, of which the host has taken the first `sent` bytes.
    request: Vec<u8>,
    sent: usize,
    length: usize,
    /// The first `filled` bytes are replies, the last of them perhaps in part.
    replies: Vec<u8>,
    filled: usize,
    /// How long the answer to each request under way may get, by the request's number.
    awaited: HashMap<u64, usize>,
    passed: u32,
}

/// Whether there will be more to relay.
#[derive(Debug, PartialEq, Eq)]
enum Relayed {
    Going,
    Over,
}

impl Relay {
    pub(super) fn new(device: File, host: File) -> Self {
        let (request, replies) = (vec![0; MAX_MESSAGE], vec![0; MAX_MESSAGE]);
        Self {
            device,
            host,
            request,
            sent: 0,
            length: 0,
            replies,
            filled: 0,
            awaited: HashMap::new(),
            passed: 0,
        }
    }

    /// Relays until the share is unmounted, the host closes it, or the host breaks the protocol.
    pub(super) fn run(mut self) {
        loop {
            match self.turn() {
                Ok(Relayed::Going) => {}
                Ok(Relayed::Over) => break,
                Err(error) => {
                    report::warn(&format!("share: {error}"));
                    break;
                }
            }
        }
        // With this goes the last use of the device: every process in the share gets an error.
        let _ = rustix::net::shutdown(&self.host, Shutdown::Both);
    }

    /// Waits until something can be passed on, and passes it on.
    fn turn(&mut self) -> io::Result<Relayed> {
        let is_pending = self.sent < self.length;
        let of_host = if is_pending { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let has_room = self.awaited.values().sum::<usize>() + MAX_MESSAGE <= MOST_AWAITED;
        // The kernel keeps the next until then.
        let of_device = if is_pending || !has_room { PollFlags::empty() } else { PollFlags::IN };
        let mut ready = [
            PollFd::from_borrowed_fd(self.host.as_fd(), of_host | PollFlags::RDHUP),
            PollFd::from_borrowed_fd(self.device.as_fd(), of_device),
        ];
        match poll(&mut ready, None) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Relayed::Going),
            Err(error) => return Err(error.into()),
        }
        let (host, device) = (ready[0].revents(), ready[1].revents());
        // Everything but room to send: what the host said before it closed counts, and then its close does.
        if !host.difference(PollFlags::OUT).is_empty() && self.take_replies()? == Relayed::Over {
            return Ok(Relayed::Over);
        }
        if is_pending && host.contains(PollFlags::OUT) {
            return self.send();
        }
        if !device.is_empty() {
            return self.take_request();
        }
        Ok(Relayed::Going)
    }

    /// The kernel gives exactly one message for one read.
    fn take_request(&mut self) -> io::Result<Relayed> {
        match self.device.read(&mut self.request) {
            Ok(length) => {
                (self.sent, self.length) = (0, length);
                if let Some((number, answer)) = awaited(&self.request[..length]) {
                    self.awaited.insert(number, answer);
                }
            }
            Err(error) => {
                return match Errno::from_io_error(&error) {
                    // ENOENT: the request was taken back before it was read.
                    Some(Errno::INTR | Errno::NOENT | Errno::AGAIN) => Ok(Relayed::Going),
                    Some(Errno::NODEV) => Ok(Relayed::Over),
                    _ => Err(error),
                };
            }
        }
        self.passed = self.passed.wrapping_add(1);
        if self.passed.is_multiple_of(FORGET_EVERY) {
            forget_files();
        }
        self.send()
    }

    fn send(&mut self) -> io::Result<Relayed> {
        match self.host.write(&self.request[self.sent..self.length]) {
            Ok(length) => self.sent += length,
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::INTR | Errno::AGAIN) => {}
                Some(Errno::PIPE | Errno::CONNRESET) => return Ok(Relayed::Over),
                _ => return Err(error),
            },
        }
        Ok(Relayed::Going)
    }

    /// Takes what has arrived, and passes on what is whole.
    fn take_replies(&mut self) -> io::Result<Relayed> {
        match self.host.read(&mut self.replies[self.filled..]) {
            Ok(0) => return Ok(Relayed::Over),
            Ok(length) => self.filled += length,
            Err(error) => {
                return match Errno::from_io_error(&error) {
                    Some(Errno::INTR | Errno::AGAIN) => Ok(Relayed::Going),
                    _ => Err(error),
                };
            }
        }
        let mut passed = 0;
        while let Some(length) = next_reply(&self.replies[passed..self.filled])? {
            if let Some(number) = number(&self.replies[passed..], 8) {
                self.awaited.remove(&number);
            }
            match self.device.write(&self.replies[passed..passed + length]) {
                Ok(_) => {}
                // The request was interrupted and nobody waits for its reply.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => {}
                Err(error) if Errno::from_io_error(&error) == Some(Errno::NODEV) => return Ok(Relayed::Over),
                Err(error) => return Err(error),
            }
            passed += length;
        }
        self.replies.copy_within(passed..self.filled, 0);
        self.filled -= passed;
        Ok(Relayed::Going)
    }
}

/// The length of the reply that `bytes` begin with, once all of it is there.
fn next_reply(bytes: &[u8]) -> io::Result<Option<usize>> {
    if bytes.len() < OUT_HEADER {
        return Ok(None);
    }
    let length = message_length(bytes).ok_or_else(|| io::Error::other("a reply of impossible length"))?;
    Ok((length <= bytes.len()).then_some(length))
}

/// Has the kernel forget files that nobody uses when it knows many.
fn forget_files() {
    if !knows_many_files() || FORGETTING.swap(true, Ordering::Relaxed) {
        return;
    }
    // A thread of its own: forgetting may take an answer of the host's, which this one passes on.
    let forgetting = spawn("share-forget", || {
        const NAMES_AND_FILES: &str = "2";
        let _ = fs::write("/proc/sys/vm/drop_caches", NAMES_AND_FILES);
        FORGETTING.store(false, Ordering::Relaxed);
    });
    if forgetting.is_err() {
        FORGETTING.store(false, Ordering::Relaxed);
    }
}

/// Whether caches are being dropped (Documentation/admin-guide/sysctl/vm.rst).
static FORGETTING: AtomicBool = AtomicBool::new(false);

fn knows_many_files() -> bool {
    let count = fs::read_to_string("/proc/sys/fs/inode-nr").ok();
    let count = count.as_deref().and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
    count.is_some_and(|count| count > MOST_FILES)
}

/// The length that a reply says it has, if it can have it.
fn message_length(header: &[u8]) -> Option<usize> {
    let length = word(header, 0)? as usize;
    (OUT_HEADER..=MAX_MESSAGE).contains(&length).then_some(length)
}

/// The number of a request, and how long its answer may get, if it is answered (linux/fuse.h).
fn awaited(request: &[u8]) -> Option<(u64, usize)> {
    /// `struct fuse_in_header`.
    const HEADER: usize = 40;
    /// `FUSE_FORGET`, `FUSE_INTERRUPT` and `FUSE_BATCH_FORGET`.
    const UNANSWERED: [u32; 3] = [2, 36, 42];
    /// `FUSE_READ`, `FUSE_READDIR` and `FUSE_READDIRPLUS` say how much they want behind the file's handle and the offset.
    const READING: [u32; 3] = [15, 28, 44];
    /// `FUSE_GETXATTR` and `FUSE_LISTXATTR` say it first.
    const LISTING: [u32; 2] = [22, 23];
    /// Attributes, the target of a link.
    const OTHERS: usize = 8192;
    let operation = word(request, 4)?;
    let wanted = match operation {
        operation if UNANSWERED.contains(&operation) => return None,
        operation if READING.contains(&operation) => word(request, HEADER + 16)?,
        operation if LISTING.contains(&operation) => word(request, HEADER)?,
        _ => 0,
    };
    Some((number(request, 8)?, (wanted as usize).min(MAX_MESSAGE) + OTHERS))
}

fn word(message: &[u8], offset: usize) -> Option<u32> {
    message.get(offset..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn number(message: &[u8], offset: usize) -> Option<u64> {
    message.get(offset..)?.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_awaited_as_long_as_it_was_asked_for() {
        let request = |operation: u32, offset: usize, size: u32| {
            let mut request = vec![0; 80];
            request[4..8].copy_from_slice(&operation.to_ne_bytes());
            request[8..16].copy_from_slice(&77u64.to_ne_bytes());
            request[offset..offset + 4].copy_from_slice(&size.to_ne_bytes());
            awaited(&request)
        };
        assert_eq!(request(15, 56, 1 << 20), Some((77, (1 << 20) + 8192)), "a read");
        assert_eq!(request(44, 56, 4096), Some((77, 4096 + 8192)), "a list with attributes");
        assert_eq!(request(22, 40, 100), Some((77, 100 + 8192)), "an attribute");
        assert_eq!(request(3, 56, 1 << 20), Some((77, 8192)), "a question without a size");
        assert_eq!(request(15, 56, u32::MAX), Some((77, MAX_MESSAGE + 8192)), "more than there can be");
        assert_eq!(request(2, 56, 0), None, "what is not answered");
    }

    #[test]
    fn a_reply_that_is_too_short_or_too_long_is_refused() {
        let header = |length: usize| message_length(&(length as u32).to_ne_bytes());
        assert_eq!(header(OUT_HEADER - 1), None);
        assert_eq!(header(OUT_HEADER), Some(OUT_HEADER));
        assert_eq!(header(MAX_MESSAGE), Some(MAX_MESSAGE));
        assert_eq!(header(MAX_MESSAGE + 1), None);
        assert_eq!(message_length(&[1, 2]), None);
    }

    #[test]
    fn a_reply_counts_once_it_is_whole() {
        let reply = |length: u32| {
            let mut reply = vec![0; length as usize];
            reply[..4].copy_from_slice(&length.to_ne_bytes());
            reply
        };
        let bytes = [reply(20), reply(16)].concat();
        for part in 0..20 {
            assert_eq!(next_reply(&bytes[..part]).unwrap(), None, "{part}");
        }
        assert_eq!(next_reply(&bytes).unwrap(), Some(20));
        assert_eq!(next_reply(&bytes[20..]).unwrap(), Some(16));
        assert!(next_reply(&[0; OUT_HEADER]).is_err());
    }

    #[test]
    fn messages_pass_in_both_directions_and_in_pieces() {
        use std::os::fd::OwnedFd;
        use std::os::unix::net::{UnixDatagram, UnixStream};

        // A datagram socket gives one message for one read, as the device does.
        let (device, kernel) = UnixDatagram::pair().unwrap();
        let (host, mut server) = UnixStream::pair().unwrap();
        for end in [device.as_fd(), host.as_fd()] {
            rustix::io::ioctl_fionbio(end, true).unwrap();
        }
        let (device, host) = (File::from(OwnedFd::from(device)), File::from(OwnedFd::from(host)));
        let relay = std::thread::spawn(move || Relay::new(device, host).run());

        kernel.send(b"a request").unwrap();
        let mut request = [0; 9];
        server.read_exact(&mut request).unwrap();
        assert_eq!(&request, b"a request");

        let reply = [&24u32.to_ne_bytes()[..], &[7; 20]].concat();
        let stream = [&reply[..], &reply[..], &reply[..]].concat();
        for piece in stream.chunks(17) {
            server.write_all(piece).unwrap();
        }
        for _ in 0..3 {
            let mut passed = [0; 64];
            let length = kernel.recv(&mut passed).unwrap();
            assert_eq!(&passed[..length], &reply);
        }
        drop(server);
        relay.join().unwrap();
    }
}
