//! The files of a container that does not run, and whose disk no kernel but a guest's reads: a VM is booted over them in
//! which nothing is executed, and it copies.
//!
//! ```text
//! lock ─▶ mark ─▶ the container, created and never started ─▶ socket, ready ─▶ copies ─▶ delete ─▶ unmark ─▶ unlock
//! ```
//!
//! It ends with its last client, or with whoever had it started, and keeps the container from being started meanwhile. The container's state stays what it
//! was; where this process dies, the mark tells whoever looks next that something has to be taken away.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use beta9_runtime::{Container, Marks, Operations};
use beta9_sys::reaper::Reaper;
use beta9_types::Exit;
use futures_util::StreamExt;
use tokio::io::Interest;
use tokio::net::UnixListener;
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::codec::Framed;

use crate::client::Supervisor;
use crate::directory::{ContainerDirectory, Socket};
use crate::error::{Error, ErrorKind, Result};
use crate::life::{announce_ready, cgroup, create};
use crate::lock::lock_within;
use crate::operate;
use crate::protocol::{Reply, Request, codec};
use crate::record::Record;
use crate::server::{Connection, send};
use crate::stdio::{self, Stdin};
use crate::{recover, rootfs, runtimes};

/// The first client comes within this time: whoever started this waits for it to be ready.
const FIRST_CLIENT: Duration = Duration::from_secs(10);
/// A client that connects says at once what it wants.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// How long a VM may take to write down what was copied into it and to end.
const END_DEADLINE: Duration = Duration::from_secs(90);
/// Clients at a time.
const MAX_CLIENTS: usize = 16;

/// Serves copies until the last client is gone.
pub(crate) async fn serve(directory: ContainerDirectory, record: Record, reaper: &Reaper) -> Result<()> {
    let runtime = runtimes::build(record.runtime, &record.settings, reaper)
        .map_err(|e| Error::caused(ErrorKind::Refused, "set up the runtime", e))?;
    let mark = directory.lending();
    File::create(&mark).map_err(|e| Error::file("create", &mark, e))?;
    let cgroup = cgroup(&record.id);
    // Nothing is executed, so nothing is ever said on them.
    let (stdio, _ends) = stdio::open(Stdin::Null, None)
        .map_err(|e| Error::caused(ErrorKind::File, "make the container's pipes", e))?;
    let marks = Marks::default();
    let patron = Patron::of_stdout()?;
    let created = tokio::select! {
        created = create(&directory, &record, &marks, &cgroup, runtime.as_ref(), reaper, None, stdio) => created,
        () = patron.gone() => Err(Exit::start_failed(Exit::OUR_FAILURE, "nobody wants them any more")),
    };
    let served = match created {
        Ok(mut container) => {
            let served = lend(&directory, container.as_mut(), &patron).await;
            if let Err(error) = container.delete().await {
                tracing::error!(container = %record.id, error = error.chain(), "runtime left something behind");
            }
            served
        }
        Err(exit) => {
            if let Err(error) = runtime.clean(&record.id, directory.path(), &cgroup).await {
                tracing::error!(container = %record.id, error = error.chain(), "runtime left something behind");
            }
            let text = exit.message.unwrap_or_else(|| "its files cannot be reached".to_owned());
            Err(Error::new(ErrorKind::Refused, text))
        }
    };
    directory.unlisten(Socket::Lender);
    rootfs::release(&directory);
    recover::remove_cgroup(&cgroup).await;
    recover::forget_vm(&record);
    let _ = std::fs::remove_file(&mark);
    served
}

/// Who had this process started and holds the other end of its stdout for as long as files are wanted.
struct Patron(Option<pipe::Sender>);

impl Patron {
    fn of_stdout() -> Result<Self> {
        let failed = |e| Error::caused(ErrorKind::File, "watch stdout", e);
        let stdout = std::io::stdout().as_fd().try_clone_to_owned().map_err(failed)?;
        // Started by hand it has no such pipe, and then nobody goes away.
        Ok(Self(pipe::Sender::from_owned_fd(stdout).ok()))
    }

    async fn gone(&self) {
        match &self.0 {
            Some(pipe) => drop(pipe.ready(Interest::ERROR).await),
            None => std::future::pending().await,
        }
    }
}

async fn lend(
    directory: &ContainerDirectory,
    container: &mut (dyn Container + '_),
    patron: &Patron,
) -> Result<()> {
    let listener = directory.listen(Socket::Lender)?;
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|e| Error::caused(ErrorKind::File, "receive SIGTERM", e))?;
    let (operations, stop) = (container.operations(), Arc::new(Notify::new()));
    announce_ready();
    tokio::select! {
        served = copies(listener, &operations, &stop) => served,
        exit = container.exit() => {
            let text = exit.message.unwrap_or_else(|| "the VM is gone".to_owned());
            Err(Error::new(ErrorKind::Gone, text))
        }
        () = stop.notified() => Ok(()),
        () = patron.gone() => Ok(()),
        _ = terminate.recv() => Ok(()),
    }
}

async fn copies(listener: UnixListener, operations: &Arc<dyn Operations>, stop: &Arc<Notify>) -> Result<()> {
    let mut clients = JoinSet::new();
    let accept = async || listener.accept().await.map_err(|e| Error::caused(ErrorKind::File, "accept", e));
    let mut next = match timeout(FIRST_CLIENT, accept()).await {
        Ok(accepted) => Some(accepted?.0),
        // Whoever wanted it is gone.
        Err(_) => return Ok(()),
    };
    loop {
        if let Some(stream) = next.take() {
            let (operations, stop) = (Arc::clone(operations), Arc::clone(stop));
            clients.spawn(client(Framed::new(stream, codec()), operations, stop));
        }
        tokio::select! {
            accepted = accept(), if clients.len() < MAX_CLIENTS => next = Some(accepted?.0),
            over = clients.join_next() => if over.is_none() || clients.is_empty() { return Ok(()) },
        }
    }
}

async fn client(mut connection: Connection, operations: Arc<dyn Operations>, stop: Arc<Notify>) {
    let Ok(Some(Ok(body))) = timeout(REQUEST_DEADLINE, connection.next()).await else { return };
    match serde_json::from_slice(&body) {
        Ok(Request::Copy { files }) => {
            if send(&mut connection, &Reply::Ok).await.is_ok() {
                operate::copy(connection, operations, files).await;
            }
        }
        Ok(Request::Stop { .. }) => {
            let _ = send(&mut connection, &Reply::Ok).await;
            stop.notify_one();
        }
        _ => {
            let message = "the container is not running".to_owned();
            let _ = send(&mut connection, &Reply::Refused { message }).await;
        }
    }
}

/// Ends the lending of a container's files, where they are lent out. Returns when nothing of it is left.
pub async fn end_lending(directory: &ContainerDirectory) -> Result<()> {
    if !directory.lending().exists() {
        return Ok(());
    }
    // Whoever lends may be about to end by itself, or gone; the lock says.
    let _ = Supervisor::lender_of(directory.clone()).stop(Duration::ZERO, None).await;
    let place = directory.clone();
    let locked = tokio::task::spawn_blocking(move || lock_within(&place, END_DEADLINE)).await;
    match locked.map_err(|e| Error::caused(ErrorKind::File, "wait for the end of a copy", e))?? {
        Some(_) => Ok(()),
        None => Err(Error::new(ErrorKind::Timeout, "a copy of the container's files does not end")),
    }
}
