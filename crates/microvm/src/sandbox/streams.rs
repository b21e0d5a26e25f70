//! The guest's stream connections and the container's pipes.
//!
//! ```text
//! stdout, stderr   guest ── Data… End ──▶ pipe;  EndAck once everything is in the pipe
//!                  guest ◀── Refused           when nobody reads the pipe any more
//! stdin            guest ◀── Data… End ── pipe;  Refused ends it
//! ```
//!
//! A stream that closes without `End` is cut off: the process goes on, and its exit says so. Anything that the
//! protocol does not allow is a violation, which ends the VM.
//!
//! Each connection is served by a task of its own, so a pipe that nobody reads stops its own stream and no other.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use beta9_runtime::ContainerStdio;
use beta9_types::{ContainerId, ExecId};
use beta9_wire::{Error as WireError, StreamControl, StreamKind, StreamOpen, decode, encode, write_data};
use rustix::process::Pid;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::Violation;
use super::frames::{FrameReader, Received as Frame};
use super::host_end::{Input, Output};
use super::listeners::accept;

/// A guest needs one connection per stream; the rest is for connections that failed half-way.
const MAX_CONNECTIONS: usize = 8;
/// The same for every process that is executed beside the container's main one.
const MORE_CONNECTIONS: usize = 5;
/// How long a connection may take to say what it is.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// How long an acknowledged stream is kept open for the guest to close it first.
const LINGER: Duration = Duration::from_secs(5);
/// Bytes taken from stdin at a time.
const STDIN_CHUNK: usize = 32 << 10;

/// How an outgoing stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamEnd {
    /// With `End`, after this many bytes, all of which are in the pipe.
    Whole(u64),
    /// Without, after this many bytes.
    Cut(u64),
}

/// What the owner of the VM is told.
#[derive(Debug)]
pub(super) enum StreamEvent {
    /// Stdout or stderr of the container's main process ended; its pipe is closed.
    Ended(StreamKind, StreamEnd),
    /// The guest did what it must not.
    Violation(Violation),
}

/// How far an outgoing stream has come.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Received {
    /// Bytes that are in the pipe.
    pub(super) bytes: u64,
    /// Whether more wait for room in the pipe.
    pub(super) waits: bool,
    /// Set when it has ended.
    pub(super) end: Option<StreamEnd>,
}

/// Both outgoing streams of one process. Whoever never had one has all of it.
pub(super) struct Outgoing {
    pub(super) stdout: watch::Receiver<Received>,
    pub(super) stderr: watch::Receiver<Received>,
}

