//! The connections by which files are copied: the guest opens each, and it goes to whoever asked for the copy.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use beta9_types::ContainerId;
use beta9_wire::{CopyOpen, Error as WireError, StreamControl, decode, encode, write_data};
use rustix::process::Pid;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::Violation;
use super::frames::{FrameReader, Received};
use super::host_end::{Input, Output};
use super::listeners::accept;

/// Connections that may be saying what they are at a time.
const MAX_OPENING: usize = 8;
/// How long a connection may take to say what it is.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// How long a guest may send or take nothing while it has work to do: its disk may be slow.
const STALL_DEADLINE: Duration = Duration::from_secs(120);
/// How long an acknowledged copy is kept open for the guest to close it first.
const LINGER: Duration = Duration::from_secs(5);
/// Bytes taken from an archive at a time.
const CHUNK: usize = 64 << 10;

/// One copy's connection.
pub(super) struct Connection {
    frames: FrameReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
}

type Waiting = Arc<Mutex<HashMap<u32, oneshot::Sender<Connection>>>>;

/// Accepts connections for as long as it exists.
pub(super) struct Copies {
    waiting: Waiting,
    task: JoinHandle<()>,
}

impl Copies {
    pub(super) fn serve(listener: UnixListener, dialer: Pid, container: ContainerId) -> Self {
        let waiting = Waiting::default();
        let task = tokio::spawn(accept_all(listener, dialer, container, Arc::clone(&waiting)));
        Self { waiting, task }
    }

    /// Announces that the guest will be asked for the copy `number`.
    pub(super) fn expect(&self, number: u32) -> Expected {
        let (sender, connection) = oneshot::channel();
        lock(&self.waiting).insert(number, sender);
        Expected { waiting: Arc::clone(&self.waiting), number, connection }
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A connection that may come. Dropped, it is not waited for any more.
pub(super) struct Expected {
    waiting: Waiting,
    number: u32,
    pub(super) connection: oneshot::Receiver<Connection>,
}

impl Drop for Expected {
    fn drop(&mut self) {
        lock(&self.waiting).remove(&self.number);
    }
}

fn lock(waiting: &Waiting) -> MutexGuard<'_, HashMap<u32, oneshot::Sender<Connection>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept_all(listener: UnixListener, dialer: Pid, container: ContainerId, waiting: Waiting) {
    let mut opening = JoinSet::new();
    loop {
        while opening.len() >= MAX_OPENING {
            opening.join_next().await;
        }
        // The socket is gone with the VM.
        let Ok(connection) = accept(&listener, dialer).await else { return };
        while opening.try_join_next().is_some() {}
        let (container, waiting) = (container.clone(), Arc::clone(&waiting));
        opening.spawn(async move {
            match timeout(OPEN_DEADLINE, open(connection, &container)).await {
                Ok(Some((number, connection))) => {
                    // One that nobody waits for any more is closed.
                    let sender = lock(&waiting).remove(&number);
                    if let Some(sender) = sender {
                        let _ = sender.send(connection);
                    }
                }
                _ => tracing::warn!(%container, "a copy connection of the guest did not say what it is"),
            }
        });
    }
}

async fn open(connection: UnixStream, container: &ContainerId) -> Option<(u32, Connection)> {
    let (read, write) = connection.into_split();
    let mut frames = FrameReader::new(read);
    let Ok(Some(Received::Message(body))) = frames.next().await else { return None };
    let open = decode::<CopyOpen>("copy open", &body).ok()?;
    (open.container == *container).then_some((open.operation, Connection { frames, write }))
}

/// Why bytes stopped moving.
pub(super) enum Stopped {
    /// Whoever reads or writes the archive on the host is gone.
    Client,
    /// The guest did not say or do what it had to.
    Guest(Violation),
}

impl From<WireError> for Stopped {
    fn from(error: WireError) -> Self {
        Self::Guest(error.into())
    }
}

impl Connection {
    /// Moves an archive from the guest to the host.
    pub(super) async fn receive(&mut self, mut to: Output) -> Result<(), Stopped> {
        let mut total = 0;
        loop {
            match timeout(STALL_DEADLINE, self.frames.next()).await {
                Ok(Ok(Some(Received::Data(bytes)))) => {
                    total += bytes.len() as u64;
                    to.write_all(&bytes).await.map_err(|_| Stopped::Client)?;
                }
                Ok(Ok(Some(Received::Message(body)))) => match decode("copy", &body)? {
                    StreamControl::End { total: claimed } if claimed == total => break,
                    _ => return Err(Stopped::Guest(Violation::new("it ended an archive it did not send"))),
                },
                Ok(Ok(None)) => return Err(Stopped::Guest(Violation::new("it cut an archive off"))),
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => return Err(Stopped::Guest(Violation::new("it sends no more of an archive"))),
            }
        }
        // End-of-file for the client comes after everything.
        drop(to);
        self.say(&encode(&StreamControl::EndAck)?).await?;
        let _ = timeout(LINGER, async { while let Ok(Some(_)) = self.frames.next().await {} }).await;
        Ok(())
    }

    /// Moves an archive from the host to the guest.
    pub(super) async fn send(&mut self, mut from: Input) -> Result<(), Stopped> {
        let mut chunk = vec![0; CHUNK];
        let mut total = 0;
        loop {
            let count = from.read(&mut chunk).await.map_err(|_| Stopped::Client)?;
            if count == 0 {
                break;
            }
            let mut frame = Vec::with_capacity(count + beta9_wire::HEADER_LEN);
            write_data(&mut frame, &chunk[..count], &mut Vec::new())?;
            self.say(&frame).await?;
            total += count as u64;
        }
        self.say(&encode(&StreamControl::End { total })?).await?;
        match timeout(STALL_DEADLINE, self.frames.next()).await {
            Ok(Ok(Some(Received::Message(body))))
                if matches!(decode("copy", &body), Ok(StreamControl::EndAck)) =>
            {
                Ok(())
            }
            _ => Err(Stopped::Guest(Violation::new("it did not acknowledge an archive"))),
        }
    }

    async fn say(&mut self, bytes: &[u8]) -> Result<(), Stopped> {
        match timeout(STALL_DEADLINE, self.write.write_all(bytes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Stopped::Guest(Violation::new(format!("a copy broke: {error}")))),
            Err(_) => Err(Stopped::Guest(Violation::new("it takes no more of an archive"))),
        }
    }
}
