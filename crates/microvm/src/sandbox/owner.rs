//! The task that owns a VM, from its guest's report to its end.

use std::collections::HashMap;
use std::time::Duration;

use beta9_runtime::{Error, ErrorKind, Marks, Result, SignalTarget};
use beta9_sys::cgroup::Cgroup;
use beta9_types::{ContainerId, Exit, ExitReason, Phase};
use beta9_wire::{FromGuest, GuestExit, GuestMoment, Outcome, StreamKind, ToGuest, decode};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::execs::{Execs, Wanted, start_failure};
use super::frames::Received;
use super::handshake::Control;
use super::streams::{StreamEnd, StreamEvent, Streams};
use super::{Deadlines, Request, Status, Violation, printable};
use crate::engine::{Vm, describe};

/// Control messages that a guest may send within [`WINDOW`]; the protocol needs a handful.
const MAX_MESSAGES: u32 = 256;
/// And so many for each process that it is asked to execute.
const MESSAGES_OF_EXEC: u32 = 3;
const SIGKILL: i32 = rustix::process::Signal::KILL.as_raw();
const WINDOW: Duration = Duration::from_secs(10);
/// A guest's connection and its VMM end at about the same time; the VMM's end says more.
const EPILOGUE: Duration = Duration::from_secs(2);
/// How long a guest may take to write down what was copied into a container that was not started.
const DISMISSAL: Duration = Duration::from_secs(60);
/// Operations that may be under way; a guest that answers none is asked for no more.
const MAX_OPERATIONS: usize = 64;
/// How often a guest's clock is set by the host's: it has nobody else to ask, and clocks drift by seconds a day.
const RENEWAL: Duration = Duration::from_secs(600);
/// Longest message of a guest that is repeated to a user.
const MAX_MESSAGE: usize = 2000;

type Reply = oneshot::Sender<Result<()>>;

/// Where the container is; the picture is in the parent module.
enum Stage {
    Ready,
    Creating(Reply, Instant),
    Created,
    Starting(Reply, Instant),
    Running,
    Draining(Drain),
    /// `Create` or `Start` failed; only the end is left.
    Failed,
}

struct Drain {
    exit: GuestExit,
    /// What [`Streams::progress`] said at `since`.
    progress: u64,
    since: Instant,
}

/// Why the VM is over.
enum Ending {
    /// The container's verdict is known and the guest was told to shut down.
    Reported,
    /// Somebody asked for it, or nobody holds the sandbox any more.
    Stopped,
    /// The same for a container that was not started: the guest was told to shut down, because its files may have been
    /// written to.
    Dismissed,
    /// The VM's programs ended by themselves.
    Died(String),
    /// The guest did what it must not, or did not do what it must.
    Violated(Violation),
}

impl From<Violation> for Ending {
    fn from(violation: Violation) -> Self {
        Self::Violated(violation)
    }
}

pub(super) struct Owner {
    vm: Vm,
    control: Control,
    /// Until the container is created; then it belongs to the streams.
    listener: Option<UnixListener>,
    container: ContainerId,
    cgroup: Cgroup,
    deadlines: Deadlines,
    requests: mpsc::Receiver<Request>,
    status: watch::Sender<Status>,
    streams: Option<Streams>,
    stdout: Option<StreamEnd>,
    stderr: Option<StreamEnd>,
    execs: Execs,
    stage: Stage,
    operations: HashMap<u32, oneshot::Sender<Result<Outcome>>>,
    window_began: Instant,
    messages: u32,
    /// The container's timeline.
    marks: Marks,
    /// When the guest's clock is set again.
    renewal: Instant,
}

impl Owner {
    #[expect(clippy::too_many_arguments, reason = "called once, right where the parts are made")]
    pub(super) fn new(
        vm: Vm,
        control: Control,
        listener: UnixListener,
        container: ContainerId,
        cgroup: Cgroup,
        deadlines: Deadlines,
        requests: mpsc::Receiver<Request>,
        status: watch::Sender<Status>,
        marks: Marks,
    ) -> Self {
        Self {
            vm,
            control,
            listener: Some(listener),
            container,
            cgroup,
            deadlines,
            requests,
            status,
            streams: None,
            stdout: None,
            stderr: None,
            execs: Execs::default(),
            stage: Stage::Ready,
            operations: HashMap::new(),
            window_began: Instant::now(),
            messages: 0,
            marks,
            renewal: Instant::now() + RENEWAL,
        }
    }

