//! The pipes of a container's processes, and the container's log at the end of two of them.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use beta9_runtime::ContainerStdio;
use beta9_types::TerminalSize;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};
use tokio_util::bytes::Bytes;

use crate::log::{Cursor, LogWriter, Stream};

/// Bytes read from a stream at a time: a whole pipe.
pub(crate) const CHUNK: usize = 64 << 10;
/// Pieces of input that wait for the container.
const INPUT_PIECES: usize = 4;

/// Our ends of a process's streams.
pub(crate) struct HostStdio {
    pub(crate) stdin: Option<pipe::Sender>,
    pub(crate) stdout: pipe::Receiver,
    pub(crate) stderr: pipe::Receiver,
}

/// Whether a process's stdin is a pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stdin {
    Open,
    Null,
}

/// Makes the pipes. Must be called on a tokio runtime.
pub(crate) fn open(stdin: Stdin, terminal: Option<TerminalSize>) -> io::Result<(ContainerStdio, HostStdio)> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from);
    let (stdout, stdout_write) = pipe()?;
    let (stderr, stderr_write) = pipe()?;
    let (stdin_read, stdin_write) = match stdin {
        Stdin::Open => pipe().map(|(read, write)| (Some(read), Some(write)))?,
        Stdin::Null => (None, None),
    };
    let container =
        ContainerStdio { stdin: stdin_read, stdout: stdout_write, stderr: stderr_write, terminal };
    let host = HostStdio {
        stdin: stdin_write.map(pipe::Sender::from_owned_fd).transpose()?,
        stdout: pipe::Receiver::from_owned_fd(stdout)?,
        stderr: pipe::Receiver::from_owned_fd(stderr)?,
    };
    Ok((container, host))
}

/// The stdin of a container's main process, to which any number of clients may write.
pub(crate) struct Input {
    state: Mutex<InputState>,
    /// A terminal is not closed when the last client goes: it is left for the next.
    stays_open: bool,
}

struct InputState {
    /// `None` once it is closed, or if it never was open.
    pieces: Option<mpsc::Sender<Bytes>>,
    attached: usize,
}

impl Input {
    /// Starts to write to `pipe` what clients send.
    pub(crate) fn open(pipe: Option<pipe::Sender>, terminal: Option<TerminalSize>) -> Self {
        let pieces = pipe.map(|pipe| {
            let (sender, receiver) = mpsc::channel(INPUT_PIECES);
            tokio::spawn(write_all(pipe, receiver));
            sender
        });
        Self { state: Mutex::new(InputState { pieces, attached: 0 }), stays_open: terminal.is_some() }
    }

    /// The container is started again: what clients send goes to `pipe` from now on.
    pub(crate) fn reopen(&self, pipe: Option<pipe::Sender>) {
        let pieces = pipe.map(|pipe| {
            let (sender, receiver) = mpsc::channel(INPUT_PIECES);
            tokio::spawn(write_all(pipe, receiver));
            sender
        });
        self.lock().pieces = pieces;
    }

    /// A client's access. Whatever it sends when stdin is closed is thrown away.
    pub(crate) fn attach(self: &Arc<Self>) -> AttachedInput {
        self.lock().attached += 1;
        AttachedInput { input: Arc::clone(self), is_kept: self.stays_open }
    }

    fn lock(&self) -> MutexGuard<'_, InputState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One client's access to a container's stdin. Its end is the end of the input, unless somebody else is attached or the
/// client said that it would come back.
pub(crate) struct AttachedInput {
    input: Arc<Input>,
    is_kept: bool,
}

impl AttachedInput {
    /// Waits until there is room for the piece; an empty one closes stdin, unless that is a terminal, which has no end.
    pub(crate) async fn send(&self, piece: Bytes) {
        if piece.is_empty() && self.input.stays_open {
            return;
        }
        let sender = self.input.lock().pieces.clone();
        if let Some(sender) = sender {
            let is_end = piece.is_empty();
            if sender.send(piece).await.is_err() || is_end {
                self.input.lock().pieces = None;
            }
        }
    }

    /// The client goes and stdin stays open.
    pub(crate) fn keep(&mut self) {
        self.is_kept = true;
    }
}

impl Drop for AttachedInput {
    fn drop(&mut self) {
        let mut state = self.input.lock();
        state.attached -= 1;
        if state.attached == 0 && !self.is_kept {
            // What it sent before is still written.
            state.pieces = None;
        }
    }
}

/// Moves pieces into the pipe, until an empty one, the last sender's end, or the reader's.
async fn write_all(mut pipe: pipe::Sender, mut pieces: mpsc::Receiver<Bytes>) {
    while let Some(piece) = pieces.recv().await {
        if piece.is_empty() || pipe.write_all(&piece).await.is_err() {
            return;
        }
    }
}

/// A log that both streams write to, and whose length is announced.
#[derive(Clone)]
pub(crate) struct SharedLog {
    writer: Arc<Mutex<LogWriter>>,
    length: watch::Sender<u64>,
    fails: Arc<std::sync::atomic::AtomicBool>,
}

impl SharedLog {
    pub(crate) fn new(writer: LogWriter) -> Self {
        Self { writer: Arc::new(Mutex::new(writer)), length: watch::Sender::new(0), fails: Arc::default() }
    }

    fn append(&self, stream: Stream, data: &[u8]) {
        use std::sync::atomic::Ordering::Relaxed;
        let appended = self.lock().append(stream, data);
        match appended {
            Ok(length) => {
                self.length.send_replace(length);
                self.fails.store(false, Relaxed);
            }
            // A full disk must not stop the container: its output is lost from here, and the reader is told, once.
            Err(error) if !self.fails.swap(true, Relaxed) => {
                tracing::warn!(%error, "container output cannot be logged and is lost");
            }
            Err(_) => {}
        }
    }

    pub(crate) fn clear(&self) {
        if let Err(error) = self.lock().clear() {
            tracing::warn!(%error, "log could not be cleared");
        }
        let length = self.lock().length();
        self.length.send_replace(length);
    }

    /// What is in the log now stays there when a start fails.
    pub(crate) fn keep(&self) {
        self.lock().keep();
    }

    /// The log's length as it grows.
    pub(crate) fn length(&self) -> watch::Receiver<u64> {
        self.length.subscribe()
    }

    /// A reader at the first byte of the container's latest start that is kept.
    pub(crate) fn latest_start(&self) -> Cursor {
        self.lock().latest_start()
    }

    /// A reader behind the last byte.
    pub(crate) fn newest(&self) -> Cursor {
        self.lock().newest()
    }

    /// A reader at `position`.
    pub(crate) fn at(&self, position: u64) -> Cursor {
        self.lock().at(position)
    }

    /// How many bytes and files of the log a reader has not seen yet.
    pub(crate) fn behind(&self, cursor: &Cursor) -> (u64, u64) {
        let writer = self.lock();
        (writer.length().saturating_sub(cursor.position()), writer.files_behind(cursor))
    }

    fn lock(&self) -> MutexGuard<'_, LogWriter> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Moves one stream into the log until the last writer has closed it.
pub(crate) async fn pump(mut from: pipe::Receiver, stream: Stream, log: SharedLog) {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) => return,
            Ok(count) => log.append(stream, &buffer[..count]),
            Err(error) => {
                tracing::warn!(%error, "container stream broke");
                return;
            }
        }
    }
}
