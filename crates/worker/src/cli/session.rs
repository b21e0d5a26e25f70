//! The user's end of a process's streams, for `run`, `attach` and `exec`.
//!
//! ```text
//! connected ──▶ passing input, output, signals and sizes ──▶ exit
//!                                   └─ detach keys, or a signal at a raw terminal ──▶ left: the process goes on
//! ```

use std::io::Write;
use std::process::ExitCode;

use tokio::io::AsyncReadExt;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use crate::api;
use crate::cli::Failure;
use crate::client::Client;
use crate::detach_keys::{DetachKeys, Detector, Typed};
use crate::tty::{self, RawMode};

/// Bytes of stdin per message.
const CHUNK: usize = 64 << 10;
/// docker's exit code for a failure that is not the container's.
pub(super) const OUR_FAILURE: u8 = beta9_types::Exit::OUR_FAILURE;

/// What the process has and the user wants.
#[derive(Debug, Clone)]
pub(super) struct Options {
    /// Whether our stdin is passed on.
    pub(super) stdin: Stdin,
    /// Whether the process has a terminal.
    pub(super) terminal: Terminal,
    /// Whether our signals are the process's.
    pub(super) signals: Signals,
    /// What leaves a terminal.
    pub(super) keys: DetachKeys,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stdin {
    PassedOn,
    Ours,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Terminal {
    /// One that the process has just been given, of our size.
    New,
    /// One that is there already, with something on its screen.
    There,
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signals {
    PassedOn,
    Ours,
}

/// Which process it is.
#[derive(Debug, Clone)]
pub(super) struct Process {
    pub(super) container: String,
    /// Empty for the main one.
    pub(super) exec: String,
}

/// How a session ended.
#[derive(Debug)]
pub(super) enum Ended {
    Exit(api::Exit),
    /// The user left.
    Detached,
}

/// What we say to the process.
#[derive(Debug)]
pub(super) enum Say {
    Stdin(Vec<u8>),
    End,
    Detach,
}

/// What comes from it.
pub(super) enum Heard {
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    Exit(api::Exit),
    Nothing,
}

/// An answer of `Attach` or `Exec`.
pub(super) trait Hears {
    fn heard(self) -> Heard;
}

impl Hears for api::AttachResponse {
    fn heard(self) -> Heard {
        use api::attach_response::Message;
        match self.message {
            Some(Message::Stdout(bytes)) => Heard::Stdout(bytes),
            Some(Message::Stderr(bytes)) => Heard::Stderr(bytes),
            Some(Message::Exit(exit)) => Heard::Exit(exit),
            None => Heard::Nothing,
        }
    }
}

impl Hears for api::ExecResponse {
    fn heard(self) -> Heard {
        use api::exec_response::Message;
        match self.message {
            Some(Message::Stdout(bytes)) => Heard::Stdout(bytes),
            Some(Message::Stderr(bytes)) => Heard::Stderr(bytes),
            Some(Message::Exit(exit)) => Heard::Exit(exit),
            Some(Message::Started(_)) | None => Heard::Nothing,
        }
    }
}

/// Our side of the messages of an attach.
pub(super) fn attach_messages(
    open: api::AttachOpen,
    said: mpsc::Receiver<Say>,
) -> impl tokio_stream::Stream<Item = api::AttachRequest> {
    use api::attach_request::Message;
    let message = |message| api::AttachRequest { message: Some(message) };
    let rest = ReceiverStream::new(said).map(move |say| {
        message(match say {
            Say::Stdin(bytes) => Message::Stdin(bytes),
            Say::End => Message::StdinClosed(true),
            Say::Detach => Message::Detach(true),
        })
    });
    tokio_stream::once(message(Message::Open(open))).chain(rest)
}

/// Our side of the messages of an exec.
pub(super) fn exec_messages(
    open: api::ExecOpen,
    said: mpsc::Receiver<Say>,
) -> impl tokio_stream::Stream<Item = api::ExecRequest> {
    use api::exec_request::Message;
    let message = |message| api::ExecRequest { message: Some(message) };
    let rest = ReceiverStream::new(said).map(move |say| {
        message(match say {
            Say::Stdin(bytes) => Message::Stdin(bytes),
            Say::End => Message::StdinClosed(true),
            Say::Detach => Message::Detach(true),
        })
    });
    tokio_stream::once(message(Message::Open(open))).chain(rest)
}

/// Refuses what needs a terminal here and finds none.
pub(super) fn check_terminal(interactive: bool, terminal: bool) -> Result<(), Failure> {
    if interactive && terminal && !tty::stdin_is_terminal() {
        let text = "-t with -i needs a terminal on stdin, and this is none: leave out -t to pass a file or a pipe on";
        return Err(Failure::new(text));
    }
    Ok(())
}

/// The size to give to a new terminal.
pub(super) fn new_terminal(wanted: bool) -> Option<api::TerminalSize> {
    wanted.then(|| tty::size().unwrap_or_default())
}

/// Connects our terminal with the process, until its end or until the user leaves.
pub(super) async fn run<T: Hears>(
    client: &Client,
    process: Process,
    options: Options,
    mut output: tonic::Streaming<T>,
    say: mpsc::Sender<Say>,
) -> Result<Ended, Failure> {
    let is_raw =
        options.stdin == Stdin::PassedOn && options.terminal != Terminal::None && tty::stdin_is_terminal();
    let _raw = if is_raw { Some(RawMode::enter()?) } else { None };
    let mut fatal = fatal_signals(is_raw)?;
    if options.signals == Signals::PassedOn && !is_raw {
        pass_signals(client.clone(), process.clone())?;
    }
    if options.terminal != Terminal::None {
        pass_sizes(client.clone(), process, options.terminal)?;
    }
    let (left, mut has_left) = mpsc::channel(1);
    if options.stdin == Stdin::PassedOn {
        let detector = is_raw.then(|| Detector::new(options.keys));
        tokio::spawn(pass_stdin(say.clone(), detector, left.clone()));
    }
    // Both are kept: the end of the messages would be the end of the input, which may be another's.
    let _kept = (say, left);
    let (mut stdout, mut stderr) = (std::io::stdout(), std::io::stderr());
    loop {
        let message = tokio::select! {
            biased;
            Some(()) = has_left.recv() => return Ok(Ended::Detached),
            Some(number) = fatal.recv() => {
                let code = 128 + u8::try_from(number).unwrap_or(0);
                return Err(Failure { message: String::new(), code });
            }
            message = output.message() => message?,
        };
        match message.map(Hears::heard) {
            Some(Heard::Stdout(bytes)) => write(&mut stdout, &bytes)?,
            Some(Heard::Stderr(bytes)) => write(&mut stderr, &bytes)?,
            Some(Heard::Exit(exit)) => return Ok(Ended::Exit(exit)),
            Some(Heard::Nothing) => {}
            None => {
                let text = "the worker closed the connection before the end; see `beta9-worker ps -a`";
                return Err(Failure::new(text));
            }
        }
    }
}

/// The exit code that a process's end means for us.
pub(super) fn exit_code(exit: &api::Exit) -> Result<ExitCode, Failure> {
    let code = u8::try_from(exit.code).unwrap_or(OUR_FAILURE);
    if is_not_its_own(exit) {
        return Err(Failure::new(exit.message.clone()).with_code(code));
    }
    if exit.reason != "exited" && exit.reason != "signaled" {
        crate::terminal::error(&format!("{}: {}", exit.reason, exit.message));
    }
    Ok(ExitCode::from(code))
}

/// Whether an end is not the process's own: it never started, or something that it stands on was lost.
pub(super) fn is_not_its_own(exit: &api::Exit) -> bool {
    !matches!(exit.reason.as_str(), "exited" | "signaled" | "oom")
}

/// Whoever reads our output may have enough of it, which ends us as it ends any filter.
fn write(to: &mut impl Write, bytes: &[u8]) -> Result<(), Failure> {
    to.write_all(bytes).and_then(|()| to.flush()).map_err(|e| match e.kind() {
        std::io::ErrorKind::BrokenPipe => Failure { message: String::new(), code: 141 },
        _ => Failure::new(format!("write the container's output: {e}")),
    })
}

async fn pass_stdin(say: mpsc::Sender<Say>, mut detector: Option<Detector>, left: mpsc::Sender<()>) {
    let mut stdin = tokio::io::stdin();
    loop {
        let mut chunk = vec![0; CHUNK];
        let said = match stdin.read(&mut chunk).await {
            Ok(0) | Err(_) => Say::End,
            Ok(count) => {
                chunk.truncate(count);
                match detector.as_mut().map(|detector| detector.take(&chunk)) {
                    None => Say::Stdin(chunk),
                    Some(Typed::PassOn(bytes)) => Say::Stdin(bytes),
                    Some(Typed::Detach(bytes)) => {
                        let _ = say.send(Say::Stdin(bytes)).await;
                        let _ = say.send(Say::Detach).await;
                        // The worker hears it, or sees that we are gone.
                        let _ = left.send(()).await;
                        return;
                    }
                }
            }
        };
        if matches!(&said, Say::Stdin(bytes) if bytes.is_empty()) {
            continue;
        }
        let is_last = matches!(said, Say::End);
        if say.send(said).await.is_err() || is_last {
            return;
        }
    }
}

/// Signals for us are signals for the process; the third one kills it.
fn pass_signals(client: Client, process: Process) -> Result<(), Failure> {
    let passed = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()];
    let (sender, mut received) = mpsc::channel(4);
    for kind in passed {
        let mut signals = listen(kind)?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                let _ = sender.send(kind.as_raw_value()).await;
            }
        });
    }
    tokio::spawn(async move {
        let (mut client, mut count) = (client, 0);
        while let Some(number) = received.recv().await {
            count += 1;
            let signal = if count < 3 { number } else { SIGKILL };
            let Process { container, exec } = process.clone();
            // It may just have ended, which we are told.
            let _ = client.containers.kill(api::KillRequest { container, signal, all: false, exec }).await;
        }
    });
    Ok(())
}

