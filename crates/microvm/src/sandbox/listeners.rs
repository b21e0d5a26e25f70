//! The sockets at which a guest arrives.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;

use beta9_runtime::{Error, ErrorKind, Result};
use beta9_wire::{CONTROL_PORT, COPY_PORT, SHARE_PORT, STREAM_PORT};
use rustix::process::Pid;
use tokio::net::{UnixListener, UnixStream};

use crate::engine::{VSOCK, VmDirectory};
use crate::failed;

/// Connections from elsewhere than the VM that are turned away before it is called an attack.
const MAX_STRANGERS: u32 = 64;

/// Bound before the guest boots, so that its first attempt succeeds.
///
/// A Firecracker VMM blocks when a backlog is full, so `std`'s choice of the kernel's maximum (4096 by default)
/// matters.
pub(crate) struct Listeners {
    /// One connection, ever.
    pub(crate) control: UnixListener,
    /// One connection per stream.
    pub(crate) stream: UnixListener,
    /// One connection per copy.
    pub(crate) copy: UnixListener,
    /// Accepted from by the share server, which is a process of its own.
    pub(crate) share: OwnedFd,
}

impl Listeners {
    pub(crate) fn bind(directory: &VmDirectory) -> Result<Self> {
        let bind = |port: u32| {
            let name = format!("{VSOCK}_{port}");
            let listener = bind(&directory.reach(&name))
                .map_err(|e| failed("listen at", &directory.workplace().join(&name), e))?;
            directory.hand_over(&name).map(|()| listener)
        };
        let asynchronous = |listener: StdListener| {
            listener.set_nonblocking(true)?;
            UnixListener::from_std(listener)
        };
        let broken = |e| Error::caused(ErrorKind::Failed, "listen for the guest", e);
        Ok(Self {
            control: asynchronous(bind(CONTROL_PORT)?).map_err(broken)?,
            stream: asynchronous(bind(STREAM_PORT)?).map_err(broken)?,
            copy: asynchronous(bind(COPY_PORT)?).map_err(broken)?,
            share: bind(SHARE_PORT)?.into(),
        })
    }
}

fn bind(path: &Path) -> std::io::Result<StdListener> {
    let listener = StdListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// The next connection that the VM's own process made; others are closed.
pub(super) async fn accept(listener: &UnixListener, dialer: Pid) -> Result<UnixStream> {
    let broken = |e| Error::caused(ErrorKind::Failed, "accept a connection of the guest", e);
    for _ in 0..MAX_STRANGERS {
        let (connection, _) = listener.accept().await.map_err(broken)?;
        let peer = connection.peer_cred().map_err(broken)?;
        if peer.pid() == Some(dialer.as_raw_nonzero().get()) {
            return Ok(connection);
        }
        tracing::warn!(pid = peer.pid(), "a process that is not the VM connected to the VM's socket");
    }
    Err(Error::new(ErrorKind::Failed, "other processes kept connecting to the VM's sockets"))
}
