//! What the host does to a container that runs: freezing, counting, limiting, copying. A thread for each, so that none
//! keeps the machine from hearing the host.
//!
//! A container is found by its cgroup and its files by its first process, so nothing here touches the thread that owns it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use beta9_archive::{Links, Owner, Tree, Unpacking, pack, unpack};
use beta9_sys::cgroup::{Cgroup, Freeze};
use beta9_sys::processes::{describe, first_of_its_namespace};
use beta9_types::{ContainerId, CopyIn, CopyOut, LimitChange, ProcessInfo, chain};
use beta9_wire::{
    COPY_PORT, CopyOpen, Frame, FromGuest, MAX_BODY, MAX_DATA, Operation, OperationFailure, Outcome,
    StreamControl, decode, read_frame, write_data, write_message,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Timespec;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::control;
use crate::failure::{Context, Failure, Result};
use crate::machine::Machine;

/// How long the kernel may take to freeze a container: a process may be in the middle of a slow system call.
const FREEZE_DEADLINE: Duration = Duration::from_secs(5);
/// How long the host may take nothing, or say nothing, while files are copied.
const COPY_DEADLINE: Duration = Duration::from_secs(600);
/// Bytes of processes that are listed, well below a frame.
const MAX_LISTED: usize = MAX_BODY / 2;

/// Begins an operation; its outcome is reported when there is one.
pub(crate) fn begin(machine: &Arc<Machine>, container: ContainerId, number: u32, operation: Operation) {
    let report = {
        let (machine, container) = (Arc::clone(machine), container.clone());
        move |outcome| machine.reports.send(&FromGuest::Operated { container, number, outcome })
    };
    let refused = report.clone();
    let work = move || report(run(&container, number, operation).unwrap_or_else(Outcome::Failed));
    if let Err(error) = std::thread::Builder::new().name("operation".to_owned()).spawn(work) {
        let message = format!("start a thread: {error}");
        refused(Outcome::Failed(OperationFailure { is_missing: false, message }));
    }
}

impl From<Failure> for OperationFailure {
    fn from(failure: Failure) -> Self {
        Self { is_missing: false, message: failure.message }
    }
}

fn failed(error: beta9_archive::Error) -> OperationFailure {
    let is_missing = error.kind() == beta9_archive::ErrorKind::NotFound;
    OperationFailure { is_missing, message: chain(&error) }
}

fn run(
    container: &ContainerId,
    number: u32,
    operation: Operation,
) -> std::result::Result<Outcome, OperationFailure> {
    let group = Group::of(container);
    match operation {
        Operation::Pause => group.freeze(Freeze::Frozen)?,
        Operation::Resume => group.freeze(Freeze::Thawed)?,
        Operation::Usage => return Ok(Outcome::Usage(group.cgroup.usage())),
        Operation::Processes => {
            let mut room = MAX_LISTED;
            let mut all = describe(&group.cgroup.processes());
            // A container of thousands of long command lines shows those that fit into one frame.
            all.retain(|process| {
                let size = process.command.len() + size_of::<ProcessInfo>();
                room = room.saturating_sub(size);
                room > 0
            });
            return Ok(Outcome::Processes(all));
        }
        Operation::Update(change) => group.update(change)?,
        Operation::CopyOut(request) => copy_out(&group, container, number, &request)?,
        Operation::CopyIn(request) => copy_in(&group, container, number, request)?,
    }
    Ok(Outcome::Done)
}

/// A container's cgroup, of which somebody else is the owner.
struct Group {
    cgroup: Cgroup,
    directory: PathBuf,
}

impl Group {
    fn of(container: &ContainerId) -> Self {
        let path = Path::new("beta9").join(container.as_str());
        Self { cgroup: Cgroup::at(&path), directory: Path::new("/sys/fs/cgroup").join(&path) }
    }

    /// Freezes or thaws it, and waits until the kernel has done it.
    fn freeze(&self, freeze: Freeze) -> Result<()> {
        self.cgroup.freeze(freeze).context(|| "freeze or thaw the container")?;
        let wanted = match freeze {
            Freeze::Frozen => "frozen 1",
            Freeze::Thawed => "frozen 0",
        };
        let end = Instant::now() + FREEZE_DEADLINE;
        loop {
            let events = self.directory.join("cgroup.events");
            let file = File::open(&events).context(|| "watch the container's cgroup")?;
            // The read arms the event: a change after it wakes the poll below.
            if io::read_to_string(&file).is_ok_and(|text| text.contains(wanted)) {
                return Ok(());
            }
            let rest = end.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                let _ = self.cgroup.freeze(Freeze::Thawed);
                return Err(Failure::refused("a process of the container does not freeze"));
            }
            let timeout = Timespec { tv_sec: rest.as_secs() as i64, tv_nsec: rest.subsec_nanos().into() };
            let _ = poll(&mut [PollFd::from_borrowed_fd(file.as_fd(), PollFlags::PRI)], Some(&timeout));
        }
    }

    fn update(&self, change: LimitChange) -> Result<()> {
        let write = |file: &str, value: String| {
            fs::write(self.directory.join(file), &value).context(|| format!("set {file} to {value}"))
        };
        if let Some(bytes) = change.memory_bytes {
            write("memory.max", bytes.to_string())?;
        }
        if let Some(quota) = change.cpu_quota_us() {
            write("cpu.max", format!("{quota} {}", LimitChange::CPU_PERIOD_US))?;
        }
        if let Some(count) = change.pids {
            write("pids.max", count.to_string())?;
        }
        Ok(())
    }

    /// The container's files as its first process sees them.
    fn tree(&self) -> std::result::Result<Tree, OperationFailure> {
        let first = first_of_its_namespace(&self.cgroup.processes());
        let first = first.ok_or_else(|| Failure::refused("the container has ended"))?;
        Tree::open(Path::new(&format!("/proc/{}/root", first.as_raw_nonzero())), Links::InRoot)
            .map_err(failed)
    }
}

