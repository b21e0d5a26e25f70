//! Processes beside a container's main one.
//!
//! ```text
//! starting ──▶ running ──its end──▶ drained ──▶ exit told ──▶ gone
//!    └─ failed                        └ a process that it left behind holds its streams: they are read on, for nobody
//! ```
//!
//! What such a process writes goes to the client that started it and nowhere else. When that client is slow, its
//! process waits, and nothing else does; when it goes away, the process goes on and is heard by nobody.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use beta9_runtime::{ExecRequest, Execution, Processes};
use beta9_types::{ExecId, Exit, TerminalSize};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use rustix::io::Errno;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::bytes::Bytes;
use tokio_util::task::TaskTracker;

use crate::protocol::{ExecSpec, Input, Piece, Reply};
use crate::server::{Connection, send};
use crate::stdio::{self, CHUNK, HostStdio, Stdin};

/// Processes that one container may have beside its main one at a time.
const MAX_RUNNING: usize = 1024;
/// Pieces of output that wait for the client.
const PIECES: usize = 2;
/// How long what was shown on a terminal may take to arrive after the end of its process.
const TERMINAL_DEADLINE: Duration = Duration::from_secs(2);
/// How long starts and ends may take when the container ends.
const CLOSE_DEADLINE: Duration = Duration::from_secs(10);

/// Those of one container.
#[derive(Default)]
pub(crate) struct Execs {
    state: Mutex<State>,
    starting: TaskTracker,
    running: TaskTracker,
}

#[derive(Default)]
struct State {
    /// Present while the container runs.
    processes: Option<Arc<dyn Processes>>,
    /// `None` while it starts.
    executions: HashMap<ExecId, Option<Arc<dyn Execution>>>,
}

/// A process that runs.
struct Started {
    io: HostStdio,
    terminal: Option<TerminalSize>,
    exit: watch::Receiver<Option<Exit>>,
}

impl Execs {
    /// The container runs from now on.
    pub(crate) fn open(&self, processes: Arc<dyn Processes>) {
        self.lock().processes = Some(processes);
    }

    /// The container has ended, and with it every process: no more are started, and those that were being started or
    /// have to be waited for are.
    pub(crate) async fn close(&self) {
        self.lock().processes = None;
        self.starting.close();
        self.running.close();
        let over = async {
            self.starting.wait().await;
            self.running.wait().await;
        };
        if timeout(CLOSE_DEADLINE, over).await.is_err() {
            tracing::warn!("a process that was executed in the container did not end with it");
        }
    }

    /// Sends a signal to one of them.
    pub(crate) async fn signal(&self, id: &ExecId, number: i32) -> Result<(), String> {
        self.get(id)?.signal(number).await.map_err(|e| e.chain())
    }

    /// Changes the size of a terminal: the main process's where no other is named.
    pub(crate) async fn resize(&self, id: Option<&ExecId>, size: TerminalSize) -> Result<(), String> {
        let resized = match id {
            Some(id) => self.get(id)?.resize(size).await,
            None => {
                let processes = self.lock().processes.clone();
                processes.ok_or_else(not_running)?.resize(size).await
            }
        };
        resized.map_err(|e| e.chain())
    }

    fn get(&self, id: &ExecId) -> Result<Arc<dyn Execution>, String> {
        let found = self.lock().executions.get(id).cloned().flatten();
        found.ok_or_else(|| format!("no process {id} runs in the container"))
    }

    /// Starts a process for a client and stays with it until its end.
    pub(crate) async fn serve(self: &Arc<Self>, mut connection: Connection, spec: ExecSpec) {
        let is_detached = spec.detach;
        let started = {
            let _starting = self.starting.token();
            self.start(spec).await
        };
        let started = match started {
            Ok(started) => started,
            Err(reply) => return drop(send(&mut connection, &reply).await),
        };
        let answered = send(&mut connection, &Reply::Ok).await;
        let connection = Some(connection).filter(|_| answered.is_ok() && !is_detached);
        attend(started, connection).await;
    }

    async fn start(self: &Arc<Self>, spec: ExecSpec) -> Result<Started, Reply> {
        let ExecSpec { id, process, stdin, terminal, .. } = spec;
        let refused = |message: String| Reply::Refused { message };
        let processes = {
            let mut state = self.lock();
            let processes = state.processes.clone().ok_or_else(|| refused(not_running()))?;
            if state.executions.len() >= MAX_RUNNING {
                let text = format!("{MAX_RUNNING} processes run in the container already");
                return Err(refused(text));
            }
            if state.executions.contains_key(&id) {
                return Err(refused(format!("a process {id} runs in the container already")));
            }
            state.executions.insert(id.clone(), None);
            processes
        };
        let stdin = if stdin { Stdin::Open } else { Stdin::Null };
        let started = match stdio::open(stdin, terminal) {
            Ok((stdio, io)) => {
                let request = ExecRequest { id: id.clone(), process, stdio };
                let executed = processes.exec(request).await.map(|execution| (execution, io));
                executed.map_err(|e| Reply::ExecFailed { code: e.exit_code(), message: e.chain() })
            }
            Err(e) => Err(refused(format!("make the pipes of a process: {e}"))),
        };
        match started {
            Ok((execution, io)) => Ok(Started { io, terminal, exit: self.watch(id, execution) }),
            Err(reply) => {
                self.lock().executions.remove(&id);
                Err(reply)
            }
        }
    }

