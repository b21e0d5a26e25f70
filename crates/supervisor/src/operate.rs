//! Operating the container: what a client asks for is done by the runtime, and freezing it is a change of its state.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use beta9_runtime::Operations;
use beta9_types::{
    ContainerState, CopyIn, CopyOut, DiskRate, LimitChange, PortChange, ProcessInfo, RestartPolicy, Usage,
};
use futures_util::{SinkExt, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio_util::bytes::{BufMut, Bytes, BytesMut};

use crate::server::Connection;

/// Something to do with a running container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "operation", rename_all = "snake_case")]
pub enum Operation {
    /// Freeze every process.
    Pause,
    /// Let frozen processes go on.
    Resume,
    /// Say what it uses.
    Usage,
    /// List its processes.
    Processes,
    /// Change its limits.
    Update {
        /// To what.
        change: LimitChange,
    },
    /// Change which of its ports the host serves.
    Ports {
        /// How.
        change: PortChange,
    },
    /// Change how much memory it keeps when the host runs short.
    ReserveMemory {
        /// To how much.
        bytes: u64,
    },
    /// Change what it may do on its own disks.
    LimitDisks {
        /// To what.
        rate: DiskRate,
    },
    /// Change what happens when it ends.
    Restart {
        /// To what.
        policy: RestartPolicy,
    },
}

/// The answer to an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// Done, and there is nothing to say.
    Done,
    /// What it uses.
    Usage {
        /// By its counters.
        usage: Usage,
    },
    /// What runs in it.
    Processes {
        /// Ordered by their ids.
        processes: Vec<ProcessInfo>,
    },
}

/// Files to copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "copy", rename_all = "snake_case")]
pub enum Copy {
    /// From the container.
    Out(CopyOut),
    /// Into the container.
    In(CopyIn),
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Whether it names something that does not exist.
    #[serde(default)]
    pub is_missing: bool,
    /// One sentence.
    pub message: String,
}

impl Refusal {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { is_missing: false, message: message.into() }
    }
}

impl From<beta9_runtime::Error> for Refusal {
    fn from(error: beta9_runtime::Error) -> Self {
        Self { is_missing: error.kind() == beta9_runtime::ErrorKind::NotFound, message: error.chain() }
    }
}

/// What clients ask of a container's operations.
pub(crate) enum Ask {
    Operation {
        operation: Operation,
        done: oneshot::Sender<Result<Answer, Refusal>>,
    },
    /// The way to copy; given out, because a copy takes as long as its client.
    Copying {
        done: oneshot::Sender<Result<Arc<dyn Operations>, Refusal>>,
    },
}

/// An operation that is over.
pub(crate) struct Over {
    pub(crate) operation: Operation,
    pub(crate) outcome: Result<Answer, Refusal>,
    pub(crate) done: oneshot::Sender<Result<Answer, Refusal>>,
}

/// Does it.
pub(crate) async fn run(
    operations: Arc<dyn Operations>,
    operation: Operation,
    done: oneshot::Sender<Result<Answer, Refusal>>,
) -> Over {
    let outcome = match operation {
        Operation::Pause => operations.pause().await.map(|()| Answer::Done),
        Operation::Resume => operations.resume().await.map(|()| Answer::Done),
        Operation::Usage => operations.usage().await.map(|usage| Answer::Usage { usage }),
        Operation::Processes => operations.processes().await.map(|processes| Answer::Processes { processes }),
        Operation::Update { change } => operations.update(change).await.map(|()| Answer::Done),
        Operation::ReserveMemory { bytes } => operations.reserve_memory(bytes).await.map(|()| Answer::Done),
        Operation::LimitDisks { rate } => operations.limit_disks(rate).await.map(|()| Answer::Done),
        // The owner of the container has done it: no runtime knows of policies, or of ports.
        Operation::Restart { .. } | Operation::Ports { .. } => Ok(Answer::Done),
    };
    Over { operation, outcome: outcome.map_err(Refusal::from), done }
}

/// Why a container in this state is not to be frozen or thawed; `None` if it may be.
pub(crate) fn refusal(operation: &Operation, state: &ContainerState, is_changing: bool) -> Option<Refusal> {
    let text = match (operation, state) {
        (Operation::Pause | Operation::Resume, _) if is_changing => {
            "the container is being paused or unpaused: wait for that"
        }
        (Operation::Pause, ContainerState::Paused { .. }) => "the container is paused already",
        (Operation::Resume, ContainerState::Running { .. }) => "the container is not paused",
        _ => return None,
    };
    Some(Refusal::new(text))
}

/// What follows on a connection that copies. Its first byte says what a frame is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CopyPiece {
    /// A part of the archive.
    Data(Bytes),
    /// The archive is whole.
    End,
    /// The copy is done.
    Done,
    /// It failed.
    Failed(Refusal),
}

