//! A guest that speaks raw FUSE (linux/fuse.h) over the server's socket.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use beta9_sys::command::{CommandExtra, Namespace};
use beta9_types::ContainerId;
use beta9_wire::{ShareOpen, write_message};

pub(crate) const LOOKUP: u32 = 1;
pub(crate) const MKNOD: u32 = 8;
pub(crate) const MKDIR: u32 = 9;
pub(crate) const OPEN: u32 = 14;
pub(crate) const READ: u32 = 15;
pub(crate) const INIT: u32 = 26;
pub(crate) const ROOT: u64 = 1;

/// A server with a writable directory, a read-only directory and a file, and a connection to it.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) connection: UnixStream,
    pub(crate) host: tempfile::TempDir,
    unique: u64,
}

impl Server {
    /// `None` where namespaces cannot be made.
    pub(crate) fn start(container: &str) -> Option<Self> {
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
    pub(crate) fn mounted() -> Option<Self> {
        let mut server = Self::start("c1")?;
        let version = [7u32, 31, 1 << 17, 0].map(u32::to_le_bytes);
        server.ask(INIT, 0, version.as_flattened()).unwrap();
        Some(server)
    }

    /// Sends one request, as root; returns what its reply will be known by.
    pub(crate) fn send(&mut self, opcode: u32, node: u64, body: &[u8]) -> std::io::Result<u64> {
        self.send_as([0, 0], opcode, node, body)
    }

    /// The same as another user and group.
    pub(crate) fn send_as(
        &mut self,
        ids: [u32; 2],
        opcode: u32,
        node: u64,
        body: &[u8],
    ) -> std::io::Result<u64> {
        self.unique += 1;
        let mut request = Vec::new();
        request.extend((40 + body.len() as u32).to_le_bytes());
        request.extend(opcode.to_le_bytes());
        request.extend(self.unique.to_le_bytes());
        request.extend(node.to_le_bytes());
        request.extend(ids.map(u32::to_le_bytes).as_flattened());
        // pid, and two fields that are nought.
        request.extend([0; 8]);
        request.extend(body);
        self.connection.write_all(&request)?;
        Ok(self.unique)
    }

    /// The next reply: whose it is, and its body or its errno.
    pub(crate) fn reply(&mut self) -> std::io::Result<(u64, Result<Vec<u8>, i32>)> {
        let mut header = [0; 16];
        self.connection.read_exact(&mut header)?;
        let length = u32::from_le_bytes(*header.first_chunk().unwrap());
        let error = i32::from_le_bytes(header[4..8].try_into().unwrap());
        let unique = u64::from_le_bytes(header[8..16].try_into().unwrap());
        let mut body = vec![0; length as usize - 16];
        self.connection.read_exact(&mut body)?;
        Ok((unique, if error == 0 { Ok(body) } else { Err(-error) }))
    }

    /// One request and its reply's body, or its errno.
    pub(crate) fn ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        let sent = self.send(opcode, node, body).unwrap();
        let (unique, reply) = self.reply().unwrap();
        assert_eq!(unique, sent);
        reply
    }

    /// The export of that number.
    pub(crate) fn export(&mut self, number: u32) -> u64 {
        self.lookup(ROOT, &number.to_string()).unwrap()
    }

    /// Whether it still answers.
    pub(crate) fn is_well(&mut self) -> bool {
        self.lookup(ROOT, "0").is_ok()
    }

    /// A line of the process's `status`.
    pub(crate) fn status(&self, name: &str) -> String {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned()
    }

    pub(crate) fn lookup(&mut self, parent: u64, name: &str) -> Result<u64, i32> {
        let entry = self.ask(LOOKUP, parent, &[name.as_bytes(), b"\0"].concat())?;
        Ok(u64::from_le_bytes(*entry.first_chunk().unwrap()))
    }

    /// Whether the server hung up, as it does on a guest that breaks the protocol.
    pub(crate) fn hung_up(mut self) -> bool {
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

pub(crate) const ENOENT: i32 = 2;
pub(crate) const EPERM: i32 = 1;
pub(crate) const EROFS: i32 = 30;
