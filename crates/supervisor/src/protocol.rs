//! What is said on a supervisor's socket.
//!
//! Frames are a 4-byte big-endian length and a body. The first frame of a connection is a [`Request`] in JSON, which
//! describes itself, so a worker can talk to the supervisors of an older or newer one. What follows depends on it:
//!
//! ```text
//! signal, stop   one Reply
//! watch          a Reply, then an Update at every change, until the container is exited and cleaned
//! operate        one Reply
//! copy           a Reply, then pieces of an archive, from the side that has it; then how it went
//! stdin          a Reply, then the client's raw frames; an empty one is end-of-file
//! ```

use serde::{Deserialize, Serialize};
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
    /// Send a signal.
    Signal { number: i32, all: bool },
    /// SIGTERM, and SIGKILL after the grace period. Answered at once; `watch` tells the end.
    Stop { grace_ms: u64 },
    /// Report every change, up to the end of the start or up to the end of the container.
    Watch { until: Until },
    /// Become the container's stdin.
    Stdin,
    /// Do something with the running container.
    Operate { operation: Operation },
    /// Copy files; an archive follows, in either direction.
    Copy { files: Copy },
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
    Refused {
        message: String,
    },
    /// How an operation went.
    Operated {
        outcome: Result<Answer, Refusal>,
    },
}

/// A change in a container's life.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Update {
    /// Its state.
    pub state: StateFile,
    /// Bytes of its log so far.
    pub log_bytes: u64,
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
