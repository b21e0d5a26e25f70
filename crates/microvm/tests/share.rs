//! What a hostile guest gets from the file server: its exports, an error, or a closed connection.
//!
//! The guest here is this test, speaking raw FUSE (linux/fuse.h) over the server's socket.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use beta9_sys::command::{CommandExtra, Namespace};
use beta9_types::ContainerId;
use beta9_wire::{ShareOpen, write_message};

const LOOKUP: u32 = 1;
const MKNOD: u32 = 8;
const MKDIR: u32 = 9;
const OPEN: u32 = 14;
const READ: u32 = 15;
const INIT: u32 = 26;
const ROOT: u64 = 1;

/// A server with a writable directory, a read-only directory and a file, and a connection to it.
struct Server {
    child: Child,
    connection: UnixStream,
    host: tempfile::TempDir,
    unique: u64,
}

impl Server {
    /// `None` where namespaces cannot be made.
    fn start(container: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: namespaces need root");
            return None;
        }
        let host = tempfile::tempdir().unwrap();
        for directory in ["work", "exports/rw", "exports/ro"] {
            std::fs::create_dir_all(host.path().join(directory)).unwrap();
        }
        std::fs::create_dir(host.path().join("work/share")).unwrap();
        std::fs::write(host.path().join("exports/ro/note"), "hello").unwrap();
        std::fs::write(host.path().join("exports/secret"), "secret").unwrap();
        let socket = host.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let program = std::env::current_exe().unwrap().parent().unwrap().join("../examples/share");
        let mut command = Command::new(program);
        command.args(["c1", &std::process::id().to_string()]);
        command.arg("rw").arg(host.path().join("exports/rw"));
        command.arg("ro").arg(host.path().join("exports/ro"));
        command.arg("ro").arg(host.path().join("exports/ro/note"));
        command.current_dir(host.path().join("work")).unshare(&[Namespace::Mount, Namespace::Network]);
        command.stdin(Stdio::from(std::os::fd::OwnedFd::from(listener))).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut ready = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        assert_eq!(&ready, b"ready\n");
        let mut connection = UnixStream::connect(&socket).unwrap();
        connection.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let container = ContainerId::parse(container).unwrap();
        write_message(&mut connection, &ShareOpen { container }).unwrap();
        Some(Self { child, connection, host, unique: 0 })
    }

    /// A server whose file system is mounted.
    fn mounted() -> Option<Self> {
        let mut server = Self::start("c1")?;
        let version = [7u32, 31, 1 << 17, 0].map(u32::to_le_bytes);
        server.ask(INIT, 0, version.as_flattened()).unwrap();
        Some(server)
    }

    /// One request and its reply's body, or its errno.
    fn ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        self.unique += 1;
        let mut request = Vec::new();
        request.extend((40 + body.len() as u32).to_le_bytes());
        request.extend(opcode.to_le_bytes());
        request.extend(self.unique.to_le_bytes());
        request.extend(node.to_le_bytes());
        // uid, gid, pid, and two fields that are nought.
        request.extend([0; 16]);
        request.extend(body);
        self.connection.write_all(&request).unwrap();
        let mut header = [0; 16];
        self.connection.read_exact(&mut header).unwrap();
        let length = u32::from_le_bytes(*header.first_chunk().unwrap());
        let error = i32::from_le_bytes(header[4..8].try_into().unwrap());
        assert_eq!(u64::from_le_bytes(header[8..16].try_into().unwrap()), self.unique);
        let mut body = vec![0; length as usize - 16];
        self.connection.read_exact(&mut body).unwrap();
        if error == 0 { Ok(body) } else { Err(-error) }
    }

    fn lookup(&mut self, parent: u64, name: &str) -> Result<u64, i32> {
        let entry = self.ask(LOOKUP, parent, &[name.as_bytes(), b"\0"].concat())?;
        Ok(u64::from_le_bytes(*entry.first_chunk().unwrap()))
    }

    /// Whether the server hung up, as it does on a guest that breaks the protocol.
    fn hung_up(mut self) -> bool {
        let closed = matches!(self.connection.read(&mut [0; 1]), Ok(0) | Err(_));
        closed && !self.child.wait().unwrap().success()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const ENOENT: i32 = 2;
const EPERM: i32 = 1;
const EROFS: i32 = 30;

#[test]
fn exports_are_there_and_nothing_else_of_the_host() {
    let Some(mut server) = Server::mounted() else { return };
    let read_only = server.lookup(ROOT, "1").unwrap();
    let note = server.lookup(read_only, "note").unwrap();
    let opened = server.ask(OPEN, note, &[0; 8]).unwrap();
    let handle: [u8; 8] = *opened.first_chunk().unwrap();
    let read = [&handle[..], &[0; 8], &64u32.to_le_bytes(), &[0; 20]].concat();
    assert_eq!(server.ask(READ, note, &read).unwrap(), b"hello");

    let file = server.lookup(ROOT, "2").unwrap();
    server.lookup(file, "note").unwrap();
    // The file's neighbours on the host, and the rest of it.
    for (parent, name) in
        [(file, "secret"), (ROOT, "proc"), (ROOT, "etc"), (ROOT, "3"), (read_only, "secret")]
    {
        assert_eq!(server.lookup(parent, name), Err(ENOENT), "{name}");
    }
}

#[test]
fn writing_works_where_it_may_and_device_nodes_nowhere() {
    let Some(mut server) = Server::mounted() else { return };
    let [writable, read_only, file] = ["0", "1", "2"].map(|name| server.lookup(ROOT, name).unwrap());
    let mkdir = [&0o755u32.to_le_bytes()[..], &[0; 4], b"d\0"].concat();
    server.ask(MKDIR, writable, &mkdir).unwrap();
    assert!(server.host.path().join("exports/rw/d").is_dir());
    for parent in [read_only, file, ROOT] {
        assert_eq!(server.ask(MKDIR, parent, &mkdir), Err(EROFS));
    }
    let block_device = 0o060_600u32;
    let mknod = [&block_device.to_le_bytes()[..], &0x800u32.to_le_bytes(), &[0; 8], b"sda\0"].concat();
    assert_eq!(server.ask(MKNOD, writable, &mknod), Err(EPERM));
}

#[test]
fn a_guest_that_breaks_the_protocol_is_hung_up_on() {
    let Some(stranger) = Server::start("c2") else { return };
    assert!(stranger.hung_up(), "another container's mounts were served");

    let mut server = Server::mounted().unwrap();
    server.connection.write_all(&[0xff; 40]).unwrap();
    assert!(server.hung_up(), "a request of 4 GiB was read");

    for name in ["..", "../secret", "/etc/passwd", "0/../../proc/self/root"] {
        let mut server = Server::mounted().unwrap();
        let body = [name.as_bytes(), b"\0"].concat();
        let mut request = (40 + body.len() as u32).to_le_bytes().to_vec();
        request.extend(LOOKUP.to_le_bytes());
        request.extend([0; 8]);
        request.extend(ROOT.to_le_bytes());
        request.extend([0; 16]);
        request.extend(body);
        server.connection.write_all(&request).unwrap();
        assert!(server.hung_up(), "{name} was looked up");
    }
}

#[test]
fn the_process_has_given_up_its_rights() {
    let Some(server) = Server::mounted() else { return };
    let proc = Path::new("/proc").join(server.child.id().to_string());
    let status = std::fs::read_to_string(proc.join("status")).unwrap();
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    // chown, dac_override, dac_read_search, fowner, fsetid, setgid, setuid, setfcap
    assert_eq!(field("CapEff:"), "00000000800000df");
    assert_eq!(field("CapPrm:"), "00000000800000df");
    assert_eq!(field("CapBnd:"), "00000000800000df");
    assert_eq!(field("NoNewPrivs:"), "1");
    // SECCOMP_MODE_FILTER: no file is opened by handle.
    assert_eq!(field("Seccomp:"), "2");
    let mounts = std::fs::read_to_string(proc.join("mountinfo")).unwrap();
    let points: Vec<_> = mounts.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    assert_eq!(points, ["/", "/exports/0", "/exports/1", "/exports/2/note", "/proc/self/fd"]);
}
