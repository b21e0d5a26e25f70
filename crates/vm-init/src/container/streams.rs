//! The container's stdin, stdout and stderr: pipes on one side, a connection to the host each on the other.
//!
//! A thread per stream copies in one direction. Whoever is slow stops only that stream: the pipe fills, or vsock's own
//! credit runs out.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use beta9_types::{ContainerId, chain};
use beta9_wire::{Error, Frame, MAX_DATA, STREAM_PORT, StreamControl, StreamKind, StreamOpen};
use beta9_wire::{decode, read_frame, write_data, write_message};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::control;
use crate::failure::{Context, Result};
use crate::report;

/// How long the host has to say that it has everything.
const ACK_DEADLINE: Duration = Duration::from_secs(10);

/// The container's ends of the pipes.
pub(crate) struct Pipes {
    pub(crate) stdin: Stdio,
    pub(crate) stdout: Stdio,
    pub(crate) stderr: Stdio,
}

/// Bytes that the host was sent.
pub(super) struct Totals {
    pub(super) stdout: u64,
    pub(super) stderr: u64,
}

/// The running copies of one container.
pub(super) struct Streams {
    stdin: Option<File>,
    stdout: Arc<AtomicU64>,
    stderr: Arc<AtomicU64>,
    /// Gets one message from each output stream that has ended.
    ended: Receiver<()>,
}

impl Streams {
    /// Connects the streams and starts to copy.
    pub(super) fn open(container: &ContainerId, with_stdin: bool) -> Result<(Self, Pipes)> {
        let (done, ended) = sync_channel(2);
        let connect = |stream| {
            let connection = open(container, stream);
            connection.context(|| format!("open {stream:?} to the host"))
        };
        let mut held = None;
        let stdin = if with_stdin {
            let connection = connect(StreamKind::Stdin)?;
            let (reader, writer) = io::pipe().context(|| "make a pipe")?;
            held = Some(connection.try_clone().context(|| "keep stdin's connection")?);
            spawn("stdin", move || feed(connection, File::from(OwnedFd::from(writer))))?;
            Stdio::from(reader)
        } else {
            Stdio::null()
        };
        let output = |stream, done: SyncSender<()>| -> Result<(Stdio, Arc<AtomicU64>)> {
            let connection = connect(stream)?;
            let (reader, writer) = io::pipe().context(|| "make a pipe")?;
            let total = Arc::new(AtomicU64::new(0));
            let count = Arc::clone(&total);
            spawn("output", move || {
                if let Err(error) = collect(reader, connection, &count) {
                    report::warn(&format!("{stream:?}: {}", chain(&error)));
                }
                // Nobody waits any more where the container was given up.
                let _ = done.send(());
            })?;
            Ok((Stdio::from(writer), total))
        };
        let (stdout, stdout_total) = output(StreamKind::Stdout, done.clone())?;
        let (stderr, stderr_total) = output(StreamKind::Stderr, done)?;
        let streams = Self { stdin: held, stdout: stdout_total, stderr: stderr_total, ended };
        Ok((streams, Pipes { stdin, stdout, stderr }))
    }

    /// Waits until the output has been sent and received, or `end`; returns how much was.
    pub(super) fn drain(&mut self, end: Instant) -> Totals {
        for _ in 0..2 {
            if self.ended.recv_timeout(end.saturating_duration_since(Instant::now())).is_err() {
                report::warn("the host did not take the whole output in time");
                break;
            }
        }
        let total = |count: &AtomicU64| count.load(Ordering::Acquire);
        Totals { stdout: total(&self.stdout), stderr: total(&self.stderr) }
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        if let Some(connection) = &self.stdin {
            // Ends the thread that reads from it.
            let _ = rustix::net::shutdown(connection, rustix::net::Shutdown::Both);
        }
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(body).map(drop).context(|| "start a thread")
}

fn open(container: &ContainerId, stream: StreamKind) -> std::result::Result<File, Error> {
    let mut connection = control::connect(STREAM_PORT)?;
    write_message(&mut connection, &StreamOpen { container: container.clone(), exec: None, stream })?;
    Ok(connection)
}

/// Copies the container's output to the host.
fn collect(mut from: io::PipeReader, mut to: File, total: &AtomicU64) -> std::result::Result<(), Error> {
    let (mut buffer, mut scratch) = (vec![0; MAX_DATA], Vec::new());
    loop {
        let length = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        write_data(&mut to, &buffer[..length], &mut scratch)?;
        total.fetch_add(length as u64, Ordering::Release);
    }
    write_message(&mut to, &StreamControl::End { total: total.load(Ordering::Acquire) })?;
    set_socket_timeout(&to, Timeout::Recv, Some(ACK_DEADLINE)).map_err(io::Error::from)?;
    match read_frame(&mut to)? {
        Frame::Message(body) if matches!(decode("stream", &body), Ok(StreamControl::EndAck)) => Ok(()),
        _ => Err(Error::BadMessage("stream")),
    }
}

/// Copies the host's input to the container.
fn feed(mut from: File, to: File) {
    let mut to = Some(to);
    let mut total = 0;
    loop {
        match read_frame(&mut from) {
            Ok(Frame::Data(data)) => {
                total += data.len() as u64;
                let refused = to.as_mut().is_some_and(|pipe| pipe.write_all(&data).is_err());
                if refused {
                    // The container closed its stdin. What is on its way is read and thrown away.
                    to = None;
                    if write_message(&mut from, &StreamControl::Refused).is_err() {
                        return;
                    }
                }
            }
            Ok(Frame::Message(body)) => {
                match decode("stream", &body) {
                    Ok(StreamControl::End { total: announced }) if announced == total => {
                        drop(to.take());
                        // A host that is gone does not need it.
                        let _ = write_message(&mut from, &StreamControl::EndAck);
                    }
                    _ => report::warn("stdin: the host broke the protocol"),
                }
                return;
            }
            // The host is gone, or the container: either way there is no more input.
            Err(_) => return,
        }
    }
}
