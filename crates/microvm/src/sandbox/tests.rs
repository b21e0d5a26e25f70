//! A scripted guest at the other end of the sockets: an honest one, and all kinds of hostile ones.
//!
//! The "VMM" is a real process that does nothing; the guest is a thread of this one.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::Duration;

use beta9_sys::reaper::Reaper;
use beta9_types::ExitReason;
use beta9_wire::{
    CONTROL_PORT, Frame, FromGuest, GuestExit, GuestMark, GuestMoment, PROTOCOL_VERSION, STREAM_PORT,
    StartFailure, StreamControl, StreamKind, StreamOpen, ToGuest, WritableLayer, decode, read_frame,
    write_data, write_message,
};

mod execs;

use super::*;
use crate::engine::{Host, Process, Stuck, Tail, VSOCK, VmDirectory};
use crate::guest_spec::{Stdin, translate};

const QUICK: Deadlines = Deadlines {
    boot: Duration::from_secs(3),
    answer: Duration::from_secs(3),
    drain: Duration::from_millis(300),
    shutdown: Duration::from_secs(2),
    end: Duration::from_millis(100),
};

fn reaper() -> Reaper {
    static REAPER: OnceLock<Reaper> = OnceLock::new();
    REAPER.get_or_init(|| Reaper::start().unwrap()).clone()
}

fn id() -> ContainerId {
    ContainerId::parse("c1").unwrap()
}

/// A sandbox that is about to open, and the container's other ends.
struct Bench {
    directory: VmDirectory,
    cgroup: Cgroup,
    _root: tempfile::TempDir,
}

/// The test's ends of the container's streams.
struct Client {
    stdin: Option<File>,
    stdout: File,
    stderr: File,
}

fn stdio() -> (ContainerStdio, Client) {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let ((stdin, to), (from, stdout), (from_too, stderr)) = (pipe(), pipe(), pipe());
    let file = |fd: OwnedFd| File::from(fd);
    let client = Client { stdin: Some(file(to)), stdout: file(from), stderr: file(from_too) };
    (ContainerStdio { stdin: Some(stdin), stdout, stderr, terminal: None }, client)
}

fn create(stdio: ContainerStdio) -> Create {
    let spec = r#"{"ociVersion":"1.0.2","process":{"user":{"uid":0,"gid":0},"args":["sh"],"cwd":"/"}}"#;
    let spec =
        translate(&serde_json::from_str(spec).unwrap(), &[], std::path::Path::new("/own"), Stdin::Open)
            .unwrap();
    let root = RootDisk { drive: 0, format: "erofs".into(), writable: WritableLayer::Drive(1) };
    Create { root, spec, stdio }
}

impl Bench {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let directory = VmDirectory::create(root.path(), &id()).unwrap();
        // Nothing is limited or killed by group here, so the group need not exist.
        Self { directory, cgroup: Cgroup::at("beta9-does-not-exist"), _root: root }
    }

    /// Runs `guest` against a sandbox that waits for its greeting.
    async fn open(&self, guest: impl FnOnce(Guest) + Send + 'static) -> Result<Sandbox> {
        self.open_with(&Marks::default(), guest).await
    }

    async fn open_with(&self, marks: &Marks, guest: impl FnOnce(Guest) + Send + 'static) -> Result<Sandbox> {
        let listeners = Listeners::bind(&self.directory).unwrap();
        let vm = self.vm();
        let path = self.directory.path().to_owned();
        let script: JoinHandle<()> = std::thread::spawn(move || guest(Guest::dial(path)));
        drop(script);
        let accepting =
            Accepting { control: listeners.control, stream: listeners.stream, copy: listeners.copy };
        Sandbox::open(vm, accepting, id(), self.cgroup.clone(), QUICK, marks)
            .await
            .map(|(sandbox, _)| sandbox)
    }

    fn vm(&self) -> Vm {
        let mut command = Command::new("sleep");
        command.arg("1000");
        let this = crate::OwnProgram::default();
        let host = Host { reaper: reaper(), cgroup: Cgroup::none(), network: None, this };
        let (vmm, _) = Process::spawn(&host, "sleep", command, Stdio::null()).unwrap();
        let dialer = rustix::process::getpid();
        Vm {
            vmm,
            helpers: Vec::new(),
            dialer,
            console: Tail::default(),
            log: Tail::default(),
            stuck: Stuck::default(),
            controls: Controls::none(),
        }
    }

    /// The verdict on a guest that greets, creates and starts a container and then does `rest`.
    async fn verdict_on(&self, rest: impl FnOnce(Guest) + Send + 'static) -> Exit {
        let (stdio, _client) = stdio();
        let sandbox = self.open(|guest| rest(guest.greet().created().started())).await.unwrap();
        sandbox.create(create(stdio)).await.unwrap();
        sandbox.start().await.unwrap();
        let verdict = sandbox.verdict().await;
        sandbox.stop().await.unwrap();
        verdict
    }
}

