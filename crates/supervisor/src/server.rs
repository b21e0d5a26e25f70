//! The supervisor's end of its socket.

use std::sync::Arc;
use std::time::Duration;

use beta9_types::SignalNumber;
use futures_util::{SinkExt, StreamExt};
use serde::Serialize;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::bytes::Bytes;
use tokio_util::codec::{Framed, LengthDelimitedCodec};
use tokio_util::task::TaskTracker;

use crate::attach::Reserved;
use crate::exec::Execs;
use crate::operate::{self, Ask, Copy, Operation, Refusal};
use crate::protocol::{Reply, Request, Until, Update, codec};
use crate::stdio::{Input, SharedLog};

/// Clients served at once. The worker holds one or two per attached user and per process that was executed.
const MAX_CLIENTS: usize = 2048;
/// A client that connects says at once what it wants.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// How long watchers may take to read the last update.
const FAREWELL: Duration = Duration::from_secs(2);

const NOT_RUNNING: &str = "the container is not running";

/// What clients ask of the task that owns the container.
pub(crate) enum Command {
    Signal { number: i32, all: bool, done: oneshot::Sender<Result<(), String>> },
    Stop { grace: Duration, signal: Option<SignalNumber> },
    Ask(Ask),
}

/// What every connection shares.
pub(crate) struct Server {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) updates: watch::Receiver<Update>,
    /// The container's stdin.
    pub(crate) stdin: Arc<Input>,
    /// The container's output.
    pub(crate) log: SharedLog,
    /// The output's beginning, for the first client that attaches.
    pub(crate) reserved: Arc<Reserved>,
    /// Clients that are attached to the container.
    pub(crate) attached: TaskTracker,
    /// The container's other processes.
    pub(crate) execs: Arc<Execs>,
    /// Told when a watcher has been sent the container's end.
    pub(crate) end_was_seen: Notify,
}

pub(crate) type Connection = Framed<UnixStream, LengthDelimitedCodec>;

impl Server {
    /// Serves clients until `closing` is dropped; those that are there may take `FAREWELL` to read the last update.
    pub(crate) async fn run(self: Arc<Self>, listener: UnixListener, mut closing: oneshot::Receiver<()>) {
        let places = Arc::new(Semaphore::new(MAX_CLIENTS));
        let mut clients = JoinSet::new();
        loop {
            while clients.try_join_next().is_some() {}
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = &mut closing => break,
            };
            match accepted {
                Ok((stream, _)) => {
                    let server = Arc::clone(&self);
                    clients.spawn(async move {
                        server.serve(Framed::new(stream, codec())).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a client could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        drop(listener);
        let _ = tokio::time::timeout(FAREWELL, async { while clients.join_next().await.is_some() {} }).await;
        // Output that is only here is kept for who is attached; how long is decided there.
        self.attached.close();
        self.attached.wait().await;
    }

    async fn serve(&self, mut connection: Connection) {
        let Ok(Some(Ok(body))) = tokio::time::timeout(REQUEST_DEADLINE, connection.next()).await else {
            return;
        };
        match serde_json::from_slice(&body) {
            Ok(Request::Signal { number, exec: Some(exec), .. }) => {
                let reply = answer(self.execs.signal(&exec, number).await);
                let _ = send(&mut connection, &reply).await;
            }
            Ok(Request::Resize { exec, size }) => {
                let reply = answer(self.execs.resize(exec.as_ref(), size).await);
                let _ = send(&mut connection, &reply).await;
            }
            Ok(Request::Signal { number, all, exec: None }) => {
                let (done, answer) = oneshot::channel();
                let sent = self.commands.send(Command::Signal { number, all, done }).await;
                let reply = match (sent, answer.await) {
                    (Ok(()), Ok(Ok(()))) => Reply::Ok,
                    (Ok(()), Ok(Err(message))) => Reply::Refused { message },
                    _ => Reply::Refused { message: "the container is not running".to_owned() },
                };
                let _ = send(&mut connection, &reply).await;
            }
            Ok(Request::Stop { grace_ms, signal }) => {
                let grace = Duration::from_millis(grace_ms);
                // A container that has just ended is stopped: that is what was wanted.
                let _ = self.commands.send(Command::Stop { grace, signal }).await;
                let _ = send(&mut connection, &Reply::Ok).await;
            }
            Ok(Request::Watch { until }) => self.watch(connection, until).await,
            Ok(Request::Operate { operation }) => self.operate(connection, operation).await,
            Ok(Request::Copy { files }) => self.copy(connection, files).await,
            Ok(Request::Logs { from, reads }) => self.logs(connection, from, reads).await,
            Ok(Request::Attach { from, stdin }) => {
                let _attached = self.attached.token();
                self.attach(connection, from, stdin).await;
            }
            Ok(Request::Exec(spec)) => self.execs.serve(connection, *spec).await,
            Err(error) => {
                let message = format!("unknown request: {error}");
                let _ = send(&mut connection, &Reply::Refused { message }).await;
            }
        }
    }

    async fn operate(&self, mut connection: Connection, operation: Operation) {
        let (done, answer) = oneshot::channel();
        let sent = self.commands.send(Command::Ask(Ask::Operation { operation, done })).await;
        let outcome = match (sent, answer.await) {
            (Ok(()), Ok(outcome)) => outcome,
            _ => Err(Refusal::new(NOT_RUNNING)),
        };
        let _ = send(&mut connection, &Reply::Operated { outcome }).await;
    }

    async fn copy(&self, mut connection: Connection, files: Copy) {
        let (done, answer) = oneshot::channel();
        let sent = self.commands.send(Command::Ask(Ask::Copying { done })).await;
        let operations = match (sent, answer.await) {
            (Ok(()), Ok(Ok(operations))) => operations,
            (Ok(()), Ok(Err(refusal))) => {
                return drop(send(&mut connection, &Reply::Operated { outcome: Err(refusal) }).await);
            }
            _ => {
                let outcome = Err(Refusal::new(NOT_RUNNING));
                return drop(send(&mut connection, &Reply::Operated { outcome }).await);
            }
        };
        if send(&mut connection, &Reply::Ok).await.is_err() {
            return;
        }
        let mut over = self.updates.clone();
        tokio::select! {
            () = operate::copy(connection, operations, files) => {}
            _ = over.wait_for(Update::is_final) => {}
        }
    }

    async fn watch(&self, mut connection: Connection, until: Until) {
        let mut updates = self.updates.clone();
        updates.mark_changed();
        if send(&mut connection, &Reply::Ok).await.is_err() {
            return;
        }
        while updates.changed().await.is_ok() {
            let update = updates.borrow_and_update().clone();
            if send(&mut connection, &update).await.is_err() {
                return;
            }
            if update.satisfies(until) {
                if until == Until::Gone {
                    self.end_was_seen.notify_one();
                }
                return;
            }
        }
    }
}

fn answer(done: Result<(), String>) -> Reply {
    match done {
        Ok(()) => Reply::Ok,
        Err(message) => Reply::Refused { message },
    }
}

pub(crate) async fn send(connection: &mut Connection, message: &impl Serialize) -> std::io::Result<()> {
    let body = serde_json::to_vec(message)?;
    connection.send(Bytes::from(body)).await
}
