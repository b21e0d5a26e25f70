//! A container's first process, before it executes the container's program.
//!
//! PID 1 starts its own program again as the init of a new PID namespace. That process has one thread, so it can move
//! itself into the other namespaces, make the container's file tree and drop its rights, step by step, and report what
//! failed. Both sides talk over one socket:
//!
//! ```text
//! PID 1                          stage
//!   Orders     ────────────▶
//!              ◀────────────     Prepared, or Failed and it ends
//!   Execute    ────────────▶
//!              ◀────────────     the socket closes by the exec, or Failed and it ends
//! ```
//!
//! A process that joins a container is started alike. It enters namespaces instead of making them, is told only what to
//! run, and executes it at once. A terminal is made by either where only it can be: in the container's own file tree. Its
//! other end comes over the socket as well.

mod identity;
mod inside;
mod joining;
mod mounts;
mod paths;
mod program;
mod terminal;
mod tree;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use beta9_sys::machine::children_in_new_pid_namespace;
use beta9_sys::passing::receive_descriptor;
use beta9_sys::program::pass_descriptor;
use beta9_sys::reaper::{ChildExit, Reaper};
use beta9_wire::{ContainerSpec, Error, Frame, Process, decode, read_frame, write_message};
use rustix::process::Pid;
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use serde::{Deserialize, Serialize};

use crate::container::Pipes;
use crate::failure::{Context, Failure, Result};

pub(crate) use inside::run;
pub(crate) use joining::join;
pub(crate) use terminal::set_size;

/// How long the stage may take for either of its two steps. The first may look into a share of the host.
const DEADLINE: Duration = Duration::from_secs(30);

/// What the stage is to prepare.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Orders {
    /// The directory that becomes `/`.
    pub(crate) root: PathBuf,
    /// Where the container's share is mounted, if it has one.
    pub(crate) share: Option<PathBuf>,
    /// Everything else.
    pub(crate) spec: ContainerSpec,
}

/// The stage's answers.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Prepared,
    Failed(Failure),
    /// A message with a descriptor follows: the other end of the terminal.
    Terminal,
}

/// The word that lets a prepared stage execute its program.
#[derive(Debug, Serialize, Deserialize)]
struct Execute;

/// A stage, seen from PID 1; after [`Stage::execute`], the container's main process.
pub(crate) struct Stage {
    pid: Pid,
    socket: Option<UnixStream>,
    terminal: Option<File>,
}

impl Stage {
    /// Starts a stage, lets `place` put it into its cgroup, and waits until it has prepared everything.
    ///
    /// On an error it is on its way to its end, by itself.
    pub(crate) fn prepare(
        reaper: &Reaper,
        orders: Orders,
        pipes: Pipes,
        place: impl FnOnce(Pid) -> Result<()>,
        on_exit: impl FnOnce(ChildExit) + Send + 'static,
    ) -> Result<Self> {
        let (mut socket, theirs) = UnixStream::pair().context(|| "make a socket pair")?;
        socket.set_read_timeout(Some(DEADLINE)).context(|| "set a deadline")?;
        socket.set_write_timeout(Some(DEADLINE)).context(|| "set a deadline")?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("beta9-vm-init").arg("stage").env_clear();
        command.stdin(pipes.stdin).stdout(pipes.stdout).stderr(pipes.stderr);
        pass_descriptor(&mut command, theirs.into());
        let pid = on_fresh_thread(reaper, command, children_in_new_pid_namespace, on_exit)
            .context(|| "start the container's init")?;
        place(pid)?;
        write_message(&mut socket, &orders).context(|| "tell the container's init its orders")?;
        let mut terminal = None;
        match next(&mut socket, &mut terminal)? {
            Some(Answer::Prepared) => Ok(Self { pid, socket: Some(socket), terminal }),
            Some(Answer::Failed(failure)) => Err(failure),
            _ => Err(Failure::refused("the container's init ended while it prepared the container")),
        }
    }