fn connect(container: &ContainerId, operation: u32) -> Result<File> {
    let open = || -> std::result::Result<File, beta9_wire::Error> {
        let mut connection = control::connect(COPY_PORT)?;
        for direction in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&connection, direction, Some(COPY_DEADLINE)).map_err(io::Error::from)?;
        }
        write_message(&mut connection, &CopyOpen { container: container.clone(), operation })?;
        Ok(connection)
    };
    open().context(|| "open a connection for the copy")
}

fn copy_out(
    group: &Group,
    container: &ContainerId,
    number: u32,
    request: &CopyOut,
) -> std::result::Result<(), OperationFailure> {
    let tree = group.tree()?;
    let connection = connect(container, number)?;
    let mut sender =
        Sender { connection, buffer: Vec::with_capacity(MAX_DATA), scratch: Vec::new(), total: 0 };
    pack(&tree, request, &mut sender).map_err(failed)?;
    sender.end().context(|| "send the archive")?;
    Ok(())
}

fn copy_in(
    group: &Group,
    container: &ContainerId,
    number: u32,
    request: CopyIn,
) -> std::result::Result<(), OperationFailure> {
    let tree = group.tree()?;
    let connection = connect(container, number)?;
    let CopyIn { path, placement, keep_owner } = request;
    let owner = if keep_owner { Owner::Kept } else { Owner::Ids { uid: 0, gid: 0 } };
    let mut receiver = Receiver { connection, frame: Vec::new(), taken: 0, total: 0, is_over: false };
    unpack(&tree, &Unpacking { path, placement, owner, name: None }, &mut receiver).map_err(failed)?;
    receiver.end().context(|| "receive the archive")?;
    Ok(())
}

/// An archive on its way to the host, in data frames.
struct Sender {
    connection: File,
    buffer: Vec<u8>,
    scratch: Vec<u8>,
    total: u64,
}

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(MAX_DATA - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..count]);
        if self.buffer.len() == MAX_DATA {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            write_data(&mut self.connection, &self.buffer, &mut self.scratch).map_err(io::Error::other)?;
            self.total += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }
}

impl Sender {
    fn end(mut self) -> std::result::Result<(), beta9_wire::Error> {
        self.flush()?;
        write_message(&mut self.connection, &StreamControl::End { total: self.total })?;
        match read_frame(&mut self.connection)? {
            Frame::Message(body) if matches!(decode("copy", &body), Ok(StreamControl::EndAck)) => Ok(()),
            _ => Err(beta9_wire::Error::BadMessage("copy")),
        }
    }
}

/// An archive on its way from the host.
struct Receiver {
    connection: File,
    frame: Vec<u8>,
    taken: usize,
    total: u64,
    is_over: bool,
}

impl Receiver {
    /// Takes the next frame in; `false` at the end.
    fn next(&mut self) -> std::result::Result<bool, beta9_wire::Error> {
        if self.is_over {
            return Ok(false);
        }
        match read_frame(&mut self.connection)? {
            Frame::Data(bytes) => {
                self.total += bytes.len() as u64;
                (self.frame, self.taken) = (bytes, 0);
                Ok(true)
            }
            Frame::Message(body) => match decode("copy", &body)? {
                StreamControl::End { total } if total == self.total => {
                    self.is_over = true;
                    Ok(false)
                }
                _ => Err(beta9_wire::Error::BadMessage("copy")),
            },
        }
    }

    /// Takes what follows the archive, so that the host's end is never cut off, and acknowledges all of it.
    fn end(mut self) -> std::result::Result<(), beta9_wire::Error> {
        while self.next()? {}
        write_message(&mut self.connection, &StreamControl::EndAck)
    }
}

impl Read for Receiver {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.frame.len() {
            if !self.next().map_err(io::Error::other)? {
                return Ok(0);
            }
        }
        let count = buffer.len().min(self.frame.len() - self.taken);
        buffer[..count].copy_from_slice(&self.frame[self.taken..self.taken + count]);
        self.taken += count;
        Ok(count)
    }
}
