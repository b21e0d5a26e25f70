//! One container, owned by one thread from its creation to its last acknowledged report.
//!
//! ```text
//! Create ──▶ prepare ──▶ created ──Start──▶ running ──its init ends──▶ drained ──▶ exited ──ExitAck──▶ gone
//!               │           │                                           (kill the rest, let the streams end)
//!               └───────────┴─ a step fails ──▶ everything undone, Failed ──▶ gone
//! ```

mod disks;
mod exec;
mod group;
mod share;
mod streams;

use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use beta9_sys::reaper::ChildExit;
use beta9_types::{ContainerId, ExecId, TerminalSize};
use beta9_wire::{ContainerSpec, FromGuest, GuestExit, GuestMoment, MountSource, RootDisk};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::container::disks::Disks;
use crate::container::exec::{Execs, Joined};
use crate::container::group::Group;
use crate::container::share::Share;
use crate::container::streams::{Streams, Whose};
use crate::failure::{Failure, Result};
use crate::machine::Machine;
use crate::stage::{Orders, Stage, set_size};
use crate::timeline::Point;
use crate::{boot, network, report};

pub(crate) use crate::container::exec::{ExecOrder, fail as fail_exec};
pub(crate) use crate::container::streams::Pipes;

/// The device by which a process serves a file system; its driver is a module.
const FUSE: (u32, u32) = (10, 229);

/// How long killed processes may take to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// How long the streams may take to reach the host after the container has ended.
const DRAIN_DEADLINE: Duration = Duration::from_secs(15);
/// How long what was written to shares may take to reach the host.
const SHARE_DEADLINE: Duration = Duration::from_secs(5);
/// How often an exit is reported until it is acknowledged.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// What the host wants a container to be.
pub(crate) struct Order {
    pub(crate) container: ContainerId,
    pub(crate) root: RootDisk,
    pub(crate) spec: Box<ContainerSpec>,
}

/// What happens to a container.
pub(crate) enum Event {
    /// The host wants its process executed.
    Start,
    /// The host sends it a signal.
    Signal { signal: i32, target: Target },
    /// Its init has ended.
    Ended(ChildExit),
    /// The host has stored the exit.
    ExitAck,
    /// The machine ends, and nobody listens any more.
    Discard,
    /// The host wants another process.
    Exec(ExecOrder),
    /// The host sends a signal to such a process.
    SignalExec(ExecId, i32),
    /// The host changes the size of a terminal: of the main process where no other is named.
    Resize(Option<ExecId>, TerminalSize),
}

/// Whom a signal is for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// The main process.
    Main,
    /// Every process of the container.
    All,
}

/// A container that is ready to run, or runs. The fields are dropped in their order, which is the order to undo them in.
struct Container {
    stage: Stage,
    terminal: Option<File>,
    execs: Execs,
    /// What every process of it is filtered by.
    seccomp: Vec<Vec<u8>>,
    streams: Streams,
    group: Group,
    share: Option<Share>,
    _disks: Disks,
}

/// Owns a container. Returns when nothing of it is left; an error is the one thing that is still to be reported.
pub(crate) fn own(
    machine: &Arc<Machine>,
    order: Order,
    events: &Receiver<Event>,
    sender: &SyncSender<Event>,
) -> Result<()> {
    let id = order.container.clone();
    let container = Container::create(machine, order, sender)?;
    machine.reports.send(&FromGuest::Created { container: id.clone() });
    if let Some((container, exit)) = container.run(machine, &id, events)? {
        container.finish(machine, &id, exit, events);
    }
    Ok(())
}

impl Container {
    fn create(machine: &Machine, order: Order, sender: &SyncSender<Event>) -> Result<Self> {
        let Order { container: id, root, spec } = order;
        if let Some(wanted) = &spec.network {
            network::set_up(wanted)?;
        }
        let place = std::path::Path::new(boot::CONTAINERS).join(id.as_str());
        let disks = Disks::mount(&place, &root, &machine.modules)?;
        let mounted = Point::now();
        let group = Group::create(&id, &spec.resources)?;
        let shared = |mount: &beta9_wire::GuestMount| {
            matches!(mount.source, MountSource::SharedDirectory(_) | MountSource::SharedFile(..))
        };
        if spec.devices.iter().any(|device| device.number == FUSE) {
            machine.modules.load("fuse");
        }
        let share = if spec.mounts.iter().any(shared) {
            Some(Share::mount(&place, &id, &machine.modules)?)
        } else {
            None
        };
        let seccomp = spec.process.seccomp.clone();
        let (mut streams, pipes) = Streams::open(&id, Whose::Main, &spec.process)?;
        let orders = Orders {
            root: disks.root(),
            share: share.as_ref().map(|share| share.path().to_owned()),
            spec: *spec,
        };
        let sender = sender.clone();
        // The queue has room: its only other writer drops what does not fit.
        let ended = move |exit| {
            let _ = sender.send(Event::Ended(exit));
        };
        let stage = Stage::prepare(&machine.reaper, orders, pipes, |pid| group.add(pid), ended);
        let shown = stage.and_then(|mut stage| {
            let terminal = stage.take_terminal();
            if let Some(terminal) = &terminal {
                streams.show(terminal)?;
            }
            Ok((stage, terminal))
        });
        match shown {
            Ok((stage, terminal)) => {
                let marks = vec![mounted.mark(GuestMoment::Mounted)];
                machine.reports.send(&FromGuest::Reached { container: id, marks });
                let execs = Execs::default();
                Ok(Self { stage, terminal, execs, seccomp, streams, group, share, _disks: disks })
            }
            Err(failure) => {
                group.kill(KILL_DEADLINE);
                Err(failure)
            }
        }
    }