    /// Starts another process in the container that `container`, a handle of its init, belongs to; returns when its
    /// program has been executed.
    pub(crate) fn join(
        reaper: &Reaper,
        container: &OwnedFd,
        process: &Process,
        pipes: Pipes,
        place: impl FnOnce(Pid) -> Result<()>,
        on_exit: impl FnOnce(ChildExit) + Send + 'static,
    ) -> Result<(Pid, Option<File>)> {
        let (mut socket, theirs) = UnixStream::pair().context(|| "make a socket pair")?;
        socket.set_read_timeout(Some(DEADLINE)).context(|| "set a deadline")?;
        socket.set_write_timeout(Some(DEADLINE)).context(|| "set a deadline")?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("beta9-vm-init").arg("join").env_clear();
        command.stdin(pipes.stdin).stdout(pipes.stdout).stderr(pipes.stderr);
        pass_descriptor(&mut command, theirs.into());
        pass_descriptor(&mut command, container.try_clone().context(|| "keep the container")?);
        let enter = || {
            let kind = ThreadNameSpaceType::PROCESS_ID;
            move_into_thread_name_spaces(container.as_fd(), kind).map_err(io::Error::from)
        };
        let pid = on_fresh_thread(reaper, command, enter, on_exit).context(|| "start a process")?;
        place(pid)?;
        write_message(&mut socket, process).context(|| "tell a process what it is to run")?;
        let mut terminal = None;
        match next(&mut socket, &mut terminal)? {
            None => Ok((pid, terminal)),
            Some(Answer::Failed(failure)) => Err(failure),
            Some(_) => Err(Failure::refused("a process that joins is confused")),
        }
    }

    /// Our end of its terminal, if it has one. Only once.
    pub(crate) fn take_terminal(&mut self) -> Option<File> {
        self.terminal.take()
    }

    /// The process.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether it was told to execute its program.
    pub(crate) fn is_executed(&self) -> bool {
        self.socket.is_none()
    }

    /// Lets it execute its program; returns when it has. Only once.
    pub(crate) fn execute(&mut self) -> Result<()> {
        let mut socket = self.socket.take().ok_or_else(|| Failure::refused("it is started already"))?;
        write_message(&mut socket, &Execute).context(|| "let the container's init go on")?;
        match answer(&mut socket)? {
            None => Ok(()),
            Some(Answer::Failed(failure)) => Err(failure),
            Some(_) => Err(Failure::refused("the container's init is confused")),
        }
    }
}

/// The stage's next answer; `None` when it has closed the socket.
fn answer(socket: &mut UnixStream) -> Result<Option<Answer>> {
    match read_frame(socket) {
        Ok(Frame::Message(body)) => decode("stage", &body).map(Some).context(|| "hear the container's init"),
        Ok(Frame::Data(_)) => Err(Failure::refused("the container's init is confused")),
        Err(Error::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error).context(|| "wait for the container's init"),
    }
}

/// The same, with a terminal that comes before it taken in.
fn next(socket: &mut UnixStream, terminal: &mut Option<File>) -> Result<Option<Answer>> {
    match answer(socket)? {
        Some(Answer::Terminal) => {
            let received = receive_descriptor(&*socket, 1).context(|| "receive a terminal")?;
            *terminal = Some(received.into());
            answer(socket)
        }
        other => Ok(other),
    }
}

/// Starts a child after `enter` has put the children of its thread into a PID namespace.
fn on_fresh_thread(
    reaper: &Reaper,
    mut command: Command,
    enter: impl FnOnce() -> io::Result<()> + Send,
    on_exit: impl FnOnce(ChildExit) + Send + 'static,
) -> io::Result<Pid> {
    // A fresh thread, because its children are bound to the namespace from then on.
    let spawn = move || {
        enter()?;
        reaper.spawn(&mut command, on_exit).map(|spawned| spawned.pid)
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, spawn)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that starts it panicked")))
    })
}
