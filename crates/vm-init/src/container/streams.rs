//! A process's stdin, stdout and stderr: pipes or a terminal on one side, a connection to the host each on the other.
//!
//! A thread per stream copies in one direction. Whoever is slow stops only that stream: the pipe fills, or vsock's own
//! credit runs out.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use beta9_types::{ContainerId, ExecId, chain};
use beta9_wire::{Error, Frame, MAX_DATA, Process, STREAM_PORT, StreamControl, StreamKind, StreamOpen};
use beta9_wire::{decode, read_frame, write_data, write_message};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
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

/// The running copies of one process.
pub(super) struct Streams {
    stdin: Option<File>,
    stdout: Arc<AtomicU64>,
    stderr: Arc<AtomicU64>,
    /// Gets one message from each output stream of which everything has been sent that the process wrote.
    sent: Receiver<()>,
    outputs: usize,
    /// Dropped when the process has ended, if somebody else may hold its streams open after that.
    lives: Option<io::PipeWriter>,
    /// Connections that wait for the terminal.
    waiting: Option<Waiting>,
}

struct Waiting {
    stdin: Option<File>,
    stdout: File,
    collector: Collector,
}

/// What a thread needs that copies output.
struct Collector {
    total: Arc<AtomicU64>,
    sent: Once,
    /// At its end when the process has ended, where somebody else may hold the stream open after that.
    lives: Option<io::PipeReader>,
    patience: Patience,
}

/// How long the host may take to have received a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// It writes it into a log.
    Short,
    /// It passes it on to a client, who may be slow.
    Endless,
}

/// Says once that everything has been sent, at the latest when it is dropped.
struct Once(Option<SyncSender<()>>);

impl Once {
    fn say(&mut self) {
        if let Some(sender) = self.0.take() {
            // Nobody waits any more where the container was given up.
            let _ = sender.try_send(());
        }
    }
}

impl Drop for Once {
    fn drop(&mut self) {
        self.say();
    }
}

/// Whose streams they are.
#[derive(Debug, Clone, Copy)]
pub(super) enum Whose<'a> {
    /// The container's first process, with which all others end.
    Main,
    /// Another one, which may leave processes behind.
    Exec(&'a ExecId),
}

impl Streams {
    /// Connects the streams and starts to copy. With a terminal that has to wait until [`Streams::show`].
    pub(super) fn open(
        container: &ContainerId,
        whose: Whose<'_>,
        process: &Process,
    ) -> Result<(Self, Pipes)> {
        let exec = match whose {
            Whose::Main => None,
            Whose::Exec(exec) => Some(exec),
        };
        let connect = |stream| {
            let connection = open(container, exec, stream);
            connection.context(|| format!("open {stream:?} to the host"))
        };
        let (sender, sent) = sync_channel(2);
        // The end of a process is the end of its terminal, whoever else has it open.
        let may_outlive = exec.filter(|_| process.terminal.is_none());
        let lives = may_outlive.map(|_| io::pipe()).transpose().context(|| "make a pipe")?;
        let (reader, writer) = lives.unzip();
        let patience = if exec.is_some() { Patience::Endless } else { Patience::Short };
        let collector = |total: &Arc<AtomicU64>| -> Result<Collector> {
            let lives = reader.as_ref().map(io::PipeReader::try_clone).transpose();
            let lives = lives.context(|| "keep a pipe")?;
            Ok(Collector { total: Arc::clone(total), sent: Once(Some(sender.clone())), lives, patience })
        };
        let stdin = if process.stdin { Some(connect(StreamKind::Stdin)?) } else { None };
        let held = stdin.as_ref().map(File::try_clone).transpose();
        let mut streams = Self {
            stdin: held.context(|| "keep stdin's connection")?,
            stdout: Arc::default(),
            stderr: Arc::default(),
            sent,
            outputs: 2,
            lives: writer,
            waiting: None,
        };
        let stdout = connect(StreamKind::Stdout)?;
        if process.terminal.is_some() {
            streams.outputs = 1;
            streams.waiting = Some(Waiting { stdin, stdout, collector: collector(&streams.stdout)? });
            let pipes = Pipes { stdin: Stdio::null(), stdout: Stdio::null(), stderr: Stdio::null() };
            return Ok((streams, pipes));
        }
        let stderr = connect(StreamKind::Stderr)?;
        let stdin = match stdin {
            Some(connection) => {
                let (reader, writer) = io::pipe().context(|| "make a pipe")?;
                spawn("stdin", move || feed(connection, File::from(OwnedFd::from(writer))))?;
                Stdio::from(reader)
            }
            None => Stdio::null(),
        };
        let output = |connection: File, collector: Collector| -> Result<Stdio> {
            let (reader, writer) = io::pipe().context(|| "make a pipe")?;
            collector.start(File::from(OwnedFd::from(reader)), connection)?;
            Ok(Stdio::from(writer))
        };
        let pipes = Pipes {
            stdin,
            stdout: output(stdout, collector(&streams.stdout)?)?,
            stderr: output(stderr, collector(&streams.stderr)?)?,
        };
        Ok((streams, pipes))
    }

