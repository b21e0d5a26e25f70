//! The file server's process, from its arguments to its end.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use beta9_runtime::{Error, ErrorKind, Result};
use beta9_types::{Consistency, ContainerId, MountAccess};
use beta9_wire::{Frame, ShareOpen, decode, read_frame};
use rustix::net::sockopt::socket_peercred;

use super::{CACHED, READY, confine, session};

/// How long a connection may take to say whose mounts it wants.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// Connections from elsewhere than the VM that are turned away before this gives up.
const MAX_STRANGERS: u32 = 64;

/// One host path to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Export {
    pub(super) path: PathBuf,
    pub(super) access: MountAccess,
    pub(super) consistency: Consistency,
}

/// What the server was started for.
#[derive(Debug, PartialEq, Eq)]
struct Arguments {
    container: ContainerId,
    /// The process that connects on the guest's behalf.
    dialer: i32,
    exports: Vec<Export>,
}

/// Runs a file server: the body of the program's hidden `share` subcommand. `args` are those after it, the
/// listening socket is standard input. Returns when the guest's connection has ended.
///
/// It must be started in mount and network namespaces of its own, and gives up if it was not.
pub fn serve(args: impl Iterator<Item = OsString>) -> Result<()> {
    let Arguments { container, dialer, exports } = parse(args)?;
    let listener = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)
        .map_err(|e| Error::caused(ErrorKind::Failed, "take over the listening socket", e))?;
    let exports = confine::enter(&exports)?;
    println!("{READY}");
    let mut connection = accept(listener, dialer)?;
    connection.set_read_timeout(Some(OPEN_DEADLINE)).map_err(broken)?;
    open(&mut connection, &container)?;
    connection.set_read_timeout(None).map_err(broken)?;
    session::run(exports, &connection)
}

fn broken(error: std::io::Error) -> Error {
    Error::caused(ErrorKind::Failed, "serve the guest's connection", error)
}

fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Arguments> {
    let usage = || Error::new(ErrorKind::Failed, "usage: share CONTAINER PID ((ro|rw)[+cached] PATH)...");
    let mut text = || args.next().and_then(|arg| arg.into_string().ok()).ok_or_else(usage);
    let container = ContainerId::parse(&text()?).map_err(|_| usage())?;
    let dialer = text()?.parse().map_err(|_| usage())?;
    let mut exports = Vec::new();
    while let Some(word) = args.next() {
        let word = word.into_string().map_err(|_| usage())?;
        let (access, consistency) = match word.strip_suffix(CACHED) {
            Some(access) => (access, Consistency::Cached),
            None => (word.as_str(), Consistency::Consistent),
        };
        let access = match access {
            "ro" => MountAccess::ReadOnly,
            "rw" => MountAccess::ReadWrite,
            _ => return Err(usage()),
        };
        let path = args.next().ok_or_else(usage)?.into();
        exports.push(Export { path, access, consistency });
    }
    Ok(Arguments { container, dialer, exports })
}

/// The VM's connection; the listener is closed after it.
fn accept(listener: OwnedFd, dialer: i32) -> Result<UnixStream> {
    let listener = UnixListener::from(listener);
    listener.set_nonblocking(false).map_err(broken)?;
    for _ in 0..MAX_STRANGERS {
        let (connection, _) = listener.accept().map_err(broken)?;
        let peer = socket_peercred(&connection).map_err(|e| broken(e.into()))?;
        if peer.pid.as_raw_nonzero().get() == dialer {
            return Ok(connection);
        }
    }
    Err(Error::new(ErrorKind::Failed, "other processes kept connecting to the file server"))
}

fn open(connection: &mut (impl Read + Write), container: &ContainerId) -> Result<()> {
    let refused = |text: &str| Error::new(ErrorKind::Failed, format!("the guest broke the protocol: {text}"));
    let frame = read_frame(connection).map_err(|e| refused(&e.to_string()))?;
    let Frame::Message(body) = frame else { return Err(refused("a share began with data")) };
    let open: ShareOpen = decode("share open", &body).map_err(|e| refused(&e.to_string()))?;
    if open.container == *container {
        Ok(())
    } else {
        Err(refused("it asked for the mounts of a container that it does not hold"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_strictly() {
        let read = |text: &str| parse(text.split(' ').map(OsString::from));
        let arguments = read("c1 42 ro+cached /a rw /b").unwrap();
        assert_eq!((arguments.dialer, arguments.exports.len()), (42, 2));
        let of = |export: &Export| (export.access, export.consistency);
        assert_eq!(of(&arguments.exports[0]), (MountAccess::ReadOnly, Consistency::Cached));
        assert_eq!(of(&arguments.exports[1]), (MountAccess::ReadWrite, Consistency::Consistent));
        for bad in ["", "c1", "c1 x", "../c 1", "c1 1 ro", "c1 1 xx /a", "c1 1 ro+x /a"] {
            assert!(read(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
