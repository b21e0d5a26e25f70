//! The life of one container, from the supervisor's first instruction to its last.

mod running;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use beta9_runtime::{Container, ContainerStdio, CreateRequest, Marks, Rootfs, Runtime};
use beta9_sys::cgroup::Cgroup;
use beta9_sys::reaper::Reaper;
use beta9_types::{ContainerId, ContainerState, Exit, Phase, TerminalSize};
use oci_spec::runtime::Spec;
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::task::TaskTracker;

use crate::attach::Reserved;
use crate::directory::{ContainerDirectory, Socket};
use crate::error::{Error, ErrorKind, Result, chain};
use crate::exec::Execs;
use crate::lock::lock_within;
use crate::log::{LogWriter, Stream};
use crate::network::Network;
use crate::operate::{Ask, Refusal};
use crate::protocol::Update;
use crate::record::{Record, StateFile};
use crate::restart::Restarts;
use crate::server::{Command, Server};
use crate::stdio::{self, HostStdio, Input, SharedLog, Stdin};
use crate::volumes::OwnVolumes;
use crate::{lend, recover, rootfs, runtimes};

/// What the worker waits for on the supervisor's stdout: the socket accepts clients.
pub(crate) const READY: &str = "ready\n";

const SIGKILL: i32 = rustix::process::Signal::KILL.as_raw();

/// Bytes still in the pipes when the process is gone are read within this time.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
/// How long a record that goes away with its container waits for somebody to see the end.
const LINGER: Duration = Duration::from_secs(5);
/// A supervisor whose container is over ends within this time, so that the container can be started again.
const HANDOVER: Duration = Duration::from_secs(12);
/// The grace that a supervisor grants when it is told to end itself.
const OWN_GRACE: Duration = Duration::from_secs(10);

/// What a supervisor is started for. By the time that it owns the container somebody else may have been quicker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To start the container, which was created or is over. After a supervisor that died it only cleans up.
    Start,
    /// To clean up after a supervisor that died, and nothing else: what is over stays over.
    Recover,
    /// To lend out the files of a container that does not run, where only its runtime can read them.
    Lend,
}

/// Runs the supervisor of the container in `directory`, or cleans up after one that died.
///
/// Must be called while the process has one thread: it moves the process into a mount namespace of its own.
pub fn supervise(directory: PathBuf, purpose: Purpose) -> Result<()> {
    let directory = ContainerDirectory::at(directory);
    let Some(_lock) = lock_within(&directory, HANDOVER)? else {
        let text = format!("another supervisor owns {}", directory.path().display());
        return Err(Error::new(ErrorKind::Refused, text));
    };
    let record = Record::require(&directory)?;
    let state = StateFile::read(&directory)?;
    let is_over = state.state == ContainerState::Created || (state.cleaned && state.state.exit().is_some());
    let was_lent = directory.lending().exists();
    match purpose {
        Purpose::Recover if is_over && !was_lent => return Ok(()),
        Purpose::Lend if !is_over => {
            let text = "the container is being started or cleaned up: try again";
            return Err(Error::new(ErrorKind::Refused, text));
        }
        _ => {}
    }

    let mounts = beta9_sys::namespaces::current_mounts()
        .map_err(|e| Error::caused(ErrorKind::File, "remember the host's mounts", e))?;
    beta9_sys::namespaces::enter_private_mounts()
        .map_err(|e| Error::caused(ErrorKind::File, "enter a mount namespace of its own", e))?;
    leave_the_workers_cgroup();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|e| Error::caused(ErrorKind::File, "become a child subreaper", std::io::Error::from(e)))?;
    let reaper = Reaper::start().map_err(|e| Error::caused(ErrorKind::File, "start the reaper", e))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::caused(ErrorKind::File, "start an event loop", e))?;
    let network = Network::new(mounts, &reaper);
    runtime.block_on(async {
        if !is_over {
            return recover::clean_up(&directory, &record, state, &reaper, network).await;
        }
        if was_lent {
            recover::sweep(&directory, &record, &reaper).await?;
        }
        match purpose {
            Purpose::Start => live(directory, record, &reaper, network).await,
            Purpose::Lend => lend::serve(directory, record, &reaper).await,
            Purpose::Recover => Ok(()),
        }
    })
}