    /// Connects them with the process's terminal.
    pub(super) fn show(&mut self, terminal: &File) -> Result<()> {
        let Some(Waiting { stdin, stdout, collector }) = self.waiting.take() else { return Ok(()) };
        let keep = || terminal.try_clone().context(|| "keep a terminal");
        if let Some(stdin) = stdin {
            let terminal = keep()?;
            spawn("typing", move || feed(stdin, terminal))?;
        }
        collector.start(keep()?, stdout)
    }

    /// Waits until everything that the process wrote has been sent, or `end`; returns how much that is. The process has
    /// ended.
    pub(super) fn drain(&mut self, end: Option<Instant>) -> Totals {
        drop(self.lives.take());
        for _ in 0..self.outputs {
            let sent = match end {
                Some(end) => self.sent.recv_timeout(end.saturating_duration_since(Instant::now())).is_ok(),
                None => self.sent.recv().is_ok(),
            };
            if !sent {
                report::warn("the host did not take the whole output in time");
                break;
            }
        }
        let total = |count: &AtomicU64| count.load(Ordering::Acquire);
        Totals { stdout: total(&self.stdout), stderr: total(&self.stderr) }
    }
}

impl Collector {
    fn start(self, from: File, to: File) -> Result<()> {
        spawn("output", move || {
            if let Err(error) = self.collect(from, to) {
                report::warn(&format!("output: {}", chain(&error)));
            }
        })
    }

    /// Copies a process's output to the host.
    fn collect(mut self, mut from: File, mut to: File) -> std::result::Result<(), Error> {
        let (mut buffer, mut scratch) = (vec![0; MAX_DATA], Vec::new());
        // Bytes that the process wrote before its end and that are still to be sent.
        let mut left: Option<u64> = None;
        loop {
            if let Some(process) = &self.lives {
                let mut ready = [
                    PollFd::new(&from, PollFlags::IN),
                    PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN),
                ];
                match poll(&mut ready, None) {
                    Ok(_) if !ready[1].revents().is_empty() => {
                        left = Some(rustix::io::ioctl_fionread(&from).unwrap_or(0));
                        self.lives = None;
                    }
                    Ok(_) | Err(Errno::INTR) if ready[0].revents().is_empty() => continue,
                    _ => {}
                }
            }
            if left == Some(0) {
                left = None;
                self.sent.say();
            }
            let length = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // The last process that had the terminal open is gone.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::IO) => break,
                Err(error) => return Err(error.into()),
            };
            write_data(&mut to, &buffer[..length], &mut scratch)?;
            self.total.fetch_add(length as u64, Ordering::Release);
            left = left.map(|left| left.saturating_sub(length as u64));
        }
        match self.patience {
            Patience::Endless => self.sent.say(),
            Patience::Short => {
                set_socket_timeout(&to, Timeout::Recv, Some(ACK_DEADLINE)).map_err(io::Error::from)?;
            }
        }
        write_message(&mut to, &StreamControl::End { total: self.total.load(Ordering::Acquire) })?;
        match read_frame(&mut to)? {
            Frame::Message(body) if matches!(decode("stream", &body), Ok(StreamControl::EndAck)) => Ok(()),
            _ => Err(Error::BadMessage("stream")),
        }
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

fn open(
    container: &ContainerId,
    exec: Option<&ExecId>,
    stream: StreamKind,
) -> std::result::Result<File, Error> {
    let mut connection = control::connect(STREAM_PORT)?;
    write_message(
        &mut connection,
        &StreamOpen { container: container.clone(), exec: exec.cloned(), stream },
    )?;
    Ok(connection)
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
