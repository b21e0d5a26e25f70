//! Clients at the container's log and at its stdin.
//!
//! A client is sent the log at its own pace. It may be far behind: what it has not read is kept for it on disk, also when
//! the log as such has been cut, up to a limit at which it is let go. The container never waits for it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::sync::watch;
use tokio_util::bytes::Bytes;

use crate::log::Cursor;
use crate::protocol::{AttachFrom, Input, Piece, Reads, Reply, Update};
use crate::server::{Connection, Server, send};
use crate::stdio::{AttachedInput, CHUNK, SharedLog};

/// How far behind the container's output a client may be, in bytes and in files that are held open.
const MAX_BEHIND: (u64, u64) = (1 << 30, 500);
/// A client that has not taken a single piece for this long when the container is over is let go.
const STALL_DEADLINE: Duration = Duration::from_secs(600);

/// Why a client is not served any further.
enum Left {
    /// It went away.
    Gone,
    /// It is too far behind.
    Behind,
}

impl Server {
    /// Sends the log from a position on.
    pub(crate) async fn logs(&self, mut connection: Connection, from: u64, reads: Reads) {
        let cursor = self.log.at(from);
        let reply = Reply::Log { position: cursor.position() };
        if send(&mut connection, &reply).await.is_err() {
            return;
        }
        let (mut sink, mut frames) = connection.split();
        let sending = async {
            if let Ok(()) = self.send_log(&mut sink, cursor, reads).await {
                let _ = sink.send(Piece::End.encode()).await;
            }
        };
        tokio::select! {
            () = sending => {}
            // It has nothing to say but that it goes.
            _ = frames.next() => {}
        }
    }

    /// Sends the log up to the container's end and takes input for its stdin.
    pub(crate) async fn attach(&self, mut connection: Connection, from: AttachFrom, stdin: bool) {
        let reserved = self.reserved.take();
        let cursor = match from {
            AttachFrom::Start => reserved.unwrap_or_else(|| self.log.latest_start()),
            AttachFrom::Now => self.log.newest(),
        };
        let reply = Reply::Log { position: cursor.position() };
        let input = stdin.then(|| self.stdin.attach());
        if send(&mut connection, &reply).await.is_err() {
            return;
        }
        let (mut sink, frames) = connection.split();
        let sending = async {
            if let Ok(()) = self.send_log(&mut sink, cursor, Reads::On).await {
                let update = self.updates.borrow().clone();
                let _ = sink.send(Piece::Update(update).encode()).await;
            }
        };
        tokio::select! {
            () = sending => {}
            () = receive(frames, input) => {}
        }
    }

    async fn send_log(
        &self,
        sink: &mut SplitSink<Connection, Bytes>,
        mut cursor: Cursor,
        reads: Reads,
    ) -> Result<(), Left> {
        let (mut length, mut updates) = (self.log.length(), self.updates.clone());
        let end = *length.borrow();
        let mut buffer = vec![0; CHUNK];
        loop {
            // In this order: once it is final, nothing is appended any more.
            let is_final = updates.borrow_and_update().is_final();
            if is_final {
                self.end_was_seen.notify_one();
            }
            length.borrow_and_update();
            let count = cursor.read(&mut buffer).unwrap_or_else(|error| {
                tracing::warn!(%error, "the log cannot be read");
                0
            });
            if count > 0 {
                let piece = Piece::Log(Bytes::copy_from_slice(&buffer[..count]));
                self.send_piece(sink, piece, &cursor, &mut updates).await?;
            } else if is_final || reads == Reads::SoFar {
                return Ok(());
            } else {
                tokio::select! {
                    _ = length.changed() => {}
                    _ = updates.changed() => {}
                }
            }
            if reads == Reads::SoFar && cursor.position() >= end {
                return Ok(());
            }
        }
    }

    /// Sends one piece, however long the client takes, unless it falls too far behind meanwhile.
    async fn send_piece(
        &self,
        sink: &mut SplitSink<Connection, Bytes>,
        piece: Piece,
        cursor: &Cursor,
        updates: &mut watch::Receiver<Update>,
    ) -> Result<(), Left> {
        let stalled = async {
            let _ = updates.wait_for(Update::is_final).await;
            tokio::time::sleep(STALL_DEADLINE).await;
        };
        tokio::select! {
            biased;
            sent = sink.send(piece.encode()) => sent.map_err(|_| Left::Gone),
            () = too_far_behind(&self.log, cursor) => {
                tracing::warn!(bytes = MAX_BEHIND.0, "a client that does not read the container's output is let go");
                Err(Left::Behind)
            }
            () = stalled => Err(Left::Behind),
        }
    }
}

async fn too_far_behind(log: &SharedLog, cursor: &Cursor) {
    let mut length = log.length();
    loop {
        let (bytes, files) = log.behind(cursor);
        if bytes > MAX_BEHIND.0 || files > MAX_BEHIND.1 {
            return;
        }
        if length.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Takes a client's input until it goes.
async fn receive(mut frames: SplitStream<Connection>, mut input: Option<AttachedInput>) {
    while let Some(Ok(frame)) = frames.next().await {
        match (Input::decode(frame.freeze()), &mut input) {
            (Some(Input::Stdin(bytes)), Some(input)) if !bytes.is_empty() => input.send(bytes).await,
            (Some(Input::End), Some(input)) => input.send(Bytes::new()).await,
            (Some(Input::Detach), input) => {
                if let Some(input) = input {
                    input.keep();
                }
                return;
            }
            (Some(_), _) => {}
            (None, _) => return,
        }
    }
}

/// The place at the log's beginning that is kept for the first client to attach.
#[derive(Default)]
pub(crate) struct Reserved {
    cursor: std::sync::Mutex<Option<Cursor>>,
    taken: tokio::sync::Notify,
}

impl Reserved {
    pub(crate) fn at(cursor: Option<Cursor>) -> Arc<Self> {
        Arc::new(Self { cursor: cursor.into(), ..Self::default() })
    }

    pub(crate) fn take(&self) -> Option<Cursor> {
        let cursor = self.cursor.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        self.taken.notify_one();
        cursor
    }

    /// Waits until it was taken, if there is one.
    pub(crate) async fn gone(&self) {
        let is_there = self.cursor.lock().unwrap_or_else(std::sync::PoisonError::into_inner).is_some();
        if is_there {
            self.taken.notified().await;
        }
    }
}
