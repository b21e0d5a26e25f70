//! One guest's FUSE connection: requests in, replies out.
//!
//! ```text
//! connection ──▶ one lock ──▶ 4 workers ──▶ one lock ──▶ connection
//! ```
//!
//! Whichever worker is free reads the next request and answers it itself, so that a request wakes one thread.
//! Every request begins with the kernel's `fuse_in_header`, whose first field is its length; that and the names in
//! it are checked before the file system sees it. A reply begins with its own length. Replies are collected in
//! a memory file first, so that those of different workers do not mix.

use std::fs::File;
use std::io::{BufReader, ErrorKind as IoErrorKind, Read, Seek, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

use beta9_runtime::{Error, ErrorKind, Result};
use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::{FuseBuf, FuseDevWriter, Reader, Writer};
use rustix::fs::{MemfdFlags, OFlags, memfd_create};
use rustix::io::Errno;

use super::calls;
use super::exports::Exports;

/// A slow operation stalls one worker.
const WORKERS: usize = 4;
/// Read at once: some requests for names and attributes.
const READ_AT_ONCE: usize = 4096;
/// `struct fuse_in_header` (linux/fuse.h).
const HEADER: usize = 40;
/// The largest write, with its headers.
const MAX_MESSAGE: usize = (1 << 20) + 4096;
/// As much of a request as is looked at once it is answered: the header, and what is opened how.
const ASKED: usize = HEADER + 4;
/// `FUSE_LOOKUP` and `FUSE_INIT` (linux/fuse.h).
const LOOKUP: u32 = 1;
const INIT: u32 = 26;
/// `FUSE_FORGET`, `FUSE_INTERRUPT` and `FUSE_BATCH_FORGET`: nobody waits for an answer.
const UNANSWERED: [u32; 3] = [2, 36, 42];

/// Serves until the guest's connection ends.
pub(super) fn run(exports: Exports, connection: &UnixStream) -> Result<()> {
    let server = Server::new(exports);
    let (requests, replies) = (Mutex::new(Requests::new(connection)), Mutex::new(connection));
    std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..WORKERS).map(|_| scope.spawn(|| work(&server, &requests, &replies))).collect();
        let filtered = calls::allow_serving();
        // They end when the guest's connection does.
        let worked = workers.into_iter().map(|worker| {
            worker
                .join()
                .unwrap_or_else(|_| Err(Error::new(ErrorKind::Failed, "a file server's thread panicked")))
        });
        worked.fold(filtered, Result::and)
    })
}

/// What the guest asks for. The first request must begin, and no other may.
struct Requests<'a> {
    connection: BufReader<&'a UnixStream>,
    has_begun: bool,
    is_over: bool,
}

impl<'a> Requests<'a> {
    fn new(connection: &'a UnixStream) -> Self {
        let connection = BufReader::with_capacity(READ_AT_ONCE, connection);
        Self { connection, has_begun: false, is_over: false }
    }

    /// Reads a whole request into `request`, unless the connection ends before it. After an error there are no more.
    fn read(&mut self, request: &mut Vec<u8>) -> Result<bool> {
        if self.is_over {
            return Ok(false);
        }
        let read = self.read_one(request);
        self.is_over = !matches!(read, Ok(true));
        read
    }

    fn read_one(&mut self, request: &mut Vec<u8>) -> Result<bool> {
        let mut header = [0; HEADER];
        match self.connection.read_exact(&mut header) {
            Ok(()) => {}
            Err(e) if e.kind() == IoErrorKind::UnexpectedEof || e.kind() == IoErrorKind::ConnectionReset => {
                return Ok(false);
            }
            Err(e) => return Err(Error::caused(ErrorKind::Failed, "read from the guest", e)),
        }
        let length = field(&header, 0) as usize;
        if !(HEADER..=MAX_MESSAGE).contains(&length) {
            let text = format!("the guest broke the protocol: a file request of {length} bytes");
            return Err(Error::new(ErrorKind::Failed, text));
        }
        request.resize(length, 0);
        request[..HEADER].copy_from_slice(&header);
        self.connection
            .read_exact(&mut request[HEADER..])
            .map_err(|e| Error::caused(ErrorKind::Failed, "read from the guest", e))?;
        let broken =
            |text: &str| Error::new(ErrorKind::Failed, format!("the guest broke the protocol: {text}"));
        if (field(request, 4) == INIT) == self.has_begun {
            return Err(broken("it began twice, or not at all"));
        }
        self.has_begun = true;
        if climbs(request) {
            return Err(broken("it looked up a name that leads upward"));
        }
        Ok(true)
    }
}