/// What a guest does.
type Script = fn(Guest);

/// The guest's side, as `beta9-vm-init` would speak it.
struct Guest {
    path: PathBuf,
    control: UnixStream,
}

impl Guest {
    fn dial(path: PathBuf) -> Self {
        let control = connect(&path, CONTROL_PORT);
        Self { path, control }
    }

    fn say(&mut self, message: &FromGuest) {
        // A hostile guest may be hung up on at any time.
        let _ = write_message(&mut self.control, message);
    }

    fn hear(&mut self) -> ToGuest {
        let Frame::Message(body) = read_frame(&mut self.control).unwrap() else { panic!("data on control") };
        decode("host", &body).unwrap()
    }

    fn greet(mut self) -> Self {
        self.say(&FromGuest::Hello { protocol: PROTOCOL_VERSION, kernel: "6.1".into() });
        let ToGuest::Welcome { sandbox, .. } = self.hear() else { panic!("no welcome") };
        assert_eq!(sandbox, id());
        self
    }

    fn created(mut self) -> Self {
        assert!(matches!(self.hear(), ToGuest::Create { .. }));
        self.say(&FromGuest::Created { container: id() });
        self
    }

    fn started(mut self) -> Self {
        assert!(matches!(self.hear(), ToGuest::Start { .. }));
        self.say(&FromGuest::Started { container: id() });
        self
    }

    fn exited(&mut self, code: u8, stdout_bytes: u64) {
        let exit = GuestExit { code, signal: 0, oom: false, stdout_bytes, stderr_bytes: 0 };
        self.say(&FromGuest::Exited { container: id(), exit });
    }

    fn stream(&self, container: &str, stream: StreamKind) -> UnixStream {
        let mut connection = connect(&self.path, STREAM_PORT);
        let container = ContainerId::parse(container).unwrap();
        write_message(&mut connection, &StreamOpen { container, exec: None, stream }).unwrap();
        connection
    }

    /// A whole output stream.
    fn output(&self, stream: StreamKind, data: &[u8]) {
        let mut connection = self.stream("c1", stream);
        for chunk in data.chunks(1000) {
            write_data(&mut connection, chunk, &mut Vec::new()).unwrap();
        }
        write_message(&mut connection, &StreamControl::End { total: data.len() as u64 }).unwrap();
        let Frame::Message(body) = read_frame(&mut connection).unwrap() else { panic!("data on stdout") };
        assert_eq!(decode::<StreamControl>("stream", &body).unwrap(), StreamControl::EndAck);
    }

    /// Keeps the connections open until the host closes them.
    fn linger(mut self) {
        let _ = self.control.read_to_end(&mut Vec::new());
    }
}

fn connect(path: &std::path::Path, port: u32) -> UnixStream {
    UnixStream::connect(path.join(format!("{VSOCK}_{port}"))).unwrap()
}