    /// From created to ended; `None` if it was discarded.
    fn run(
        mut self,
        machine: &Arc<Machine>,
        id: &ContainerId,
        events: &Receiver<Event>,
    ) -> Result<Option<(Self, ChildExit)>> {
        while let Ok(event) = events.recv() {
            match event {
                Event::Start if self.stage.is_executed() => {
                    report::warn(&format!("container {id} is started already"));
                }
                Event::Start => match self.stage.execute() {
                    Ok(()) => machine.reports.send(&FromGuest::Started { container: id.clone() }),
                    Err(failure) => {
                        self.group.kill(KILL_DEADLINE);
                        return Err(failure);
                    }
                },
                Event::Signal { signal, target } => self.signal(signal, target),
                Event::Ended(exit) => return Ok(Some((self, exit))),
                Event::ExitAck => {}
                Event::Discard => break,
                Event::Exec(order) => self.exec(machine, id, order),
                Event::SignalExec(exec, signal) => self.execs.signal(&exec, signal),
                Event::Resize(Some(exec), size) => self.execs.resize(&exec, size),
                Event::Resize(None, size) => {
                    if let Some(terminal) = &self.terminal
                        && let Err(error) = set_size(terminal, size)
                    {
                        report::warn(&format!("resize a terminal: {error}"));
                    }
                }
            }
        }
        Ok(None)
    }

    fn exec(&self, machine: &Arc<Machine>, id: &ContainerId, mut order: ExecOrder) {
        let container = id.clone();
        order.process.seccomp.clone_from(&self.seccomp);
        if !self.stage.is_executed() {
            let failure = Failure::refused("the container is not started");
            return exec::fail(machine, container, order.exec, failure);
        }
        // It is this thread that learns of the init's end, so the number is still the init's, or nobody's.
        match pidfd_open(self.stage.pid(), PidfdFlags::empty()) {
            Ok(init) => {
                let joined = Joined { container, init, door: self.group.door() };
                self.execs.start(machine, joined, order);
            }
            Err(error) => {
                let failure = Failure::setup("find the container's init", &error);
                exec::fail(machine, container, order.exec, failure);
            }
        }
    }

    fn signal(&self, signal: i32, target: Target) {
        let targets: Vec<Pid> = match target {
            Target::Main => vec![self.stage.pid()],
            Target::All => self.group.processes(),
        };
        for pid in targets {
            // It may just have ended; and a number that does not exist is the host's mistake, of which it learns nothing.
            if let Err(error) = beta9_sys::signals::send(pid, signal) {
                report::warn(&format!("send signal {signal}: {error}"));
            }
        }
    }

    /// From ended to acknowledged.
    fn finish(mut self, machine: &Machine, id: &ContainerId, exit: ChildExit, events: &Receiver<Event>) {
        if !self.group.kill(KILL_DEADLINE) {
            report::warn(&format!("processes of {id} survive SIGKILL"));
        }
        let totals = self.streams.drain(Some(Instant::now() + DRAIN_DEADLINE));
        if let Some(share) = &self.share {
            share.sync(SHARE_DEADLINE);
        }
        let (code, signal) = match exit {
            ChildExit::Code(code) => (code, 0),
            ChildExit::Signal(signal) => (0, signal),
        };
        // A shell that is init reports the death of its child as 128 + SIGKILL.
        let killed = matches!(exit, ChildExit::Signal(9) | ChildExit::Code(137));
        let oom = killed && self.group.oom_kills() > 0;
        let exit = GuestExit { code, signal, oom, stdout_bytes: totals.stdout, stderr_bytes: totals.stderr };
        loop {
            machine.reports.send(&FromGuest::Exited { container: id.clone(), exit });
            let again = Instant::now() + REPORT_INTERVAL;
            loop {
                match events.recv_timeout(again.saturating_duration_since(Instant::now())) {
                    Ok(Event::ExitAck | Event::Discard) | Err(RecvTimeoutError::Disconnected) => return,
                    Ok(Event::Exec(order)) => {
                        exec::fail(
                            machine,
                            id.clone(),
                            order.exec,
                            Failure::refused("the container has ended"),
                        );
                    }
                    Ok(_) => {}
                    Err(RecvTimeoutError::Timeout) => break,
                }
            }
        }
    }
}