    /// Serves requests and the guest until the VM is over, then makes sure that it is.
    pub(super) async fn run(mut self) {
        let ending = loop {
            if let Err(ending) = self.step().await {
                break ending;
            }
        };
        let grace = match ending {
            Ending::Reported => self.deadlines.shutdown,
            Ending::Dismissed => DISMISSAL,
            _ => Duration::ZERO,
        };
        if grace.is_zero() {
            self.vm.vmm.kill();
            self.vm.settle().await;
        }
        // End-of-file for whoever reads the container's output, before they learn of its end.
        self.streams = None;
        self.conclude(ending);
        // Requests still in the queue are answered by the drop of their replies.
        self.requests.close();
        if !grace.is_zero() {
            let _ = timeout(grace, self.farewell()).await;
        }
        let grace = if grace.is_zero() { grace } else { self.deadlines.end };
        let stopped = self.vm.stop(grace).await.map_err(|error| error.chain());
        self.marks.reach(Phase::EngineEnded);
        self.status.send_modify(|status| status.gone = Some(stopped));
    }

    /// Waits until the guest has nothing left to write, which it says by closing its connection, or is gone.
    async fn farewell(&mut self) {
        let closed = async {
            // A guest that goes on talking is cut short by whoever waits here.
            while let Ok(Some(_)) = self.control.frames.next().await {}
        };
        tokio::select! {
            _ = self.vm.ended() => {}
            () = closed => {}
        }
    }