async fn live(
    directory: ContainerDirectory,
    record: Record,
    reaper: &Reaper,
    network: Network,
) -> Result<()> {
    let marks = Marks::default();
    marks.reach(Phase::SupervisorStarted);
    let starting = StateFile { state: ContainerState::Starting, marks: marks.all(), ..StateFile::created() };
    let starting = StateFile { cleaned: false, ..starting };
    starting.write(&directory)?;
    let (updates, watcher) = watch::channel(Update { state: starting });
    let (commands, inbox) = mpsc::channel(16);
    let log = SharedLog::new(LogWriter::create(&directory.log(), record.log)?);
    let stdin = if record.request.stdin { Stdin::Open } else { Stdin::Null };
    let terminal = record.request.terminal;
    let (first, first_stdin) = Streams::open(stdin, terminal, &log)
        .map_err(|e| Error::caused(ErrorKind::File, "make the container's pipes", e))?;
    // Behind what an earlier start wrote.
    let reserved = Reserved::at(record.request.attach.then(|| log.newest()));
    let execs = Arc::new(Execs::default());

    stop_on_terminate(commands.clone())?;
    let server = Arc::new(Server {
        commands,
        updates: watcher,
        stdin: Arc::new(Input::open(first_stdin, terminal)),
        log: log.clone(),
        reserved: Arc::clone(&reserved),
        attached: TaskTracker::new(),
        execs: Arc::clone(&execs),
        end_was_seen: Notify::new(),
    });
    let (open, closing) = oneshot::channel();
    let serving = tokio::spawn(Arc::clone(&server).run(directory.listen(Socket::Supervisor)?, closing));
    announce_ready();

    let cgroup = cgroup(&record.id);
    let runtime = runtimes::build(record.runtime, &record.settings, reaper)
        .map_err(|e| Error::caused(ErrorKind::Refused, "set up the runtime", e))?;
    let (reaper, restarts) = (reaper.clone(), Restarts::new(record.request.options.life.restart));
    let mut life =
        Life { directory, record, marks, updates, inbox, cgroup, runtime, reaper, restarts, execs, network };
    // What clients write goes to the latest start.
    let again = || {
        log.keep();
        let (streams, input) = Streams::open(stdin, terminal, &log)?;
        server.stdin.reopen(input);
        Ok(streams)
    };
    life.run(first, again, &log).await;
    // Whoever ran the container may not have attached yet when it was quick; then its output is here and nowhere else.
    let _ = timeout(LINGER, reserved.gone()).await;
    drop(reserved.take());
    if life.record.request.auto_remove {
        // The same is true of its end.
        let _ = timeout(LINGER, server.end_was_seen.notified()).await;
        recover::forget(&life.directory, &life.record, OwnVolumes::Remove);
    }
    life.directory.unlisten(Socket::Supervisor);
    drop(open);
    let _ = serving.await;
    Ok(())
}

/// Supervisors are in a group of their own: what the worker's group is limited to, or is killed with, is not theirs.
const OWN_GROUP: &str = "beta9.supervisors";

/// Leaves the worker's cgroup. One that cannot be left costs accounting, not the container.
fn leave_the_workers_cgroup() {
    let group = Cgroup::at(OWN_GROUP);
    if let Err(error) = group.create().and_then(|()| group.add(std::process::id())) {
        tracing::warn!(error = chain(&error), "supervisor stays in the worker's cgroup");
    }
}

/// The container's cgroup on the host, below the root of each hierarchy.
pub(crate) fn cgroup(id: &ContainerId) -> Cgroup {
    Cgroup::at(PathBuf::from("beta9").join(id.as_str()))
}