const SIGKILL: i32 = 9;

/// Tells the process the size of our terminal whenever that changes.
fn pass_sizes(client: Client, process: Process, terminal: Terminal) -> Result<(), Failure> {
    let mut changes = listen(SignalKind::window_change())?;
    tokio::spawn(async move {
        let mut client = client;
        let mut tell = async |size: api::TerminalSize| {
            let Process { container, exec } = process.clone();
            let _ = client.containers.resize(api::ResizeRequest { container, exec, size: Some(size) }).await;
        };
        if terminal == Terminal::There
            && let Some(size) = tty::size()
        {
            // Any change has a program draw its screen again, which is not on ours yet.
            tell(api::TerminalSize { rows: size.rows + 1, ..size }).await;
            tell(size).await;
        }
        while changes.recv().await.is_some() {
            if let Some(size) = tty::size() {
                tell(size).await;
            }
        }
    });
    Ok(())
}

/// Signals that end us while the terminal is raw, which has to be undone first. Ctrl-C is none: it is a key then.
fn fatal_signals(is_raw: bool) -> Result<mpsc::Receiver<i32>, Failure> {
    let kinds = [SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt(), SignalKind::quit()];
    let (sender, received) = mpsc::channel(4);
    for kind in kinds.into_iter().filter(|_| is_raw) {
        let mut signals = listen(kind)?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                let _ = sender.send(kind.as_raw_value()).await;
            }
        });
    }
    Ok(received)
}

fn listen(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|e| Failure::new(format!("receive signals: {e}")))
}
