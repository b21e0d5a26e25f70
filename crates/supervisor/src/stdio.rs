//! The pipes between a container and its log.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use beta9_runtime::ContainerStdio;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::watch;

use crate::log::{LogWriter, Stream};
use crate::protocol::Update;

/// Bytes read from a stream at a time: a whole pipe.
const CHUNK: usize = 64 << 10;

/// Our ends of a container's streams.
pub(crate) struct HostStdio {
    pub(crate) stdin: Option<pipe::Sender>,
    pub(crate) stdout: pipe::Receiver,
    pub(crate) stderr: pipe::Receiver,
}

/// Whether a container's stdin is a pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stdin {
    Open,
    Null,
}

/// Makes the pipes. Must be called on a tokio runtime.
pub(crate) fn open(stdin: Stdin) -> io::Result<(ContainerStdio, HostStdio)> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from);
    let (stdout, stdout_write) = pipe()?;
    let (stderr, stderr_write) = pipe()?;
    let (stdin_read, stdin_write) = match stdin {
        Stdin::Open => pipe().map(|(read, write)| (Some(read), Some(write)))?,
        Stdin::Null => (None, None),
    };
    let container = ContainerStdio { stdin: stdin_read, stdout: stdout_write, stderr: stderr_write };
    let host = HostStdio {
        stdin: stdin_write.map(pipe::Sender::from_owned_fd).transpose()?,
        stdout: receiver(stdout)?,
        stderr: receiver(stderr)?,
    };
    Ok((container, host))
}

fn receiver(fd: OwnedFd) -> io::Result<pipe::Receiver> {
    pipe::Receiver::from_owned_fd(fd)
}

/// A log that both streams write to, and whose length is announced.
#[derive(Clone)]
pub(crate) struct SharedLog {
    writer: Arc<Mutex<LogWriter>>,
    updates: watch::Sender<Update>,
}

impl SharedLog {
    pub(crate) fn new(writer: LogWriter, updates: watch::Sender<Update>) -> Self {
        Self { writer: Arc::new(Mutex::new(writer)), updates }
    }

    fn append(&self, stream: Stream, data: &[u8]) {
        match self.lock().append(stream, data) {
            Ok(length) => self.updates.send_modify(|update| update.log_bytes = length),
            // A full disk must not stop the container: its output is lost from here, and the reader is told.
            Err(error) => tracing::warn!(%error, bytes = data.len(), "container output could not be logged"),
        }
    }

    pub(crate) fn clear(&self) {
        if let Err(error) = self.lock().clear() {
            tracing::warn!(%error, "log could not be cleared");
        }
        let length = self.lock().length();
        self.updates.send_modify(|update| update.log_bytes = length);
    }

    pub(crate) fn keep(&self) {
        self.lock().keep();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, LogWriter> {
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