    /// Takes one event in.
    async fn step(&mut self) -> std::result::Result<(), Ending> {
        let deadline = self.deadline();
        let expired = async {
            match deadline {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let stream_event = async {
            match &mut self.streams {
                Some(streams) => match streams.events.recv().await {
                    Some(event) => event,
                    None => std::future::pending().await,
                },
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            (who, exit) = self.vm.ended() => {
                Err(Ending::Died(format!("{who} {}", describe(exit))))
            }
            request = self.requests.recv() => self.serve(request).await,
            frame = self.control.frames.next() => self.hear(frame).await,
            event = stream_event => match event {
                StreamEvent::Ended(kind, end) => self.stream_ended(kind, end).await,
                StreamEvent::Violation(violation) => Err(violation.into()),
            },
            () = expired => self.expire().await,
            () = sleep_until(self.renewal) => {
                self.renewal = Instant::now() + RENEWAL;
                let (unix_ns, entropy) = super::handshake::renewal()?;
                Ok(self.control.say(&ToGuest::Renew { unix_ns, entropy }).await?)
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Creating(_, at) | Stage::Starting(_, at) => Some(*at),
            Stage::Draining(drain) => Some(drain.since + self.deadlines.drain),
            _ => None,
        }
    }

    async fn expire(&mut self) -> std::result::Result<(), Ending> {
        let seconds = self.deadlines.answer.as_secs_f32();
        let late = |what| Violation::new(format!("it did not {what} the container within {seconds} s"));
        match &mut self.stage {
            Stage::Creating(..) => Err(late("prepare").into()),
            Stage::Starting(..) => Err(late("start").into()),
            Stage::Draining(drain) => {
                let progress = self.streams.as_ref().map_or(0, Streams::progress);
                if progress != drain.progress {
                    (drain.progress, drain.since) = (progress, Instant::now());
                    return Ok(());
                }
                self.report().await
            }
            _ => Ok(()),
        }
    }

    async fn serve(&mut self, request: Option<Request>) -> std::result::Result<(), Ending> {
        let until = Instant::now() + self.deadlines.answer;
        let container = self.container.clone();
        match (request, &self.stage) {
            (Some(Request::Stop), Stage::Created) => {
                self.control.say(&ToGuest::Shutdown).await?;
                return Err(Ending::Dismissed);
            }
            (None | Some(Request::Stop), _) => return Err(Ending::Stopped),
            (Some(Request::Create(create, reply)), Stage::Ready) => {
                let Some(listener) = self.listener.take() else { return Ok(()) };
                let super::Create { root, spec, stdio } = *create;
                let streams = Streams::serve(listener, self.vm.dialer, container.clone());
                // A terminal is one stream.
                self.stderr = stdio.terminal.map(|_| StreamEnd::Whole(0));
                streams.expect(None, stdio);
                self.streams = Some(streams);
                self.stage = Stage::Creating(reply, until);
                self.control.say(&ToGuest::Create { container, root, spec: Box::new(spec) }).await?;
            }
            (Some(Request::Start(reply)), Stage::Created) => {
                self.stage = Stage::Starting(reply, until);
                self.control.say(&ToGuest::Start { container }).await?;
            }
            (Some(Request::Signal { number, target, reply }), Stage::Starting(..) | Stage::Running) => {
                let all = target == SignalTarget::All;
                self.control.say(&ToGuest::Signal { container, signal: number, all }).await?;
                let _ = reply.send(Ok(()));
            }
            // One that is not started has files, too.
            (Some(Request::Operate { number, operation, reply }), Stage::Created | Stage::Running) => {
                if self.operations.len() >= MAX_OPERATIONS {
                    let text =
                        format!("{MAX_OPERATIONS} operations are under way already: wait for one to end");
                    let _ = reply.send(Err(Error::new(ErrorKind::Failed, text)));
                    return Ok(());
                }
                self.operations.insert(number, reply);
                self.control.say(&ToGuest::Operate { container, number, operation }).await?;
            }
            (Some(Request::Operate { reply, .. }), _) => {
                let text = format!("container {container} {}", self.stage.describe());
                let _ = reply.send(Err(Error::new(ErrorKind::Failed, text)));
            }
            (Some(Request::Exec(exec, reply)), Stage::Running) => {
                let super::Exec { id, process, stdio } = *exec;
                let Some(streams) = &self.streams else { return Ok(()) };
                if self.execs.contains(&id) {
                    let text = format!("a process {id} runs in the container already");
                    let _ = reply.send(Err(Error::new(ErrorKind::Failed, text)));
                    return Ok(());
                }
                self.execs.add(id.clone(), stdio, streams, reply);
                // The guest answers, and reports the end.
                self.messages = self.messages.saturating_sub(MESSAGES_OF_EXEC);
                self.control.say(&ToGuest::Exec { container, exec: id, process: Box::new(process) }).await?;
            }
            (Some(Request::SignalExec(exec, signal, reply)), Stage::Running) => {
                self.control.say(&ToGuest::SignalExec { container, exec, signal }).await?;
                let _ = reply.send(Ok(()));
            }
            (Some(Request::Resize(exec, size, reply)), Stage::Running) => {
                self.control.say(&ToGuest::Resize { container, exec, size }).await?;
                let _ = reply.send(Ok(()));
            }
            (Some(Request::Exec(_, reply)), stage) => {
                let text = format!("container {container} {}", stage.describe());
                let _ = reply.send(Err(Error::new(ErrorKind::Failed, text)));
            }
            (
                Some(
                    Request::Create(_, reply)
                    | Request::Start(reply)
                    | Request::Signal { reply, .. }
                    | Request::SignalExec(_, _, reply)
                    | Request::Resize(_, _, reply),
                ),
                _,
            ) => {
                let text = format!("container {container} {}", self.stage.describe());
                let _ = reply.send(Err(Error::new(ErrorKind::Failed, text)));
            }
        }
        Ok(())
    }

    async fn hear(
        &mut self,
        frame: std::result::Result<Option<Received>, beta9_wire::Error>,
    ) -> std::result::Result<(), Ending> {
        let body = match frame {
            Ok(Some(Received::Message(body))) => body,
            Ok(Some(Received::Data(_))) => {
                return Err(Violation::new("it sent data on its control connection").into());
            }
            Ok(None) | Err(beta9_wire::Error::Io(_)) => {
                return Err(match timeout(EPILOGUE, self.vm.ended()).await {
                    Ok((who, exit)) => Ending::Died(format!("{who} {}", describe(exit))),
                    Err(_) => Violation::new("it closed its control connection").into(),
                });
            }
            Err(error) => return Err(Violation::from(error).into()),
        };
        let message = decode::<FromGuest>("guest", &body).map_err(Violation::from)?;
        self.check_container(&message)?;
        if let FromGuest::Operated { number, outcome, .. } = message {
            let Some(reply) = self.operations.remove(&number) else {
                return Err(
                    Violation::new(format!("it answered operation {number}, which was not asked")).into()
                );
            };
            // Whoever asked may have lost patience.
            let _ = reply.send(Ok(outcome));
            return Ok(());
        }
        self.count_message()?;
        if let FromGuest::Reached { marks, .. } = message {
            for mark in marks {
                let phase = match mark.moment {
                    GuestMoment::Kernel => Phase::GuestKernel,
                    GuestMoment::Init => Phase::GuestInit,
                    GuestMoment::Mounted => Phase::GuestMounted,
                };
                self.marks.reached(phase, Duration::from_micros(mark.ago_us.into()));
            }
            return Ok(());
        }
        let Some(message) = self.hear_exec(message).await? else { return Ok(()) };
        match (message, std::mem::replace(&mut self.stage, Stage::Failed)) {
            (FromGuest::Created { .. }, Stage::Creating(reply, _)) => {
                self.stage = Stage::Created;
                let _ = reply.send(Ok(()));
            }
            (FromGuest::Started { .. }, Stage::Starting(reply, _)) => {
                self.stage = Stage::Running;
                let _ = reply.send(Ok(()));
            }
            (
                FromGuest::Failed { failure, message, .. },
                Stage::Creating(reply, _) | Stage::Starting(reply, _),
            ) => {
                let _ = reply.send(Err(start_failure(failure, printable(&message, MAX_MESSAGE))));
            }
            (FromGuest::Exited { exit, .. }, Stage::Running) => {
                if exit.signal > 64 {
                    return Err(Violation::new(format!("it named signal {}", exit.signal)).into());
                }
                let progress = self.streams.as_ref().map_or(0, Streams::progress);
                self.stage = Stage::Draining(Drain { exit, progress, since: Instant::now() });
                return self.report_when_drained().await;
            }
            (FromGuest::Exited { exit, .. }, Stage::Draining(drain)) if exit == drain.exit => {
                self.stage = Stage::Draining(drain);
            }
            (message, stage) => {
                let text = format!("it said {} while the container {}", name(&message), stage.describe());
                // A reply in the stage is answered by the verdict.
                self.stage = stage;
                return Err(Violation::new(text).into());
            }
        }
        Ok(())
    }

    /// Takes in what is said of a process beside the main one; gives back what is not.
    async fn hear_exec(&mut self, message: FromGuest) -> std::result::Result<Option<FromGuest>, Violation> {
        match message {
            FromGuest::ExecStarted { exec, .. } => {
                if self.execs.started(&exec)? == Wanted::No {
                    let container = self.container.clone();
                    self.control.say(&ToGuest::SignalExec { container, exec, signal: SIGKILL }).await?;
                }
            }
            FromGuest::ExecFailed { exec, failure, message, .. } => {
                self.execs.failed(&exec, start_failure(failure, printable(&message, MAX_MESSAGE)))?;
                if let Some(streams) = &self.streams {
                    streams.forget(&exec);
                }
            }
            FromGuest::ExecExited { exec, exit, .. } => self.execs.exited(&exec, exit)?,
            other => return Ok(Some(other)),
        }
        Ok(None)
    }

    fn count_message(&mut self) -> std::result::Result<(), Violation> {
        if self.window_began.elapsed() > WINDOW {
            (self.window_began, self.messages) = (Instant::now(), 0);
        }
        self.messages += 1;
        if self.messages > MAX_MESSAGES {
            return Err(Violation::new(format!("it sent more than {MAX_MESSAGES} messages in 10 s")));
        }
        Ok(())
    }

    fn check_container(&self, message: &FromGuest) -> std::result::Result<(), Violation> {
        let container = match message {
            FromGuest::Hello { .. } => return Err(Violation::new("it greeted twice")),
            FromGuest::Created { container }
            | FromGuest::Started { container }
            | FromGuest::Failed { container, .. }
            | FromGuest::Exited { container, .. }
            | FromGuest::Operated { container, .. }
            | FromGuest::Reached { container, .. }
            | FromGuest::ExecStarted { container, .. }
            | FromGuest::ExecFailed { container, .. }
            | FromGuest::ExecExited { container, .. } => container,
        };
        if *container != self.container {
            return Err(Violation::new(format!("it spoke of container {container}, which it does not hold")));
        }
        Ok(())
    }

    async fn stream_ended(&mut self, kind: StreamKind, end: StreamEnd) -> std::result::Result<(), Ending> {
        match kind {
            StreamKind::Stdin => {}
            StreamKind::Stdout => self.stdout = Some(end),
            StreamKind::Stderr => self.stderr = Some(end),
        }
        self.report_when_drained().await
    }

    async fn report_when_drained(&mut self) -> std::result::Result<(), Ending> {
        let draining = matches!(self.stage, Stage::Draining(_));
        if draining && self.stdout.is_some() && self.stderr.is_some() {
            return self.report().await;
        }
        Ok(())
    }

    /// Gives the verdict, lets the guest go and ends this.
    async fn report(&mut self) -> std::result::Result<(), Ending> {
        let Stage::Draining(drain) = &self.stage else { return Ok(()) };
        let exit = self.judge(drain.exit);
        self.streams = None;
        self.status.send_modify(|status| status.verdict = Some(exit));
        let container = self.container.clone();
        // The verdict stands whether or not the guest still hears this.
        if self.control.say(&ToGuest::ExitAck { container }).await.is_ok() {
            let _ = self.control.say(&ToGuest::Shutdown).await;
        }
        Err(Ending::Reported)
    }

    fn judge(&self, reported: GuestExit) -> Exit {
        let mut exit = match reported.signal {
            0 => Exit::exited(reported.code),
            number => Exit::signaled(number),
        };
        if reported.oom && exit.code == 137 {
            exit = Exit::oom();
        }
        let lost: Vec<_> =
            [("stdout", self.stdout, reported.stdout_bytes), ("stderr", self.stderr, reported.stderr_bytes)]
                .into_iter()
                .filter_map(|(name, end, claimed)| match end {
                    Some(StreamEnd::Whole(total)) if total == claimed => None,
                    Some(StreamEnd::Whole(total) | StreamEnd::Cut(total)) => {
                        Some(format!("{name} was cut off after {total} of {claimed} bytes"))
                    }
                    None => Some(format!("{name} was cut off before its {claimed} bytes had all arrived")),
                })
                .collect();
        if !lost.is_empty() {
            let lost = lost.join(", ");
            exit.message = Some(exit.message.map_or(lost.clone(), |message| format!("{message}; {lost}")));
        }
        exit
    }

    /// Answers who still waits, and gives the verdict if there is none.
    fn conclude(&mut self, ending: Ending) {
        let (reason, message) = match ending {
            Ending::Reported => return,
            Ending::Stopped | Ending::Dismissed => {
                (ExitReason::VmmLost, "the VM was ended before its guest reported".to_owned())
            }
            Ending::Violated(violation) => {
                let text = format!("the guest broke the protocol: {}", violation.0);
                (ExitReason::VmmLost, self.vm.with_last_words(text))
            }
            Ending::Died(how) if self.cgroup.oom_kills() > 0 => {
                (ExitReason::VmmOom, format!("the host's kernel killed the VM for memory: {how}"))
            }
            Ending::Died(how) => {
                let text = format!("the VM ended without a report: {how}");
                (ExitReason::VmmLost, self.vm.with_last_words(text))
            }
        };
        if let Stage::Creating(reply, _) | Stage::Starting(reply, _) =
            std::mem::replace(&mut self.stage, Stage::Failed)
        {
            let _ = reply.send(Err(Error::new(ErrorKind::Failed, message.clone())));
        }
        self.status.send_modify(|status| {
            status.verdict.get_or_insert(Exit::lost(reason, message));
        });
    }
}

impl Stage {
    /// Continues "container x …".
    fn describe(&self) -> &'static str {
        match self {
            Self::Ready => "does not exist yet",
            Self::Creating(..) => "is being created",
            Self::Created => "is not started",
            Self::Starting(..) => "is being started",
            Self::Running => "is running",
            Self::Draining(_) => "has ended",
            Self::Failed => "failed to start",
        }
    }
}

fn name(message: &FromGuest) -> &'static str {
    match message {
        FromGuest::Hello { .. } => "hello",
        FromGuest::Created { .. } => "created",
        FromGuest::Started { .. } => "started",
        FromGuest::Failed { .. } => "failed",
        FromGuest::Exited { .. } => "exited",
        FromGuest::Operated { .. } => "operated",
        FromGuest::Reached { .. } => "how far it is",
        FromGuest::ExecStarted { .. } => "that a process started",
        FromGuest::ExecFailed { .. } => "that a process failed to start",
        FromGuest::ExecExited { .. } => "that a process exited",
    }
}
