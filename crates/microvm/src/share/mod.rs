//! Host directories and files in a guest, live: FUSE over vsock.
//!
//! ```text
//! container's process ─▶ guest kernel (FUSE) ─▶ beta9-vm-init relays ══vsock══▶ file server, one per container
//! ```
//!
//! The server is a process of its own, because it does what a hostile guest says: it lives in the container's
//! cgroup, in mount and network namespaces where nothing exists but the exports (a read-only one is read-only
//! there, whatever the server does), with the few capabilities a file server needs. It starts while the guest
//! boots and ends with the guest's connection.
//!
//! What the guest sees of export `i` is `/<i>`; for a file, a directory that holds only that file. What it may cache is
//! the mount's [consistency](Consistency): nothing, where names and attributes are asked for again each time and data goes
//! past the guest's page cache; or what it read, for a second, which is the rule for read-only mounts. Writes are never
//! held back. Not shared across the boundary: inotify events of the host's making, locks, and, where nothing is cached,
//! `MAP_SHARED` mappings.

mod calls;
mod confine;
mod exports;
mod server;
mod session;

pub(crate) use confine::check_namespaces;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use beta9_runtime::{Error, ErrorKind, Result};
use beta9_sys::command::{CommandExtra, Namespace};
use beta9_types::{BindMount, Consistency, ContainerId, MountAccess};
use rustix::process::Pid;

use crate::engine::{Host, Process, Tail, VmDirectory, describe, drain};

pub use server::serve;

const SHARE_LOG: &str = "share.log";
/// The directory under the VM's that becomes the server's root.
const ROOT: &str = "share";
/// What the server says when the exports are in place.
const READY: &str = "ready";
/// After the access of an export whose guest may go by what it knows for a moment.
const CACHED: &str = "+cached";
/// How long setting up may take: a handful of mounts.
const READY_DEADLINE: Duration = Duration::from_secs(20);

/// How this program is started as a file server: its own executable and the arguments before the server's.
#[derive(Debug, Clone)]
pub(crate) struct ShareProgram {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<OsString>,
}

impl Default for ShareProgram {
    fn default() -> Self {
        // The link leads to the running file, even when another has taken its name.
        Self { program: "/proc/self/exe".into(), arguments: vec!["share".into()] }
    }
}

/// A file server that was started.
pub(crate) struct Share {
    process: Process,
    said: Tail,
}

impl Share {
    /// Starts the server of a container's mounts. `listener` is where the guest will connect, `dialer` who does it
    /// on its behalf.
    pub(crate) fn start(
        program: &ShareProgram,
        host: &Host,
        directory: &VmDirectory,
        container: &ContainerId,
        dialer: Pid,
        mounts: &[BindMount],
        listener: OwnedFd,
    ) -> Result<Self> {
        let root = directory.path().join(ROOT);
        std::fs::create_dir(&root).map_err(|e| crate::failed("create", &root, e))?;
        let mut command = Command::new(&program.program);
        command.args(&program.arguments).arg(container.as_str());
        command.arg(dialer.as_raw_nonzero().to_string());
        for mount in mounts {
            command.arg(words(mount)).arg(&mount.source);
        }
        command.current_dir(directory.path()).env_clear();
        command.unshare(&[Namespace::Mount, Namespace::Network]);
        // Its network namespace is an empty one, not the container's.
        let host = Host { network: None, ..host.clone() };
        let (process, outputs) = Process::spawn(&host, "file server", command, listener.into())?;
        let said = Tail::default();
        let log = directory.file(SHARE_LOG)?;
        let second =
            log.try_clone().map_err(|e| crate::failed("open", &directory.path().join(SHARE_LOG), e))?;
        drain(outputs.stdout, log, said.clone())?;
        drain(outputs.stderr, second, said.clone())?;
        Ok(Self { process, said })
    }

    /// Waits until the exports are in place.
    pub(crate) async fn ready(&self) -> Result<()> {
        let said = || self.said.excerpt().unwrap_or_else(|| "it did not say why".to_owned());
        tokio::select! {
            biased;
            heard = tokio::time::timeout(READY_DEADLINE, self.said.says(READY)) => heard.map_err(|_| {
                let text = format!("the file server did not get ready within {} s: {}", READY_DEADLINE.as_secs(), said());
                Error::new(ErrorKind::Timeout, text)
            }),
            exit = self.process.ended() => {
                let _ = tokio::time::timeout(Duration::from_millis(500), self.said.ended()).await;
                let text = format!("the file server {}: {}", describe(exit), said());
                Err(Error::new(ErrorKind::Failed, text))
            }
        }
    }

    /// Ends it.
    pub(crate) async fn end(&self) -> Result<()> {
        self.process.end().await
    }
}

/// How an export is asked for. What the container cannot write it may know for a second.
fn words(mount: &BindMount) -> String {
    let (access, usual) = match mount.access {
        MountAccess::ReadOnly => ("ro", Consistency::Cached),
        MountAccess::ReadWrite => ("rw", Consistency::Consistent),
    };
    match mount.consistency.unwrap_or(usual) {
        Consistency::Cached => format!("{access}{CACHED}"),
        Consistency::Consistent => access.to_owned(),
    }
}