    /// Has the process's end reported, and forgets it then.
    fn watch(self: &Arc<Self>, id: ExecId, execution: Arc<dyn Execution>) -> watch::Receiver<Option<Exit>> {
        let (sender, receiver) = watch::channel(None);
        self.lock().executions.insert(id.clone(), Some(Arc::clone(&execution)));
        let execs = Arc::clone(self);
        self.running.spawn(async move {
            let exit = execution.exit().await;
            execs.lock().executions.remove(&id);
            sender.send_replace(Some(exit));
        });
        receiver
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn not_running() -> String {
    "the container is not running".to_owned()
}

/// Moves the streams of a process between it and its client until its end, and tells the client of it.
async fn attend(started: Started, connection: Option<Connection>) {
    let Started { io, terminal, mut exit } = started;
    let HostStdio { stdin, stdout, stderr } = io;
    let (sink, frames) = connection.map(StreamExt::split).unzip();
    let (pieces, queue) = mpsc::channel(PIECES);
    let relaying = async move {
        let left = tokio::join!(
            relay(stdout, Piece::Stdout, &pieces, exit.clone(), terminal),
            relay(stderr, Piece::Stderr, &pieces, exit.clone(), terminal),
        );
        for left in [left.0, left.1].into_iter().flatten() {
            tokio::spawn(discard(left));
        }
        let exit = exit.wait_for(Option::is_some).await.ok().and_then(|exit| exit.clone());
        if let Some(exit) = exit {
            let _ = pieces.send(Piece::Exit(exit)).await;
        }
    };
    let process = async move {
        tokio::select! {
            () = relaying => {}
            never = feed(stdin, frames, terminal) => match never {},
        }
    };
    tokio::join!(write(sink, queue), process);
}

/// Sends pieces to the client. Without one, or when it has left, whoever has a piece learns it at once.
async fn write(sink: Option<SplitSink<Connection, Bytes>>, mut queue: mpsc::Receiver<Piece>) {
    let Some(mut sink) = sink else { return };
    while let Some(piece) = queue.recv().await {
        if sink.send(piece.encode()).await.is_err() {
            return;
        }
    }
}

/// Moves output to the client, or reads it for nobody. Returns the stream if somebody else than the process, which has
/// ended, holds it open.
async fn relay(
    mut from: pipe::Receiver,
    piece: fn(Bytes) -> Piece,
    pieces: &mpsc::Sender<Piece>,
    mut exit: watch::Receiver<Option<Exit>>,
    terminal: Option<TerminalSize>,
) -> Option<pipe::Receiver> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = tokio::select! {
            biased;
            read = from.read(&mut buffer) => read.unwrap_or(0),
            _ = exit.wait_for(Option::is_some) => break,
        };
        if count == 0 {
            return None;
        }
        let _ = pieces.send(piece(Bytes::copy_from_slice(&buffer[..count]))).await;
    }
    if terminal.is_some() {
        // The end of the process hangs its terminal up, and what was shown there is on its way.
        let rest = async {
            while let Ok(count @ 1..) = from.read(&mut buffer).await {
                let _ = pieces.send(piece(Bytes::copy_from_slice(&buffer[..count]))).await;
            }
        };
        return timeout(TERMINAL_DEADLINE, rest).await.is_err().then_some(from);
    }
    // All that the process wrote is in the pipe; what comes later is somebody else's. Asked of the kernel, because tokio
    // may not know of it yet.
    let mut left = rustix::io::ioctl_fionread(&from).unwrap_or(0);
    while left > 0 {
        match rustix::io::read(&from, &mut buffer) {
            Ok(count @ 1..) => {
                let _ = pieces.send(piece(Bytes::copy_from_slice(&buffer[..count]))).await;
                left = left.saturating_sub(count as u64);
            }
            Err(Errno::INTR) => {}
            Ok(_) | Err(_) => break,
        }
    }
    Some(from)
}

/// Moves a client's input to the process. Its end closes stdin, unless it is a terminal or the client wants it left open.
async fn feed(
    stdin: Option<pipe::Sender>,
    frames: Option<SplitStream<Connection>>,
    terminal: Option<TerminalSize>,
) -> Infallible {
    let (Some(mut stdin), Some(mut frames)) = (stdin, frames) else { return std::future::pending().await };
    loop {
        let input = match frames.next().await {
            Some(Ok(frame)) => Input::decode(frame.freeze()),
            Some(Err(_)) | None => None,
        };
        let is_over = match input {
            Some(Input::Stdin(bytes)) => stdin.write_all(&bytes).await.is_err(),
            Some(Input::Detach) => break,
            Some(Input::End) | None if terminal.is_some() => break,
            Some(Input::End) | None => true,
        };
        if is_over {
            drop(stdin);
            return std::future::pending().await;
        }
    }
    std::future::pending().await
}

/// Reads a stream to its end, so that nobody who writes to it has to wait.
async fn discard(mut from: pipe::Receiver) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(1..) = from.read(&mut buffer).await {}
}
