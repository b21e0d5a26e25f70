//! What is said on a supervisor's socket.
//!
//! Frames are a 4-byte big-endian length and a body. The first frame of a connection is a [`Request`] in JSON, which
//! describes itself, so a worker can talk to the supervisors of an older or newer one. What follows depends on it:
//!
//! ```text
//! signal, stop, resize   one Reply
//! watch                  a Reply, then an Update at every change, until the container is exited and cleaned
//! logs                   a Reply that names the position, then Pieces of the log and at its end an End
//! attach                 the same, and at the end an Update; the client sends Inputs
//! exec                   a Reply when the process runs, then Pieces of its output and at last its Exit; the client
//!                        sends Inputs. A process that nobody attaches to ends with the Reply.
//! operate                one Reply
//! copy                   a Reply, then pieces of an archive, from the side that has it; then how it went
//! ```
//!
//! A Piece or an Input is one byte that says which, and what it holds. A connection that closes without the last of them
//! was cut off.

use beta9_types::{ExecId, Exit, SignalNumber, TerminalSize};
use oci_spec::runtime::Process;
use serde::{Deserialize, Serialize};
use tokio_util::bytes::{BufMut, Bytes, BytesMut};
use tokio_util::codec::LengthDelimitedCodec;

use crate::operate::{Answer, Copy, Operation, Refusal};
use crate::record::StateFile;

/// Longest frame: a stdin chunk or a state with its timeline.
const MAX_FRAME: usize = 1 << 20;

pub(crate) fn codec() -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().max_frame_length(MAX_FRAME).new_codec()
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub(crate) enum Request {
    /// Send a signal: to the main process, to all, or to one that `Exec` started.
    Signal {
        number: i32,
        all: bool,
        #[serde(default)]
        exec: Option<ExecId>,
    },
    /// Its stop signal or this one, and SIGKILL after the grace period. Answered at once; `watch` tells the end.
    Stop {
        grace_ms: u64,
        #[serde(default)]
        signal: Option<SignalNumber>,
    },
    /// Change the size of the terminal of the main process, or of one that `Exec` started.
    Resize { exec: Option<ExecId>, size: TerminalSize },
    /// Report every change, up to the end of the start or up to the end of the container.
    Watch { until: Until },
    /// Read the log from a position on.
    Logs { from: u64, reads: Reads },
    /// Take part in the container's streams.
    Attach { from: AttachFrom, stdin: bool },
    /// Start another process.
    Exec(Box<ExecSpec>),
    /// Do something with the running container.
    Operate { operation: Operation },
    /// Copy files; an archive follows, in either direction.
    Copy { files: Copy },
}

/// Another process for a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// Its identity.
    pub id: ExecId,
    /// What runs, as whom, with which rights.
    pub process: Process,
    /// Whether its stdin is open.
    pub stdin: bool,
    /// The size of its terminal, if it has one.
    pub terminal: Option<TerminalSize>,
    /// Whether nobody attaches to its streams.
    pub detach: bool,
}

/// Up to where a log is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reads {
    /// What there is.
    SoFar,
    /// Also what follows, up to the container's end.
    On,
}

/// From where on an attached client sees the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttachFrom {
    /// From the first byte that is kept. A container that was created for somebody to attach keeps all of them for the
    /// first who does.
    Start,
    /// From now on.
    Now,
}

/// How long a watcher stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Until {
    /// Until the container runs, or its start failed.
    Started,
    /// Until the container is over and has given everything back. A container whose record goes away with it waits a
    /// moment for such a watcher, so that its end is not missed.
    Gone,
    /// The same for an observer, for whom nothing waits.
    Over,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub(crate) enum Reply {
    Ok,
    /// The log follows from this position on.
    Log {
        position: u64,
    },
    /// How an operation went.
    Operated {
        outcome: Result<Answer, Refusal>,
    },
    Refused {
        message: String,
    },
    /// The process could not be started: the exit code that stands for it, and why.
    ExecFailed {
        code: u8,
        message: String,
    },
}

/// A change in a container's life.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Update {
    /// Its state.
    pub state: StateFile,
}

