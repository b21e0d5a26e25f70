//! A host for the guest: the machine, its vsock daemon, and the host's side of the protocol.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use beta9_types::ContainerId;
use beta9_wire::{
    CONTROL_PORT, Frame, FromGuest, GuestExit, PROTOCOL_VERSION, SHARE_PORT, STREAM_PORT, StartFailure,
    StreamControl, StreamKind, StreamOpen, ToGuest, decode, read_frame, write_data, write_message,
};
use tempfile::TempDir;

use crate::image;
use crate::share::{self, Files};
use crate::spec::Wanted;

/// No step of any test takes this long, on a busy machine without acceleration.
const DEADLINE: Duration = Duration::from_secs(60);

/// One machine at a time: they have no cores to share.
static TURN: Mutex<()> = Mutex::new(());

/// A booted machine, with this test as its host.
pub(crate) struct Guest {
    directory: TempDir,
    qemu: Child,
    daemon: Child,
    control: UnixStream,
    /// Every stream connection that has ended, with what it carried.
    streams: Receiver<(StreamOpen, Vec<u8>)>,
    input: Receiver<UnixStream>,
    /// What the share exports.
    pub(crate) files: Files,
    containers: u32,
    _turn: MutexGuard<'static, ()>,
}

/// What became of a container that ran.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) exit: GuestExit,
}