fn assert_violation(exit: &Exit, expected: &str) {
    assert_eq!((exit.code, exit.reason), (125, ExitReason::VmmLost));
    let message = exit.message.as_deref().unwrap_or_default();
    assert!(message.contains(&format!("the guest broke the protocol: {expected}")), "{message}");
}

#[tokio::test(flavor = "current_thread")]
async fn an_honest_guest_from_greeting_to_shutdown() {
    let bench = Bench::new();
    let (stdio, mut client) = stdio();
    let (sender, heard) = std::sync::mpsc::channel();
    let guest = move |guest: Guest| {
        let mut guest = guest.greet().created();
        let mut stdin = guest.stream("c1", StreamKind::Stdin);
        guest = guest.started();
        let mut input = Vec::new();
        loop {
            match read_frame(&mut stdin).unwrap() {
                Frame::Data(data) => input.extend(data),
                Frame::Message(body) => {
                    let total = input.len() as u64;
                    let end: StreamControl = decode("stream", &body).unwrap();
                    assert_eq!(end, StreamControl::End { total });
                    break write_message(&mut stdin, &StreamControl::EndAck).unwrap();
                }
            }
        }
        guest.output(StreamKind::Stderr, b"");
        guest.exited(7, input.len() as u64);
        guest.exited(7, input.len() as u64);
        guest.output(StreamKind::Stdout, &input);
        sender.send((guest.hear(), guest.hear())).unwrap();
    };
    let sandbox = bench.open(guest).await.unwrap();
    assert!(sandbox.signal(15, SignalTarget::Main).await.is_err(), "there is no container yet");
    sandbox.create(create(stdio)).await.unwrap();
    assert!(sandbox.create(create(self::stdio().0)).await.is_err(), "a sandbox holds one container");
    sandbox.start().await.unwrap();

    let input = vec![b'x'; 200_000];
    let mut stdin = client.stdin.take().unwrap();
    let expected = input.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&input).unwrap());
    let reader = std::thread::spawn(move || {
        let mut output = Vec::new();
        client.stdout.read_to_end(&mut output).unwrap();
        client.stderr.read_to_end(&mut Vec::new()).unwrap();
        output
    });
    assert_eq!(sandbox.verdict().await, Exit::exited(7));
    let told = std::time::Instant::now();
    sandbox.stop().await.unwrap();
    // It has said that it is done, and its VMM does not end by itself.
    let took = told.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?} went by until it was killed");
    writer.join().unwrap();
    assert!(reader.join().unwrap() == expected);
    let (ack, shutdown) = heard.recv_timeout(Duration::from_secs(3)).unwrap();
    assert_eq!((ack, shutdown), (ToGuest::ExitAck { container: id() }, ToGuest::Shutdown));
    assert_eq!(sandbox.verdict().await, Exit::exited(7), "a verdict stands");
}