impl CopyPiece {
    pub(crate) fn encode(&self) -> Bytes {
        let (kind, body) = match self {
            Self::Data(bytes) => (0, bytes.clone()),
            Self::End => (1, Bytes::new()),
            Self::Done => (2, Bytes::new()),
            // A sentence and a flag can always be written.
            Self::Failed(refusal) => (3, serde_json::to_vec(refusal).unwrap_or_default().into()),
        };
        let mut frame = BytesMut::with_capacity(body.len() + 1);
        frame.put_u8(kind);
        frame.extend_from_slice(&body);
        frame.freeze()
    }

    pub(crate) fn decode(mut frame: Bytes) -> Option<Self> {
        let kind = *frame.first()?;
        let body = frame.split_off(1);
        match kind {
            0 => Some(Self::Data(body)),
            1 if body.is_empty() => Some(Self::End),
            2 if body.is_empty() => Some(Self::Done),
            3 => serde_json::from_slice(&body).ok().map(Self::Failed),
            _ => None,
        }
    }
}

/// Bytes of an archive in one frame.
pub(crate) const CHUNK: usize = 64 << 10;

/// Copies between a client and the runtime, until it is done, fails, or the client is gone.
pub(crate) async fn copy(connection: Connection, operations: Arc<dyn Operations>, copy: Copy) {
    let (mut sink, mut frames) = connection.split();
    let verdict = match copy {
        Copy::Out(request) => match pipe() {
            Ok((from, to)) => {
                let copying = operations.copy_out(request, to);
                let sending = async {
                    let mut from = pipe::Receiver::from_owned_fd(from)?;
                    let mut buffer = vec![0; CHUNK];
                    loop {
                        let count = from.read(&mut buffer).await?;
                        if count == 0 {
                            return Ok::<_, io::Error>(());
                        }
                        sink.send(CopyPiece::Data(Bytes::copy_from_slice(&buffer[..count])).encode()).await?;
                    }
                };
                match tokio::join!(copying, sending) {
                    (_, Err(_)) => return,
                    (copied, Ok(())) => copied.map_err(Refusal::from),
                }
            }
            Err(error) => Err(Refusal::new(format!("make a pipe: {error}"))),
        },
        Copy::In(request) => match pipe() {
            Ok((from, to)) => {
                let copying = operations.copy_in(request, from);
                let feeding = async {
                    let Ok(mut to) = pipe::Sender::from_owned_fd(to) else { return };
                    // A connection that ends without `End` cuts the archive off, which whoever unpacks it sees.
                    while let Some(Ok(frame)) = frames.next().await {
                        match CopyPiece::decode(frame.freeze()) {
                            Some(CopyPiece::Data(bytes)) if to.write_all(&bytes).await.is_ok() => {}
                            _ => return,
                        }
                    }
                };
                tokio::pin!(copying);
                let copied = tokio::select! {
                    copied = &mut copying => copied,
                    () = feeding => copying.await,
                };
                copied.map_err(Refusal::from)
            }
            Err(error) => Err(Refusal::new(format!("make a pipe: {error}"))),
        },
    };
    let last = match verdict {
        Ok(()) => CopyPiece::Done,
        Err(refusal) => CopyPiece::Failed(refusal),
    };
    let _ = sink.send(last.encode()).await;
    let _ = sink.close().await;
}

/// A pipe: the end to read, which a runtime may read with blocking calls, and the end to write.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (from, to) = io::pipe()?;
    Ok((from.into(), to.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_survive_their_frames() {
        let failed = Refusal { is_missing: true, message: "no such file".to_owned() };
        for piece in [
            CopyPiece::Data(Bytes::from_static(b"x")),
            CopyPiece::End,
            CopyPiece::Done,
            CopyPiece::Failed(failed),
        ] {
            assert_eq!(CopyPiece::decode(piece.encode()), Some(piece));
        }
        for bad in [&b""[..], b"\x09", b"\x01x", b"\x03{"] {
            assert_eq!(CopyPiece::decode(Bytes::copy_from_slice(bad)), None);
        }
    }

    #[test]
    fn only_what_changes_something_is_done() {
        let (running, paused) = (ContainerState::Running { pid: 1 }, ContainerState::Paused { pid: 1 });
        assert!(refusal(&Operation::Pause, &running, false).is_none());
        assert!(refusal(&Operation::Resume, &paused, false).is_none());
        assert!(refusal(&Operation::Usage, &paused, true).is_none());
        for (operation, state, is_changing) in [
            (Operation::Pause, &paused, false),
            (Operation::Resume, &running, false),
            (Operation::Pause, &running, true),
        ] {
            assert!(refusal(&operation, state, is_changing).is_some());
        }
    }
}
