//! One guest's FUSE connection: requests in, replies out.
//!
//! ```text
//! reader ──bounded queue──▶ 4 workers ──▶ one lock ──▶ connection
//! ```
//!
//! Every request begins with the kernel's `fuse_in_header`, whose first field is its length; that and the names in
//! it are checked before the file system sees it. A reply begins with its own length. Replies are collected in
//! a memory file first, so that those of different workers do not mix.

use std::fs::File;
use std::io::{ErrorKind as IoErrorKind, Read, Seek, SeekFrom, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use beta9_runtime::{Error, ErrorKind, Result};
use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::{FuseBuf, FuseDevWriter, Reader, Writer};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;

use super::calls;
use super::exports::Exports;

/// A slow operation stalls one worker.
const WORKERS: usize = 4;
/// Requests read ahead of the workers.
const QUEUE: usize = 8;
/// `struct fuse_in_header` (linux/fuse.h).
const HEADER: usize = 40;
/// The largest write, with its headers.
const MAX_MESSAGE: usize = (1 << 20) + 4096;
/// `FUSE_LOOKUP` and `FUSE_INIT` (linux/fuse.h).
const LOOKUP: u32 = 1;
const INIT: u32 = 26;
/// `FUSE_FORGET`, `FUSE_INTERRUPT` and `FUSE_BATCH_FORGET`: nobody waits for an answer.
const UNANSWERED: [u32; 3] = [2, 36, 42];

/// Serves until the guest's connection ends.
pub(super) fn run(exports: Exports, connection: &UnixStream) -> Result<()> {
    let server = Server::new(exports);
    let (requests, queue) = sync_channel(QUEUE);
    let (queue, replies) = (Mutex::new(queue), Mutex::new(connection));
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(|| work(&server, &queue, &replies))).collect();
        let read = calls::allow_serving().and_then(|()| read_requests(connection, requests));
        // The workers end when the queue does; the guest's connection decides when that is.
        let worked = workers.into_iter().map(|worker| {
            worker
                .join()
                .unwrap_or_else(|_| Err(Error::new(ErrorKind::Failed, "a file server's thread panicked")))
        });
        worked.fold(read, Result::and)
    })
}

/// Reads whole requests until the connection ends between two. The first must begin, and no other may.
fn read_requests(mut connection: &UnixStream, requests: SyncSender<Vec<u8>>) -> Result<()> {
    let mut has_begun = false;
    loop {
        let mut header = [0; HEADER];
        match connection.read_exact(&mut header) {
            Ok(()) => {}
            Err(e) if e.kind() == IoErrorKind::UnexpectedEof || e.kind() == IoErrorKind::ConnectionReset => {
                return Ok(());
            }
            Err(e) => return Err(Error::caused(ErrorKind::Failed, "read from the guest", e)),
        }
        let length = field(&header, 0) as usize;
        if !(HEADER..=MAX_MESSAGE).contains(&length) {
            let text = format!("the guest broke the protocol: a file request of {length} bytes");
            return Err(Error::new(ErrorKind::Failed, text));
        }
        let mut request = vec![0; length];
        request[..HEADER].copy_from_slice(&header);
        connection
            .read_exact(&mut request[HEADER..])
            .map_err(|e| Error::caused(ErrorKind::Failed, "read from the guest", e))?;
        let broken =
            |text: &str| Error::new(ErrorKind::Failed, format!("the guest broke the protocol: {text}"));
        if (field(&request, 4) == INIT) == has_begun {
            return Err(broken("it began twice, or not at all"));
        }
        has_begun = true;
        if climbs(&request) {
            return Err(broken("it looked up a name that leads upward"));
        }
        if requests.send(request).is_err() {
            return Ok(());
        }
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
    queue: &Mutex<Receiver<Vec<u8>>>,
    replies: &Mutex<&UnixStream>,
) -> Result<()> {
    let failed = |e| Error::caused(ErrorKind::Failed, "answer the guest", e);
    let reply = memfd_create(c"reply", MemfdFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
    let mut reply = File::from(reply);
    let mut scratch = vec![0; MAX_MESSAGE];
    let mut outgoing = Vec::new();
    calls::allow_serving()?;
    loop {
        let request = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(mut request) = request else { return Ok(()) };
        reply.rewind().map_err(failed)?;
        let is_understood = answer(server, &mut request, &reply, &mut scratch);
        let length = reply.stream_position().map_err(failed)?;
        outgoing.clear();
        if length > 0 {
            reply.seek(SeekFrom::Start(0)).map_err(failed)?;
            (&reply).take(length).read_to_end(&mut outgoing).map_err(failed)?;
        } else if !is_understood && !UNANSWERED.contains(&field(&request, 4)) {
            // Whoever sent it waits for an answer.
            outgoing.extend_from_slice(&not_understood(&request));
        } else {
            continue;
        }
        let mut connection = replies.lock().unwrap_or_else(PoisonError::into_inner);
        if connection.write_all(&outgoing).is_err() {
            // The guest is gone; the reader sees it too, once there is room for what it has read.
            let _ = connection.shutdown(Shutdown::Both);
            drop(connection);
            while queue.lock().unwrap_or_else(PoisonError::into_inner).recv().is_ok() {}
            return Ok(());
        }
    }
}

/// Whether the request could be understood. What could not is answered with an error by the library, or not at all.
fn answer(server: &Server<Exports>, request: &mut [u8], reply: &File, scratch: &mut [u8]) -> bool {
    let Ok(reader) = Reader::<()>::from_fuse_buffer(FuseBuf::new(request)) else { return false };
    let Ok(writer) = FuseDevWriter::<()>::new(reply.as_raw_fd(), scratch) else { return false };
    server.handle_message(reader, Writer::from(writer), None, None).is_ok()
}

/// `struct fuse_out_header` with EIO.
fn not_understood(request: &[u8]) -> [u8; 16] {
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
            let (requests, _queue) = sync_channel(8);
            let error = read_requests(&host, requests).unwrap_err();
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
            let error = read_requests(&host, sync_channel(1).0).unwrap_err();
            assert!(error.to_string().contains(&format!("{length} bytes")), "{error}");
        }
    }
}