/// The container's cgroup in the form of an OCI `linux.cgroupsPath`.
pub fn cgroup_oci_path(id: &ContainerId) -> PathBuf {
    cgroup(id).oci_path()
}

/// Tells the worker, which may be gone already.
pub(crate) fn announce_ready() {
    let mut stdout = std::io::stdout();
    let _ = stdout.write_all(READY.as_bytes()).and_then(|()| stdout.flush());
}

/// The streams of one start of a container: its own ends, and what moves the rest into the log.
struct Streams {
    container: ContainerStdio,
    pumps: JoinSet<()>,
}

impl Streams {
    /// Opens them. Returns our end of stdin, too.
    fn open(
        stdin: Stdin,
        terminal: Option<TerminalSize>,
        log: &SharedLog,
    ) -> std::io::Result<(Self, Option<pipe::Sender>)> {
        let (container, HostStdio { stdin, stdout, stderr }) = stdio::open(stdin, terminal)?;
        let mut pumps = JoinSet::new();
        pumps.spawn(stdio::pump(stdout, Stream::Stdout, log.clone()));
        pumps.spawn(stdio::pump(stderr, Stream::Stderr, log.clone()));
        Ok((Self { container, pumps }, stdin))
    }
}

/// The task that owns the container. Nobody else touches its runtime or its state.
struct Life {
    directory: ContainerDirectory,
    record: Record,
    marks: Marks,
    updates: watch::Sender<Update>,
    inbox: mpsc::Receiver<Command>,
    cgroup: Cgroup,
    runtime: Box<dyn Runtime>,
    reaper: Reaper,
    restarts: Restarts,
    execs: Arc<Execs>,
    network: Network,
}

impl Life {
    /// From the first start to the end that no policy follows.
    async fn run(&mut self, first: Streams, again: impl Fn() -> std::io::Result<Streams>, log: &SharedLog) {
        let mut streams = first;
        loop {
            let began = Instant::now();
            let exit = self.run_once(streams, log, began).await;
            let exit = match exit {
                Ended::Over(exit) => exit,
                Ended::Again(exit, pause) => {
                    if self.pause(pause).await {
                        self.marks = Marks::default();
                        self.publish(ContainerState::Starting, false);
                        match again() {
                            Ok(opened) => {
                                streams = opened;
                                continue;
                            }
                            Err(error) => {
                                let text = format!("make the container's pipes: {error}");
                                Exit::start_failed(Exit::OUR_FAILURE, text)
                            }
                        }
                    } else {
                        exit
                    }
                }
            };
            self.network.end(&self.directory, &self.record).await;
            self.marks.reach(Phase::Cleaned);
            return self.publish(ContainerState::Exited(exit), true);
        }
    }

    /// One start, to its end and to the last of what it held.
    async fn run_once(&mut self, streams: Streams, log: &SharedLog, began: Instant) -> Ended {
        let Streams { container, pumps } = streams;
        let (mut container, exit) = match self.start(container).await {
            Ok(mut container) => {
                let exit = self.watch_over(container.as_mut()).await;
                (Some(container), exit)
            }
            Err(exit) => {
                log.clear();
                (None, exit)
            }
        };
        self.marks.reach(Phase::Exited);
        let pause = self.restarts.next(&exit, began.elapsed());
        // The verdict is on disk before the clean-up starts: a crash from here on loses no exit code.
        match pause {
            Some(_) => self.publish(ContainerState::Restarting(exit.clone()), false),
            None => self.publish(ContainerState::Exited(exit.clone()), false),
        }
        drain(pumps).await;
        self.execs.close().await;
        self.give_back(container.as_deref_mut()).await;
        match pause {
            Some(pause) => Ended::Again(exit, pause),
            None => Ended::Over(exit),
        }
    }

