//! The guest's stream connections and the container's pipes.
//!
//! ```text
//! stdout, stderr   guest ── Data… End ──▶ pipe;  EndAck once everything is in the pipe
//!                  guest ◀── Refused           when nobody reads the pipe any more
//! stdin            guest ◀── Data… End ── pipe;  Refused ends it
//! ```
//!
//! A stream that closes without `End` is cut off: the container goes on, and its exit says so. Anything that the
//! protocol does not allow is a violation, which ends the VM.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use beta9_runtime::ContainerStdio;
use beta9_types::ContainerId;
use beta9_wire::{Error as WireError, StreamControl, StreamKind, StreamOpen, decode, encode, write_data};
use rustix::process::Pid;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::Violation;
use super::frames::{FrameReader, Received};
use super::host_end::{Input, Output};
use super::listeners::accept;

/// A guest needs one connection per stream; the rest is for connections that failed half-way.
const MAX_CONNECTIONS: usize = 8;
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
    /// Stdout or stderr ended; its pipe is closed.
    Ended(StreamKind, StreamEnd),
    /// The guest did what it must not.
    Violation(Violation),
}

/// The streams of one container, being served. Dropping this ends them.
pub(super) struct Streams {
    pub(super) events: mpsc::Receiver<StreamEvent>,
    progress: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Streams {
    pub(super) fn serve(
        listener: UnixListener,
        dialer: Pid,
        container: ContainerId,
        stdio: ContainerStdio,
    ) -> Self {
        let (sender, events) = mpsc::channel(16);
        let progress = Arc::new(AtomicU64::new(0));
        let ends = Ends { stdin: stdio.stdin, stdout: Some(stdio.stdout), stderr: Some(stdio.stderr) };
        let shared = Arc::new(Shared {
            container,
            ends: Mutex::new(ends),
            events: sender,
            progress: Arc::clone(&progress),
        });
        let task = tokio::spawn(accept_all(listener, dialer, shared));
        Self { events, progress, task }
    }

    /// A number that grows as long as bytes move.
    pub(super) fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The pipes nobody has asked for yet.
struct Ends {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

struct Shared {
    container: ContainerId,
    ends: Mutex<Ends>,
    events: mpsc::Sender<StreamEvent>,
    progress: Arc<AtomicU64>,
}

impl Shared {
    /// Takes the pipe of a stream; each can be taken once.
    fn take(&self, open: &StreamOpen) -> Result<OwnedFd, Violation> {
        if open.container != self.container || open.exec.is_some() {
            return Err(Violation::new("it opened a stream of a container that it does not hold"));
        }
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        let end = match open.stream {
            StreamKind::Stdin => ends.stdin.take(),
            StreamKind::Stdout => ends.stdout.take(),
            StreamKind::Stderr => ends.stderr.take(),
        };
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
    for _ in 0..MAX_CONNECTIONS {
        let connection = match accept(&listener, dialer).await {
            Ok(connection) => connection,
            Err(error) => return shared.tell(StreamEvent::Violation(Violation::new(error.chain()))).await,
        };
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            if let Err(violation) = serve_one(connection, &shared).await {
                shared.tell(StreamEvent::Violation(violation)).await;
            }
        });
    }
    tokio::select! {
        more = accept(&listener, dialer) => if more.is_ok() {
            let text = format!("it made more than {MAX_CONNECTIONS} stream connections");
            shared.tell(StreamEvent::Violation(Violation::new(text))).await;
        },
        () = async { while connections.join_next().await.is_some() {} } => {}
    }
}

async fn serve_one(connection: UnixStream, shared: &Shared) -> Result<(), Violation> {
    let (read, write) = connection.into_split();
    let mut frames = FrameReader::new(read);
    let open = match timeout(OPEN_DEADLINE, frames.next()).await {
        Ok(Ok(Some(Received::Message(body)))) => decode::<StreamOpen>("stream open", &body)?,
        Ok(Ok(Some(Received::Data(_)))) => return Err(Violation::new("a stream began with data")),
        Ok(Ok(None) | Err(WireError::Io(_))) => return Ok(()),
        Ok(Err(error)) => return Err(error.into()),
        Err(_) => return Err(Violation::new("a stream connection never said what it is")),
    };
    let end = shared.take(&open)?;
    let unusable = |e| Violation::new(format!("a pipe of its container is unusable: {e}"));
    match open.stream {
        StreamKind::Stdin => send(Input::new(end).map_err(unusable)?, frames, write, shared).await,
        kind => receive(kind, Output::new(end).map_err(unusable)?, frames, write, shared).await,
    }
}

/// Stdout or stderr: everything into the pipe, then the acknowledgement.
async fn receive(
    kind: StreamKind,
    end: Output,
    mut frames: FrameReader<OwnedReadHalf>,
    mut write: OwnedWriteHalf,
    shared: &Shared,
) -> Result<(), Violation> {
    let mut end = Some(end);
    let mut total = 0;
    loop {
        match frames.next().await {
            Ok(Some(Received::Data(bytes))) => {
                total += bytes.len() as u64;
                if let Some(pipe) = &mut end
                    && pipe.write_all(&bytes).await.is_err()
                {
                    // Nobody reads any more. Like a broken pipe, that is the writer's business.
                    end = None;
                    say(&mut write, &StreamControl::Refused).await?;
                }
                shared.moved(bytes.len());
            }
            Ok(Some(Received::Message(body))) => match decode("stream", &body)? {
                StreamControl::End { total: claimed } if claimed == total => break,
                StreamControl::End { total: claimed } => {
                    let text = format!("{kind:?} ended at {claimed} bytes after carrying {total}");
                    return Err(Violation::new(text));
                }
                StreamControl::EndAck | StreamControl::Refused => {
                    return Err(Violation::new(format!("it acknowledged its own {kind:?}")));
                }
            },
            Ok(None) | Err(WireError::Io(_)) => {
                drop(end);
                shared.tell(StreamEvent::Ended(kind, StreamEnd::Cut(total))).await;
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
    }
    drop(end);
    say(&mut write, &StreamControl::EndAck).await?;
    shared.tell(StreamEvent::Ended(kind, StreamEnd::Whole(total))).await;
    linger(&mut frames).await;
    Ok(())
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

fn stdin_answer(answer: Result<Option<Received>, WireError>, ended: Ended) -> Result<(), Violation> {
    match answer {
        Ok(None) | Err(WireError::Io(_)) => Ok(()),
        Ok(Some(Received::Data(_))) => Err(Violation::new("it sent data on stdin")),
        Ok(Some(Received::Message(body))) => match decode("stream", &body)? {
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