#[tokio::test(flavor = "current_thread")]
async fn how_far_a_guest_was_is_on_the_timeline_whatever_it_says() {
    let bench = Bench::new();
    let (stdio, _client) = stdio();
    let marks = Marks::default();
    marks.reach(Phase::EngineStarted);
    let guest = |guest: Guest| {
        let mut guest = guest.greet();
        let mark = |moment, ago_us| GuestMark { moment, ago_us };
        let boot = vec![mark(GuestMoment::Init, 0), mark(GuestMoment::Kernel, u32::MAX)];
        guest.say(&FromGuest::Reached { container: id(), marks: boot });
        let again = vec![mark(GuestMoment::Init, 1); 10_000];
        guest.say(&FromGuest::Reached { container: id(), marks: again });
        guest.created().linger();
    };
    let sandbox = bench.open_with(&marks, guest).await.unwrap();
    sandbox.create(create(stdio)).await.unwrap();
    let phases: Vec<_> = marks.all().iter().map(|mark| mark.phase).collect();
    let expected = [Phase::EngineStarted, Phase::GuestKernel, Phase::GuestReady, Phase::GuestInit];
    assert_eq!(phases, expected);
    assert!(marks.all().is_sorted_by_key(|mark| mark.at_us));
    sandbox.stop().await.unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn guests_that_do_not_greet_are_not_waited_for() {
    let cases: [(Script, &str); 5] = [
        (|guest| guest.linger(), "did not report within 3 s"),
        (drop, "closed the control connection without a greeting"),
        (|mut guest| guest.say(&FromGuest::Created { container: id() }), "began with something else"),
        (
            |mut guest| guest.say(&FromGuest::Hello { protocol: 99, kernel: String::new() }),
            "speaks version 99",
        ),
        (
            |mut guest| {
                guest.control.write_all(&[0xff; 8]).unwrap();
                guest.linger();
            },
            "malformed frame header",
        ),
    ];
    for (guest, expected) in cases {
        let Err(error) = Bench::new().open(guest).await else { panic!("{expected}: it was let in") };
        assert!(error.to_string().contains(expected), "{expected}: {error}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_start_that_fails_in_the_guest_keeps_its_kind() {
    let (stdio, _client) = stdio();
    let bench = Bench::new();
    let guest = |guest: Guest| {
        let mut guest = guest.greet().created();
        guest.hear();
        let message = "no such file: /bin/nope\x1b[31m".to_owned();
        guest.say(&FromGuest::Failed { container: id(), failure: StartFailure::NotFound, message });
        guest.linger();
    };
    let sandbox = bench.open(guest).await.unwrap();
    sandbox.create(create(stdio)).await.unwrap();
    let error = sandbox.start().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(error.to_string(), "no such file: /bin/nope[31m");
    sandbox.stop().await.unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn hostile_guests_lose_their_vm_and_the_verdict_says_why() {
    let cases: [(Script, &str); 9] = [
        (
            |mut guest| {
                let exit = GuestExit { code: 0, signal: 0, oom: false, stdout_bytes: 0, stderr_bytes: 0 };
                guest.say(&FromGuest::Exited { container: ContainerId::parse("other").unwrap(), exit });
                guest.linger();
            },
            "it spoke of container other",
        ),
        (
            |mut guest| {
                guest.control.write_all(&[0, 0, 0xff, 0, 0, 0, 0, 0]).unwrap();
                guest.linger();
            },
            "frame of 16711680 bytes is over the limit",
        ),
        (
            |mut guest| {
                write_data(&mut guest.control, b"x", &mut Vec::new()).unwrap();
                guest.linger();
            },
            "it sent data on its control connection",
        ),
        (
            |mut guest| {
                guest.say(&FromGuest::Started { container: id() });
                guest.linger();
            },
            "it said started while the container is running",
        ),
        (
            |mut guest| {
                guest.exited(0, 0);
                guest.exited(1, 0);
                guest.linger();
            },
            "it said exited while the container has ended",
        ),
        (
            |guest| {
                let _stream = guest.stream("other", StreamKind::Stdout);
                guest.linger();
            },
            "it opened a stream of a container that it does not hold",
        ),
        (
            |guest| {
                let _streams = [StreamKind::Stdout; 2].map(|kind| guest.stream("c1", kind));
                guest.linger();
            },
            "it opened Stdout twice",
        ),
        (
            |guest| {
                let mut stream = guest.stream("c1", StreamKind::Stdout);
                write_message(&mut stream, &StreamControl::End { total: 5 }).unwrap();
                guest.linger();
            },
            "Stdout ended at 5 bytes after carrying 0",
        ),
        (
            |guest| {
                let mut stream = guest.stream("c1", StreamKind::Stdin);
                write_data(&mut stream, b"x", &mut Vec::new()).unwrap();
                guest.linger();
            },
            "it sent data on stdin",
        ),
    ];
    for (guest, expected) in cases {
        assert_violation(&Bench::new().verdict_on(guest).await, expected);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn floods_are_cut_off() {
    let flood = Bench::new()
        .verdict_on(|mut guest| {
            for _ in 0..300 {
                guest.exited(0, 0);
            }
            guest.linger();
        })
        .await;
    assert_violation(&flood, "it sent more than 256 messages");

    let crowd = Bench::new()
        .verdict_on(|guest| {
            let _crowd: Vec<_> = (0..9).map(|_| connect(&guest.path, STREAM_PORT)).collect();
            guest.linger();
        })
        .await;
    assert_violation(&crowd, "it made more than 8 stream connections");
}

#[tokio::test(flavor = "current_thread")]
async fn output_that_never_ends_is_reported_as_cut_off() {
    let exit = Bench::new()
        .verdict_on(|mut guest| {
            guest.output(StreamKind::Stderr, b"");
            let mut stream = guest.stream("c1", StreamKind::Stdout);
            write_data(&mut stream, b"12345", &mut Vec::new()).unwrap();
            guest.exited(3, 9);
            guest.linger();
        })
        .await;
    assert_eq!((exit.code, exit.reason), (3, ExitReason::Exited));
    assert_eq!(exit.message.unwrap(), "stdout was cut off before its 9 bytes had all arrived");

    let exit = Bench::new()
        .verdict_on(|mut guest| {
            guest.output(StreamKind::Stderr, b"");
            let mut stream = guest.stream("c1", StreamKind::Stdout);
            write_data(&mut stream, b"12345", &mut Vec::new()).unwrap();
            drop(stream);
            guest.exited(0, 9);
            guest.linger();
        })
        .await;
    assert_eq!(exit.message.unwrap(), "stdout was cut off after 5 of 9 bytes");
}

#[tokio::test(flavor = "current_thread")]
async fn a_guest_whose_control_connection_closes_is_lost() {
    let exit = Bench::new().verdict_on(drop).await;
    assert_violation(&exit, "it closed its control connection");
}

#[tokio::test(flavor = "current_thread")]
async fn a_vm_that_dies_is_lost_and_says_how() {
    let bench = Bench::new();
    let (stdio, _client) = stdio();
    let listeners = Listeners::bind(&bench.directory).unwrap();
    let vm = bench.vm();
    let vmm = vm.vmm.pid();
    let path = bench.directory.path().to_owned();
    std::thread::spawn(move || {
        Guest::dial(path).greet().created().started();
        rustix::process::kill_process(vmm, rustix::process::Signal::KILL).unwrap();
    });
    let accepting = Accepting { control: listeners.control, stream: listeners.stream, copy: listeners.copy };
    let opened = Sandbox::open(vm, accepting, id(), bench.cgroup.clone(), QUICK, &Marks::default()).await;
    let (sandbox, _) = opened.unwrap();
    sandbox.create(create(stdio)).await.unwrap();
    // The answer and the death may be seen in either order.
    let _ = sandbox.start().await;
    let exit = sandbox.verdict().await;
    assert_eq!((exit.code, exit.reason), (125, ExitReason::VmmLost));
    assert_eq!(exit.message.unwrap(), "the VM ended without a report: sleep was ended by signal 9");
    sandbox.stop().await.unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn nobody_but_the_vm_is_listened_to() {
    let bench = Bench::new();
    let listeners = Listeners::bind(&bench.directory).unwrap();
    let mut vm = bench.vm();
    // The connections below come from this process, which is then a stranger.
    vm.dialer = vm.vmm.pid();
    let path = bench.directory.path().to_owned();
    std::thread::spawn(move || {
        let mut guest = Guest::dial(path);
        guest.say(&FromGuest::Hello { protocol: PROTOCOL_VERSION, kernel: "6.1".into() });
        guest.linger();
    });
    let accepting = Accepting { control: listeners.control, stream: listeners.stream, copy: listeners.copy };
    let opened = Sandbox::open(vm, accepting, id(), bench.cgroup.clone(), QUICK, &Marks::default()).await;
    assert_eq!(opened.err().unwrap().kind(), ErrorKind::Timeout);
}