    /// Waits before another start; `false` when somebody wants the container's end instead.
    async fn pause(&mut self, pause: Duration) -> bool {
        let end = Instant::now() + pause;
        loop {
            tokio::select! {
                () = sleep_until(end) => return true,
                command = next_command(&mut self.inbox) => match command {
                    Command::Signal { number, done, .. } if !self.ends(number) => {
                        let _ = done.send(Err("the container is about to be started again".to_owned()));
                    }
                    Command::Signal { done, .. } => {
                        self.restarts.stop();
                        let _ = done.send(Ok(()));
                        return false;
                    }
                    Command::Ask(ask) => refuse(ask),
                    Command::Stop { .. } => {
                        self.restarts.stop();
                        return false;
                    }
                },
            }
        }
    }

    /// Creates and starts the container, unless somebody stops it first.
    async fn start(&mut self, stdio: ContainerStdio) -> std::result::Result<Box<dyn Container>, Exit> {
        let started = {
            let starting = start(
                &self.directory,
                &self.record,
                &self.marks,
                &self.cgroup,
                self.runtime.as_ref(),
                &self.reaper,
                &mut self.network,
                stdio,
            );
            tokio::pin!(starting);
            loop {
                tokio::select! {
                    started = &mut starting => break started,
                    command = next_command(&mut self.inbox) => match command {
                        Command::Signal { number, done, .. } if number != SIGKILL => {
                            let _ = done.send(Err("the container has not started yet".to_owned()));
                        }
                        Command::Signal { done, .. } => {
                            self.restarts.stop();
                            let _ = done.send(Ok(()));
                            break Err(Exit::start_failed(Exit::OUR_FAILURE, "killed before it had started"));
                        }
                        Command::Ask(ask) => refuse(ask),
                        Command::Stop { .. } => {
                            self.restarts.stop();
                            break Err(Exit::start_failed(Exit::OUR_FAILURE, "stopped before it had started"));
                        }
                    },
                }
            }
        };
        match started {
            Ok(container) => {
                self.marks.reach(Phase::Running);
                self.execs.open(container.processes());
                self.publish(ContainerState::Running { pid: container.pid() }, false);
                Ok(container)
            }
            Err(exit) => Err(exit),
        }
    }