impl Guest {
    /// Boots a machine. `None` after a printed reason where something that is needed is missing.
    pub(crate) fn boot() -> Option<Self> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        match Self::try_boot(turn) {
            Ok(guest) => Some(guest),
            Err(reason) => {
                eprintln!("skipped: {reason}");
                None
            }
        }
    }

    fn try_boot(turn: MutexGuard<'static, ()>) -> Result<Self, String> {
        let files = guest_files()?;
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        image::make(directory.path())?;

        let listen = |port| UnixListener::bind(path(&format!("v.sock_{port}"))).unwrap();
        let (control, streams, shares) = (listen(CONTROL_PORT), listen(STREAM_PORT), listen(SHARE_PORT));
        let daemon = Command::new("vhost-device-vsock")
            .arg("--vm")
            .arg(format!("guest-cid=3,uds-path={},socket={}", path("v.sock").display(), path("u").display()))
            .stderr(File::create(path("daemon.log")).unwrap())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|e| format!("cannot run vhost-device-vsock: {e}"))?;
        let mut started = Started(vec![daemon]);
        wait_for(&path("u"));
        let qemu = qemu(&files, directory.path())
            .stdin(Stdio::null())
            .stdout(File::create(path("console")).unwrap())
            .stderr(File::create(path("qemu.log")).unwrap())
            .spawn()
            .map_err(|e| format!("cannot run qemu-system-x86_64: {e}"))?;
        started.0.push(qemu);

        let begin = Instant::now();
        let mut control = accept(&control).unwrap_or_else(|| {
            let console = fs::read_to_string(path("console")).unwrap_or_default();
            panic!("the guest did not dial; its console:\n{console}")
        });
        control.set_read_timeout(Some(DEADLINE)).unwrap();
        let hello: FromGuest = receive(&mut control).unwrap();
        eprintln!("{hello:?} after {:?}", begin.elapsed());
        assert!(matches!(hello, FromGuest::Hello { protocol: PROTOCOL_VERSION, .. }));
        let unix_ns = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos().try_into().unwrap();
        let sandbox = ContainerId::random();
        let welcome = ToGuest::Welcome { protocol: PROTOCOL_VERSION, sandbox, unix_ns, entropy: [9; 32] };
        write_message(&mut control, &welcome).unwrap();

        let (streams, input) = serve_streams(streams);
        let files = Files::default();
        share::serve(shares, Files::clone(&files));
        let mut children = std::mem::take(&mut started.0);
        let (qemu, daemon) = (children.pop().unwrap(), children.pop().unwrap());
        Ok(Self { directory, qemu, daemon, control, streams, input, files, containers: 0, _turn: turn })
    }

    /// A new container's id.
    pub(crate) fn new_id(&mut self) -> ContainerId {
        self.containers += 1;
        ContainerId::parse(&format!("test-{}", self.containers)).unwrap()
    }

    /// Tells the guest something.
    pub(crate) fn send(&mut self, message: &ToGuest) {
        write_message(&mut self.control, message).unwrap();
    }

    /// The guest's next report.
    pub(crate) fn receive(&mut self) -> FromGuest {
        loop {
            let report = receive(&mut self.control).unwrap_or_else(|error| {
                panic!("the guest is gone: {error}; its console:\n{}", self.console());
            });
            match report {
                FromGuest::Reached { marks, .. } => eprintln!("{marks:?}"),
                report => return report,
            }
        }
    }

    /// Creates and starts a container; it runs when this returns.
    pub(crate) fn start(&mut self, wanted: &Wanted) -> Result<ContainerId, (StartFailure, String)> {
        let id = self.new_id();
        self.send(&ToGuest::Create {
            container: id.clone(),
            root: wanted.root.clone(),
            spec: Box::new(wanted.spec.clone()),
        });
        match self.receive() {
            FromGuest::Created { container } => assert_eq!(container, id),
            FromGuest::Failed { failure, message, .. } => return Err((failure, message)),
            other => panic!("{other:?} instead of Created"),
        }
        self.send(&ToGuest::Start { container: id.clone() });
        match self.receive() {
            FromGuest::Started { container } => assert_eq!(container, id),
            FromGuest::Failed { failure, message, .. } => return Err((failure, message)),
            other => panic!("{other:?} instead of Started"),
        }
        if wanted.spec.process.stdin {
            let mut stream = self.input.recv_timeout(DEADLINE).unwrap();
            let input = wanted.input.clone();
            std::thread::spawn(move || send_input(&mut stream, &input));
        }
        Ok(id)
    }

    /// Waits for a container's exit and the end of its streams.
    pub(crate) fn wait(&mut self, id: &ContainerId) -> Outcome {
        let exit = match self.receive() {
            FromGuest::Exited { container, exit } if container == *id => exit,
            other => panic!("{other:?} instead of Exited"),
        };
        self.send(&ToGuest::ExitAck { container: id.clone() });
        let mut streams = HashMap::new();
        while streams.len() < 2 {
            let (open, data) = self.streams.recv_timeout(DEADLINE).unwrap();
            // Streams of a container that failed to start end late.
            if open.container == *id {
                streams.insert(open.stream, data);
            }
        }
        let mut take = |kind| streams.remove(&kind).unwrap();
        let outcome = Outcome { stdout: take(StreamKind::Stdout), stderr: take(StreamKind::Stderr), exit };
        assert_eq!(outcome.exit.stdout_bytes, outcome.stdout.len() as u64);
        assert_eq!(outcome.exit.stderr_bytes, outcome.stderr.len() as u64);
        outcome
    }

    /// Runs a container from its creation to its exit.
    pub(crate) fn run(&mut self, wanted: &Wanted) -> Result<Outcome, (StartFailure, String)> {
        let begin = Instant::now();
        let id = self.start(wanted)?;
        let started = begin.elapsed();
        let outcome = self.wait(&id);
        eprintln!("{id} started after {started:?}, ended after {:?}", begin.elapsed());
        Ok(outcome)
    }

    /// What the guest wrote to its console.
    pub(crate) fn console(&self) -> String {
        let bytes = fs::read(self.directory.path().join("console")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Shuts the machine down as a host does, and checks that its VMM ends and nothing was complained about.
    pub(crate) fn shut_down(mut self) {
        self.send(&ToGuest::Shutdown);
        assert!(self.ends(), "the VMM did not end; console:\n{}", self.console());
        let console = self.console();
        assert!(!console.contains("beta9-vm-init:"), "console:\n{console}");
    }

    /// Ends the control connection as a host that dies does.
    pub(crate) fn abandon(mut self) -> String {
        self.control.shutdown(std::net::Shutdown::Both).unwrap();
        assert!(self.ends(), "the VMM did not end; console:\n{}", self.console());
        self.console()
    }

    fn ends(&mut self) -> bool {
        let end = Instant::now() + DEADLINE;
        while Instant::now() < end {
            if self.qemu.try_wait().unwrap().is_some() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        for child in [&mut self.qemu, &mut self.daemon] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Children that end when a test fails before it has a machine.
struct Started(Vec<Child>);

impl Drop for Started {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn guest_files() -> Result<PathBuf, String> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let default = workspace.join("target/guest");
    let directory = std::env::var_os("BETA9_GUEST_DIR").map_or(default, PathBuf::from);
    for name in ["vmlinux", "initrd.img"] {
        if !directory.join(name).exists() {
            return Err(format!("no {name} in {}; run cargo xtask guest", directory.display()));
        }
    }
    Ok(directory)
}

fn qemu(files: &Path, directory: &Path) -> Command {
    let information = fs::read_to_string("/proc/cpuinfo").unwrap();
    let mhz = information.lines().find_map(|line| line.strip_prefix("cpu MHz")?.split(": ").nth(1));
    let khz = (mhz.unwrap().parse::<f64>().unwrap() * 1000.0) as u64;
    let mut command = Command::new("qemu-system-x86_64");
    command.args("-M microvm,memory-backend=mem -accel tcg -cpu max -m 256 -smp 1".split(' '));
    command.args("-object memory-backend-memfd,id=mem,size=256M,share=on".split(' '));
    command.args("-nodefaults -no-user-config -display none -serial stdio -no-reboot".split(' '));
    command.arg("-kernel").arg(files.join("vmlinux"));
    command.arg("-initrd").arg(files.join("initrd.img"));
    command.arg("-append").arg(format!(
        "console=ttyS0 loglevel=5 panic=-1 reboot=t tsc_early_khz={khz} tsc=reliable {}",
        std::env::var("BETA9_GUEST_APPEND").unwrap_or_default()
    ));
    command.arg("-chardev").arg(format!("socket,id=cv,path={}", directory.join("u").display()));
    command.args(["-device", "vhost-user-vsock-device,chardev=cv"]);
    for (id, name, read_only) in [("r", "root.erofs", "on"), ("l", "layer.ext4", "off")] {
        let file = directory.join(name).display().to_string();
        command.args(["-device", &format!("virtio-blk-device,drive={id}")]);
        command.arg("-drive").arg(format!("if=none,id={id},file={file},format=raw,readonly={read_only}"));
    }
    command
}

fn serve_streams(listener: UnixListener) -> (Receiver<(StreamOpen, Vec<u8>)>, Receiver<UnixStream>) {
    let (ended, streams) = channel();
    let (opened, input) = channel();
    listener.set_nonblocking(false).unwrap();
    std::thread::spawn(move || {
        // Ends with the test's process: the listener has no other user.
        while let Ok((mut stream, _)) = listener.accept() {
            let (ended, opened) = (ended.clone(), opened.clone());
            std::thread::spawn(move || {
                let open: StreamOpen = receive(&mut stream).unwrap();
                if open.stream == StreamKind::Stdin {
                    return drop(opened.send(stream));
                }
                let data = collect(&mut stream);
                let _ = ended.send((open, data));
            });
        }
    });
    (streams, input)
}

fn collect(stream: &mut UnixStream) -> Vec<u8> {
    let mut data = Vec::new();
    loop {
        match read_frame(stream).unwrap() {
            Frame::Data(bytes) => data.extend(bytes),
            Frame::Message(body) => {
                let end = decode("stream", &body).unwrap();
                assert!(matches!(end, StreamControl::End { total } if total == data.len() as u64));
                write_message(stream, &StreamControl::EndAck).unwrap();
                return data;
            }
        }
    }
}

/// Sends all input and waits for its acknowledgement. The container may end before it has read everything.
fn send_input(stream: &mut UnixStream, input: &[u8]) -> Result<(), beta9_wire::Error> {
    let mut scratch = Vec::new();
    for chunk in input.chunks(beta9_wire::MAX_DATA) {
        write_data(stream, chunk, &mut scratch)?;
    }
    write_message(stream, &StreamControl::End { total: input.len() as u64 })?;
    let _: StreamControl = receive(stream)?;
    Ok(())
}

fn receive<T: serde::de::DeserializeOwned>(from: &mut UnixStream) -> Result<T, beta9_wire::Error> {
    match read_frame(from)? {
        Frame::Message(body) => decode("message", &body),
        Frame::Data(_) => panic!("data where a message was expected"),
    }
}

fn accept(listener: &UnixListener) -> Option<UnixStream> {
    listener.set_nonblocking(true).unwrap();
    let end = Instant::now() + DEADLINE;
    while Instant::now() < end {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).unwrap();
                return Some(stream);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => panic!("{error}"),
        }
    }
    None
}

fn wait_for(path: &Path) {
    let end = Instant::now() + DEADLINE;
    while !path.exists() {
        assert!(Instant::now() < end, "{} does not appear", path.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}