fn field(request: &[u8], offset: usize) -> u32 {
    request[offset..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// A guest's kernel resolves `..` itself; the file system would follow it for a lookup.
fn climbs(request: &[u8]) -> bool {
    let name = request[HEADER..].split(|byte| *byte == 0).next().unwrap_or_default();
    field(request, 4) == LOOKUP && (name == b".." || name.contains(&b'/'))
}

fn work(
    server: &Server<Exports>,
    requests: &Mutex<Requests<'_>>,
    replies: &Mutex<&UnixStream>,
) -> Result<()> {
    let failed = |e| Error::caused(ErrorKind::Failed, "answer the guest", e);
    let reply = memfd_create(c"reply", MemfdFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
    let mut reply = File::from(reply);
    let mut scratch = vec![0; MAX_MESSAGE];
    let (mut request, mut outgoing) = (Vec::new(), Vec::new());
    calls::allow_serving()?;
    loop {
        if !requests.lock().unwrap_or_else(PoisonError::into_inner).read(&mut request)? {
            return Ok(());
        }
        reply.rewind().map_err(failed)?;
        // What the library does to a request stays out of what is read of it afterwards.
        let asked: [u8; ASKED] = std::array::from_fn(|index| request.get(index).copied().unwrap_or_default());
        let is_understood = answer(server, &mut request, &reply, &mut scratch);
        let length = reply.stream_position().map_err(failed)?;
        if length > 0 {
            outgoing.resize(usize::try_from(length).unwrap_or(MAX_MESSAGE), 0);
            reply.read_exact_at(&mut outgoing, 0).map_err(failed)?;
            spare_flush(&asked, &mut outgoing);
        } else if !is_understood && !UNANSWERED.contains(&field(&asked, 4)) {
            // Whoever sent it waits for an answer.
            outgoing.clear();
            outgoing.extend_from_slice(&not_understood(&asked));
        } else {
            continue;
        }
        let mut connection = replies.lock().unwrap_or_else(PoisonError::into_inner);
        if connection.write_all(&outgoing).is_err() {
            // The guest is gone; whoever reads sees it, too.
            let _ = connection.shutdown(Shutdown::Both);
            return Ok(());
        }
    }
}

/// What is opened for reading has nothing to flush when it is closed, and its guest needs not wait for that.
fn spare_flush(asked: &[u8; ASKED], reply: &mut [u8]) {
    /// `FUSE_OPEN`, and `FOPEN_NOFLUSH` of Linux 5.16.
    const OPEN: u32 = 14;
    const NO_FLUSH: u8 = 1 << 5;
    /// Behind `struct fuse_out_header` and the handle in `struct fuse_open_out`: the flags.
    const FLAGS: usize = 24;
    let is_open = field(asked, 4) == OPEN && field(reply, 4) == 0;
    let is_reading = field(asked, HEADER) & OFlags::ACCMODE.bits() == OFlags::RDONLY.bits();
    if let Some(flags) = reply.get_mut(FLAGS).filter(|_| is_open && is_reading) {
        *flags |= NO_FLUSH;
    }
}

/// Whether the request could be understood. What could not is answered with an error by the library, or not at all.
fn answer(server: &Server<Exports>, request: &mut [u8], reply: &File, scratch: &mut [u8]) -> bool {
    let Ok(reader) = Reader::<()>::from_fuse_buffer(FuseBuf::new(request)) else { return false };
    let Ok(writer) = FuseDevWriter::<()>::new(reply.as_raw_fd(), scratch) else { return false };
    server.handle_message(reader, Writer::from(writer), None, None).is_ok()
}

/// `struct fuse_out_header` with EIO.
fn not_understood(request: &[u8; ASKED]) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&16u32.to_le_bytes());
    header[4..8].copy_from_slice(&(-Errno::IO.raw_os_error()).to_le_bytes());
    header[8..].copy_from_slice(&request[8..16]);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(opcode: u32, name: &[u8]) -> Vec<u8> {
        let mut request = vec![0; HEADER];
        request[4..8].copy_from_slice(&opcode.to_le_bytes());
        request.extend_from_slice(name);
        request
    }

    fn read_all(host: &UnixStream) -> Result<()> {
        let (mut requests, mut request) = (Requests::new(host), Vec::new());
        while requests.read(&mut request).inspect_err(|_| assert!(requests.is_over))? {}
        assert!(!requests.read(&mut request).unwrap(), "there is none after the last");
        Ok(())
    }

    #[test]
    fn only_what_is_opened_for_reading_is_spared_its_flush() {
        let flags = |opcode: u32, access: OFlags, error: i32| {
            let mut asked = [0; ASKED];
            asked[4..8].copy_from_slice(&opcode.to_le_bytes());
            asked[HEADER..].copy_from_slice(&access.bits().to_le_bytes());
            let mut reply = [0; 32];
            reply[4..8].copy_from_slice(&error.to_le_bytes());
            spare_flush(&asked, &mut reply);
            reply[24]
        };
        assert_eq!(flags(14, OFlags::RDONLY | OFlags::NOFOLLOW, 0), 32);
        for (opcode, access, error) in [
            (14, OFlags::RDWR, 0),
            (14, OFlags::WRONLY, 0),
            (14, OFlags::RDONLY, -2),
            (15, OFlags::RDONLY, 0),
        ] {
            assert_eq!(flags(opcode, access, error), 0, "{opcode} {access:?} {error}");
        }
        spare_flush(&[0; ASKED], &mut [0; 16]);
    }

    #[test]
    fn lookups_that_lead_upward_are_seen() {
        for name in [&b"..\0"[..], b"a/b\0", b"/etc\0", b"..\0x\0"] {
            assert!(climbs(&request(LOOKUP, name)), "{name:?}");
        }
        for name in [&b"a\0"[..], b"...\0", b".\0", b"\0", b""] {
            assert!(!climbs(&request(LOOKUP, name)), "{name:?}");
        }
        assert!(!climbs(&request(16, b"..\0")), "only lookups carry a name there");
    }

    #[test]
    fn a_guest_begins_once_and_first() {
        for order in [&[LOOKUP][..], &[INIT, INIT], &[INIT, 3, INIT]] {
            let (mut guest, host) = UnixStream::pair().unwrap();
            for opcode in order {
                let mut request = request(*opcode, b"");
                request[..4].copy_from_slice(&(HEADER as u32).to_le_bytes());
                guest.write_all(&request).unwrap();
            }
            drop(guest);
            let error = read_all(&host).unwrap_err();
            assert!(error.to_string().contains("began"), "{order:?}: {error}");
        }
    }

    #[test]
    fn a_request_of_a_wrong_length_ends_the_connection() {
        for length in [0u32, 39, MAX_MESSAGE as u32 + 1, u32::MAX] {
            let (mut guest, host) = UnixStream::pair().unwrap();
            let mut header = vec![0; HEADER];
            header[..4].copy_from_slice(&length.to_le_bytes());
            guest.write_all(&header).unwrap();
            let error = read_all(&host).unwrap_err();
            assert!(error.to_string().contains(&format!("{length} bytes")), "{error}");
        }
    }
}