    /// Undoes everything, in reverse.
    async fn give_back(&mut self, container: Option<&mut (dyn Container + '_)>) {
        let deleted = match container {
            Some(container) => container.delete().await,
            None => self.runtime.clean(&self.record.id, self.directory.path(), &self.cgroup).await,
        };
        if let Err(error) = deleted {
            tracing::error!(container = %self.record.id, error = error.chain(), "runtime left something behind");
        }
        rootfs::release(&self.directory);
        recover::remove_cgroup(&self.cgroup).await;
    }

    fn publish(&self, state: ContainerState, cleaned: bool) {
        let state = StateFile {
            state,
            cleaned,
            marks: self.marks.all(),
            restarts: self.restarts.count(),
            stopped: self.restarts.is_stopped(),
        };
        if let Err(error) = state.write(&self.directory) {
            tracing::error!(error = chain(&error), "container state could not be recorded");
        }
        self.updates.send_modify(|update| update.state = state);
    }
}

/// How one start of a container came to its end.
enum Ended {
    Over(Exit),
    /// It is started again after a pause.
    Again(Exit, Duration),
}

#[expect(clippy::too_many_arguments, reason = "the parts of a life that is borrowed in pieces")]
async fn start(
    directory: &ContainerDirectory,
    record: &Record,
    marks: &Marks,
    cgroup: &Cgroup,
    runtime: &dyn Runtime,
    reaper: &Reaper,
    network: &mut Network,
    stdio: ContainerStdio,
) -> std::result::Result<Box<dyn Container>, Exit> {
    let mut container =
        create(directory, record, marks, cgroup, runtime, reaper, Some(network), stdio).await?;
    match container.start().await {
        Ok(()) => Ok(container),
        Err(error) => {
            if let Err(left) = container.delete().await {
                tracing::warn!(error = left.chain(), "a failed start could not be undone");
            }
            Err(Exit::start_failed(error.exit_code(), error.chain()))
        }
    }
}

/// Everything of a start but the execution of the container's process.
#[expect(clippy::too_many_arguments, reason = "the parts of a life that is borrowed in pieces")]
pub(crate) async fn create(
    directory: &ContainerDirectory,
    record: &Record,
    marks: &Marks,
    cgroup: &Cgroup,
    runtime: &dyn Runtime,
    reaper: &Reaper,
    network: Option<&mut Network>,
    stdio: ContainerStdio,
) -> std::result::Result<Box<dyn Container>, Exit> {
    let ours = |message: String| Exit::start_failed(Exit::OUR_FAILURE, message);
    let failed = |error: beta9_runtime::Error| Exit::start_failed(error.exit_code(), error.chain());

    let mut spec = Spec::load(directory.spec())
        .map_err(|e| ours(format!("read {}: {e}", directory.spec().display())))?;
    runtime.prepare(&mut spec).map_err(failed)?;
    cgroup.create().map_err(|e| ours(chain(&e)))?;
    let (place, record_too, reaper) = (directory.clone(), record.clone(), reaper.clone());
    // Neither needs the other.
    let preparing = async {
        let rootfs = tokio::task::spawn_blocking(move || rootfs::prepare(&place, &record_too, &reaper)).await;
        marks.reach(Phase::RootfsReady);
        rootfs
    };
    let connecting = async {
        let Some(network) = network else { return Ok(None) };
        let attached = network.ready(directory, record, &mut spec).await;
        marks.reach(Phase::NetworkReady);
        attached
    };
    let (rootfs, attached) = tokio::join!(preparing, connecting);
    let rootfs = rootfs.map_err(|e| ours(format!("prepare the root file system: {e}")))?.map_err(failed)?;
    let network = attached.map_err(ours)?;
    if let Rootfs::Directory(path) = &rootfs
        && let Some(root) = spec.root_mut()
    {
        root.set_path(path.clone());
    }

    let request = CreateRequest {
        id: record.id.clone(),
        dir: directory.path().to_owned(),
        spec,
        rootfs,
        mounts: record.request.mounts.clone(),
        stdio,
        cgroup: cgroup.clone(),
        marks: marks.clone(),
        network,
        disk: record.request.options.limits.disk,
    };
    runtime.create(request).await.map_err(failed)
}

/// The next thing asked of the container. The sender lives in the server and in the SIGTERM task.
async fn next_command(inbox: &mut mpsc::Receiver<Command>) -> Command {
    inbox.recv().await.unwrap_or(Command::Stop { grace: OWN_GRACE, signal: None })
}

/// Answers what is asked of a container that does not run yet.
fn refuse(ask: Ask) {
    let refusal = Refusal::new("the container has not started yet");
    match ask {
        Ask::Operation { done, .. } => drop(done.send(Err(refusal))),
        Ask::Copying { done } => drop(done.send(Err(refusal))),
    }
}

/// Being told to end means to stop the container first.
fn stop_on_terminate(commands: mpsc::Sender<Command>) -> Result<()> {
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|e| Error::caused(ErrorKind::File, "receive SIGTERM", e))?;
    tokio::spawn(async move {
        while terminate.recv().await.is_some() {
            let _ = commands.send(Command::Stop { grace: OWN_GRACE, signal: None }).await;
        }
    });
    Ok(())
}

/// Reads what is still in the pipes. Whoever holds a pipe open past the deadline loses what it still wrote.
async fn drain(mut pumps: JoinSet<()>) {
    if timeout(DRAIN_DEADLINE, async { while pumps.join_next().await.is_some() {} }).await.is_err() {
        tracing::warn!("a process outside the container holds its streams open; output may be cut off");
    }
}