/// The streams of one VM, being served. Dropping this ends them.
pub(super) struct Streams {
    pub(super) events: mpsc::Receiver<StreamEvent>,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Streams {
    pub(super) fn serve(listener: UnixListener, dialer: Pid, container: ContainerId) -> Self {
        let (sender, events) = mpsc::channel(16);
        let shared = Arc::new(Shared {
            container,
            ends: Mutex::default(),
            events: sender,
            progress: AtomicU64::new(0),
            allowed: AtomicUsize::new(MAX_CONNECTIONS),
        });
        let task = tokio::spawn(accept_all(listener, dialer, Arc::clone(&shared)));
        Self { events, shared, task }
    }

    /// Lets the guest open the streams of a process: the main one, or another.
    pub(super) fn expect(&self, exec: Option<ExecId>, stdio: ContainerStdio) -> Outgoing {
        let ContainerStdio { stdin, stdout, stderr, terminal } = stdio;
        if exec.is_some() {
            self.shared.allowed.fetch_add(MORE_CONNECTIONS, Ordering::Relaxed);
        }
        let mut ends = self.shared.ends();
        let mut add = |kind, fd: Option<OwnedFd>| {
            let (sender, receiver) = watch::channel(Received::default());
            match fd {
                Some(fd) => drop(ends.insert((exec.clone(), kind), End { fd, received: sender })),
                None => sender.send_modify(|received| received.end = Some(StreamEnd::Whole(0))),
            }
            receiver
        };
        add(StreamKind::Stdin, stdin);
        Outgoing {
            stdout: add(StreamKind::Stdout, Some(stdout)),
            stderr: add(StreamKind::Stderr, Some(stderr).filter(|_| terminal.is_none())),
        }
    }

    /// Takes back what a process that does not exist was to have.
    pub(super) fn forget(&self, exec: &ExecId) {
        self.shared.ends().retain(|(whose, _), _| whose.as_ref() != Some(exec));
    }

    /// A number that grows as long as bytes move.
    pub(super) fn progress(&self) -> u64 {
        self.shared.progress.load(Ordering::Relaxed)
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Our end of a stream nobody has asked for yet.
struct End {
    fd: OwnedFd,
    received: watch::Sender<Received>,
}

struct Shared {
    container: ContainerId,
    ends: Mutex<HashMap<(Option<ExecId>, StreamKind), End>>,
    events: mpsc::Sender<StreamEvent>,
    progress: AtomicU64,
    /// Connections that the guest may have made so far.
    allowed: AtomicUsize,
}

impl Shared {
    fn ends(&self) -> MutexGuard<'_, HashMap<(Option<ExecId>, StreamKind), End>> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the pipe of a stream; each can be taken once.
    fn take(&self, open: &StreamOpen) -> Result<End, Violation> {
        if open.container != self.container {
            return Err(Violation::new("it opened a stream of a container that it does not hold"));
        }
        let end = self.ends().remove(&(open.exec.clone(), open.stream));
        end.ok_or_else(|| Violation::new(format!("it opened {:?} twice or uninvited", open.stream)))
    }

    fn moved(&self, bytes: usize) {
        self.progress.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    async fn tell(&self, event: StreamEvent) {
        // Nobody listens any more once the VM is over.
        let _ = self.events.send(event).await;
    }
}

async fn accept_all(listener: UnixListener, dialer: Pid, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    for made in 1.. {
        let connection = match accept(&listener, dialer).await {
            Ok(connection) => connection,
            Err(error) => return shared.tell(StreamEvent::Violation(Violation::new(error.chain()))).await,
        };
        let allowed = shared.allowed.load(Ordering::Relaxed);
        if made > allowed {
            let text = format!("it made more than {allowed} stream connections");
            return shared.tell(StreamEvent::Violation(Violation::new(text))).await;
        }
        while connections.try_join_next().is_some() {}
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            if let Err(violation) = serve_one(connection, &shared).await {
                shared.tell(StreamEvent::Violation(violation)).await;
            }
        });
    }
}

async fn serve_one(connection: UnixStream, shared: &Shared) -> Result<(), Violation> {
    let (read, mut write) = connection.into_split();
    let mut frames = FrameReader::new(read);
    let open = match timeout(OPEN_DEADLINE, frames.next()).await {
        Ok(Ok(Some(Frame::Message(body)))) => decode::<StreamOpen>("stream open", &body)?,
        Ok(Ok(Some(Frame::Data(_)))) => return Err(Violation::new("a stream began with data")),
        Ok(Ok(None) | Err(WireError::Io(_))) => return Ok(()),
        Ok(Err(error)) => return Err(error.into()),
        Err(_) => return Err(Violation::new("a stream connection never said what it is")),
    };
    let End { fd, received } = shared.take(&open)?;
    let unusable = |e| Violation::new(format!("a pipe of its container is unusable: {e}"));
    if open.stream == StreamKind::Stdin {
        return send(Input::new(fd).map_err(unusable)?, frames, write, shared).await;
    }
    let output = Output::new(fd).map_err(unusable)?;
    let end = receive(open.stream, output, &mut frames, &mut write, &received, shared).await?;
    if let StreamEnd::Whole(_) = end {
        say(&mut write, &StreamControl::EndAck).await?;
    }
    received.send_modify(|received| received.end = Some(end));
    if open.exec.is_none() {
        shared.tell(StreamEvent::Ended(open.stream, end)).await;
    }
    if let StreamEnd::Whole(_) = end {
        linger(&mut frames).await;
    }
    Ok(())
}

/// Stdout or stderr: everything into the pipe. Like a broken pipe, one that nobody reads is the writer's business: it is
/// told, once, and what it sends all the same is thrown away.
async fn receive(
    kind: StreamKind,
    end: Output,
    frames: &mut FrameReader<OwnedReadHalf>,
    write: &mut OwnedWriteHalf,
    received: &watch::Sender<Received>,
    shared: &Shared,
) -> Result<StreamEnd, Violation> {
    let mut end = Some(end);
    let mut total = 0;
    loop {
        match frames.next().await {
            Ok(Some(Frame::Data(bytes))) => {
                total += bytes.len() as u64;
                if let Some(pipe) = &mut end {
                    received.send_modify(|received| received.waits = true);
                    if pipe.write_all(&bytes).await.is_err() {
                        end = None;
                        say(write, &StreamControl::Refused).await?;
                    }
                }
                received.send_modify(|received| (received.bytes, received.waits) = (total, false));
                shared.moved(bytes.len());
            }
            Ok(Some(Frame::Message(body))) => match decode("stream", &body)? {
                StreamControl::End { total: claimed } if claimed == total => {
                    return Ok(StreamEnd::Whole(total));
                }
                StreamControl::End { total: claimed } => {
                    let text = format!("{kind:?} ended at {claimed} bytes after carrying {total}");
                    return Err(Violation::new(text));
                }
                StreamControl::EndAck | StreamControl::Refused => {
                    return Err(Violation::new(format!("it acknowledged its own {kind:?}")));
                }
            },
            Ok(None) | Err(WireError::Io(_)) => return Ok(StreamEnd::Cut(total)),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Stdin: everything from the pipe until its end or until the guest wants no more.
async fn send(
    mut end: Input,
    mut frames: FrameReader<OwnedReadHalf>,
    mut write: OwnedWriteHalf,
    shared: &Shared,
) -> Result<(), Violation> {
    let mut chunk = vec![0; STDIN_CHUNK];
    let mut frame = Vec::with_capacity(STDIN_CHUNK + beta9_wire::HEADER_LEN);
    let mut total = 0;
    loop {
        let count = tokio::select! {
            count = end.read(&mut chunk) => count.unwrap_or(0),
            answer = frames.next() => return stdin_answer(answer, Ended::No),
        };
        frame.clear();
        if count == 0 {
            frame.extend(encode(&StreamControl::End { total })?);
        } else {
            write_data(&mut frame, &chunk[..count], &mut Vec::new())?;
        }
        total += count as u64;
        tokio::select! {
            written = write.write_all(&frame) => if written.is_err() {
                return Ok(());
            },
            answer = frames.next() => return stdin_answer(answer, Ended::No),
        }
        shared.moved(count);
        if count == 0 {
            drop(end);
            return stdin_answer(frames.next().await, Ended::Yes);
        }
    }
}

/// Whether `End` was sent.
#[derive(PartialEq, Eq)]
enum Ended {
    Yes,
    No,
}

fn stdin_answer(answer: Result<Option<Frame>, WireError>, ended: Ended) -> Result<(), Violation> {
    match answer {
        Ok(None) | Err(WireError::Io(_)) => Ok(()),
        Ok(Some(Frame::Data(_))) => Err(Violation::new("it sent data on stdin")),
        Ok(Some(Frame::Message(body))) => match decode("stream", &body)? {
            StreamControl::Refused => Ok(()),
            StreamControl::EndAck if ended == Ended::Yes => Ok(()),
            StreamControl::EndAck | StreamControl::End { .. } => {
                Err(Violation::new("it acknowledged an end of stdin that was not sent"))
            }
        },
        Err(error) => Err(error.into()),
    }
}

async fn say(write: &mut OwnedWriteHalf, message: &StreamControl) -> Result<(), Violation> {
    let frame = encode(message)?;
    match timeout(OPEN_DEADLINE, write.write_all(&frame)).await {
        // A guest that hung up does not need the answer.
        Ok(_) => Ok(()),
        Err(_) => Err(Violation::new("it does not read the answers on a stream")),
    }
}

/// Closing first could take the acknowledgement away from the guest: a vsock close forfeits what is in flight.
async fn linger(frames: &mut FrameReader<OwnedReadHalf>) {
    let _ = timeout(LINGER, async { while let Ok(Some(_)) = frames.next().await {} }).await;
}