impl Update {
    /// Whether a watcher that stays `until` then has seen enough.
    pub(crate) fn satisfies(&self, until: Until) -> bool {
        match until {
            Until::Started => self.state.state.is_started(),
            Until::Gone | Until::Over => self.is_final(),
        }
    }

    /// Whether nothing can change any more.
    pub fn is_final(&self) -> bool {
        self.state.cleaned && self.state.state.exit().is_some()
    }
}

/// A piece of what a supervisor sends to who reads a log, is attached, or runs a process.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// Bytes of the log, in its format.
    Log(Bytes),
    /// The end of the log, or of what was asked for of it.
    End,
    /// The container's last change.
    Update(Update),
    /// Output of the process.
    Stdout(Bytes),
    /// Output of the process.
    Stderr(Bytes),
    /// The end of the process.
    Exit(Exit),
}

/// What a client sends that is attached or runs a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    /// Bytes for its stdin.
    Stdin(Bytes),
    /// End-of-file.
    End,
    /// The client goes and stdin stays open.
    Detach,
}

fn tagged(tag: u8, body: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(1 + body.len());
    frame.put_u8(tag);
    frame.put_slice(body);
    frame.freeze()
}

fn json(tag: u8, value: &impl Serialize) -> Bytes {
    // States and exits are plain data; where this failed all the same, the reader would find no JSON.
    tagged(tag, &serde_json::to_vec(value).unwrap_or_default())
}

impl Piece {
    pub(crate) fn encode(&self) -> Bytes {
        match self {
            Self::Log(bytes) => tagged(0, bytes),
            Self::End => tagged(1, &[]),
            Self::Update(update) => json(2, update),
            Self::Stdout(bytes) => tagged(3, bytes),
            Self::Stderr(bytes) => tagged(4, bytes),
            Self::Exit(exit) => json(5, exit),
        }
    }

    /// `None` for what no version of the protocol says.
    pub(crate) fn decode(mut frame: Bytes) -> Option<Self> {
        let tag = *frame.first()?;
        let body = frame.split_off(1);
        match tag {
            0 => Some(Self::Log(body)),
            1 if body.is_empty() => Some(Self::End),
            2 => serde_json::from_slice(&body).ok().map(Self::Update),
            3 => Some(Self::Stdout(body)),
            4 => Some(Self::Stderr(body)),
            5 => serde_json::from_slice(&body).ok().map(Self::Exit),
            _ => None,
        }
    }
}

impl Input {
    pub(crate) fn encode(&self) -> Bytes {
        match self {
            Self::Stdin(bytes) => tagged(0, bytes),
            Self::End => tagged(1, &[]),
            Self::Detach => tagged(2, &[]),
        }
    }

    /// `None` for what no version of the protocol says.
    pub(crate) fn decode(mut frame: Bytes) -> Option<Self> {
        let tag = *frame.first()?;
        let body = frame.split_off(1);
        match tag {
            0 => Some(Self::Stdin(body)),
            1 if body.is_empty() => Some(Self::End),
            2 if body.is_empty() => Some(Self::Detach),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn arbitrary_frames_never_panic_and_what_is_decoded_encodes_again(
            bytes in proptest::collection::vec(any::<u8>(), 0..50)
        ) {
            let frame = Bytes::from(bytes);
            if let Some(input) = Input::decode(frame.clone()) {
                prop_assert_eq!(input.encode(), frame.clone());
            }
            if let Some(piece) = Piece::decode(frame) {
                prop_assert_eq!(Piece::decode(piece.encode()), Some(piece));
            }
        }
    }

    proptest! {
        #[test]
        fn streams_of_frames_are_read_as_they_were_written(
            bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..5),
            cut in 0usize..20
        ) {
            let mut stream = Vec::new();
            for body in &bodies {
                stream.extend((body.len() as u32).to_be_bytes());
                stream.extend(body);
            }
            stream.truncate(stream.len().saturating_sub(cut));
            crate::fuzzing::frames(&stream);
        }
    }

    #[test]
    fn an_exit_survives() {
        let piece = Piece::Exit(Exit::signaled(9));
        assert_eq!(Piece::decode(piece.encode()), Some(piece));
    }
}
