//! `run`: create, start, attach, and return the container's exit code.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use beta9_types::{BindMount, MemoryBytes, MountAccess};
use clap::Args;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::api;
use crate::cli::cidfile::CidFile;
use crate::cli::flags::Options;
use crate::cli::{Failure, Outcome};
use crate::client::Client;
use crate::terminal;

/// docker's exit code for a failure that is not the container's.
const OUR_FAILURE: u8 = beta9_types::Exit::OUR_FAILURE;

/// Bytes of stdin per message.
const CHUNK: usize = 64 << 10;

const EXAMPLES: &str = "\
Examples:
  beta9-worker run --rm debian python3 -c 'print(1)'
  beta9-worker run --rm --runtime firecracker -m 256m -v /srv/data:/data:ro debian ls /data
  echo hello | beta9-worker run --rm -i busybox cat
  beta9-worker run -d --name web --pool untrusted busybox httpd -f

Exit codes: the command's own; 128+n when signal n ended it; 137 when it ran out of memory;
125 when the container could not be run, 126 when the command cannot be executed, 127 when it does not exist.";

#[derive(Args)]
#[command(after_help = EXAMPLES, disable_help_flag = true)]
pub(super) struct RunArgs {
    /// Remove the container when it is over.
    #[arg(long)]
    rm: bool,
    /// Run in the background and print the container's id.
    #[arg(short, long)]
    detach: bool,
    /// Keep stdin open and pass it on.
    #[arg(short, long, conflicts_with = "detach")]
    interactive: bool,
    /// Set an environment variable; without =VALUE the value of the same variable here.
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Working directory inside the container.
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Run as this user, by name or number, optionally with a group.
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Mount a host file or directory.
    #[arg(short, long, value_name = "SOURCE:TARGET[:ro]")]
    volume: Vec<String>,
    /// Memory limit: a number with an optional b, k, m or g.
    #[arg(short, long, value_name = "SIZE")]
    memory: Option<MemoryBytes>,
    /// The container's name.
    #[arg(long)]
    name: Option<String>,
    /// Host name inside the container; the beginning of its id where absent.
    #[arg(short = 'h', long, value_name = "NAME")]
    hostname: Option<String>,
    /// Write the container's id to this file, which must not exist.
    #[arg(long, value_name = "FILE")]
    cidfile: Option<PathBuf>,
    /// Print this help.
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    #[command(flatten)]
    options: Options,
    /// Run in exactly this runtime: runc, gvisor, firecracker, qemu, or microvm for whichever VM works here.
    /// It never falls back to another.
    #[arg(long, value_name = "RUNTIME")]
    runtime: Option<String>,
    /// Run in this pool; its configuration decides the runtime.
    #[arg(long, value_name = "POOL")]
    pool: Option<String>,
    /// The image.
    image: String,
    /// The command and its arguments; the image's own where absent.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(super) async fn run(client: &mut Client, args: RunArgs) -> Outcome {
    run_in(client, args).await.map_err(|failure| match failure.code {
        1 => failure.with_code(OUR_FAILURE),
        _ => failure,
    })
}

async fn run_in(client: &mut Client, args: RunArgs) -> Outcome {
    let (detach, interactive) = (args.detach, args.interactive);
    let id = create_from(client, args).await?;
    let started = client.containers.start(api::StartRequest { container: id.clone() }).await?.into_inner();
    if detach {
        let exit = started.container.and_then(|container| container.exit);
        if let Some(exit) = exit.filter(|exit| exit.reason == "start_failed") {
            return Err(failed_start(&exit));
        }
        terminal::line(&id)?;
        return Ok(ExitCode::SUCCESS);
    }
    attach(client, id, interactive).await
}

/// `create`: everything of a run up to its start.
pub(super) async fn create(client: &mut Client, args: RunArgs) -> Outcome {
    if args.detach {
        return Err(Failure::new("create starts nothing, so there is nothing to detach from: leave -d out")
            .with_code(OUR_FAILURE));
    }
    let id = create_from(client, args).await?;
    terminal::line(&id)?;
    Ok(ExitCode::SUCCESS)
}

async fn create_from(client: &mut Client, args: RunArgs) -> Result<String, Failure> {
    let cidfile = args.cidfile.as_deref().map(CidFile::claim).transpose()?;
    let created = client.containers.create(request(args)?).await?.into_inner();
    for warning in created.warnings {
        terminal::warning(&warning);
    }
    if let Some(cidfile) = cidfile {
        cidfile.write(&created.id)?;
    }
    Ok(created.id)
}

pub(super) fn failed_start(exit: &api::Exit) -> Failure {
    Failure::new(exit.message.clone()).with_code(u8::try_from(exit.code).unwrap_or(OUR_FAILURE))
}

/// Passes streams and signals until the container is over.
pub(super) async fn attach(client: &mut Client, id: String, interactive: bool) -> Outcome {
    use api::attach_response::Message;
    let (input, messages) = mpsc::channel(4);
    let open = api::attach_request::Message::Open(api::AttachOpen { container: id.clone() });
    let _ = input.send(api::AttachRequest { message: Some(open) }).await;
    let mut output = client.containers.attach(ReceiverStream::new(messages)).await?.into_inner();
    // Kept open without -i: the end of the messages would be the end of the attach's request.
    let _input = if interactive {
        tokio::spawn(pass_stdin(input));
        None
    } else {
        Some(input)
    };
    pass_signals(client.clone(), id)?;
    let (mut stdout, mut stderr) = (std::io::stdout(), std::io::stderr());
    while let Some(message) = output.message().await? {
        match message.message {
            Some(Message::Stdout(bytes)) => write(&mut stdout, &bytes)?,
            Some(Message::Stderr(bytes)) => write(&mut stderr, &bytes)?,
            Some(Message::Exit(exit)) => {
                if exit.reason == "start_failed" {
                    return Err(failed_start(&exit));
                }
                if exit.reason != "exited" && exit.reason != "signaled" {
                    terminal::error(&format!("{}: {}", exit.reason, exit.message));
                }
                return Ok(ExitCode::from(u8::try_from(exit.code).unwrap_or(OUR_FAILURE)));
            }
            None => {}
        }
    }
    Err(Failure::new("the worker closed the connection before the container's end; see `beta9-worker ps -a`"))
}

/// Whoever reads our output may have enough of it, which ends us as it ends any filter.
fn write(to: &mut impl Write, bytes: &[u8]) -> Result<(), Failure> {
    to.write_all(bytes).and_then(|()| to.flush()).map_err(|e| match e.kind() {
        std::io::ErrorKind::BrokenPipe => Failure { message: String::new(), code: 141 },
        _ => Failure::new(format!("write the container's output: {e}")),
    })
}

async fn pass_stdin(input: mpsc::Sender<api::AttachRequest>) {
    use api::attach_request::Message;
    let mut stdin = tokio::io::stdin();
    loop {
        let mut chunk = vec![0; CHUNK];
        let message = match stdin.read(&mut chunk).await {
            Ok(0) | Err(_) => Message::StdinClosed(true),
            Ok(count) => {
                chunk.truncate(count);
                Message::Stdin(chunk)
            }
        };
        let is_last = matches!(message, Message::StdinClosed(_));
        if input.send(api::AttachRequest { message: Some(message) }).await.is_err() || is_last {
            // The stream of messages stays open until the container's end.
            return input.closed().await;
        }
    }
}

/// Signals for us are signals for the container; the third one kills it.
fn pass_signals(client: Client, id: String) -> Result<(), Failure> {
    let passed = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()];
    let (sender, mut received) = mpsc::channel(4);
    for kind in passed {
        let mut signals = signal(kind).map_err(|e| Failure::new(format!("receive signals: {e}")))?;
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
            let number = if count < 3 { number } else { SIGKILL };
            let request = api::KillRequest { container: id.clone(), signal: number, all: false };
            // It may just have ended, which the attach reports.
            let _ = client.containers.kill(request).await;
        }
    });
    Ok(())
}

const SIGKILL: i32 = 9;

fn request(args: RunArgs) -> Result<api::CreateRequest, Failure> {
    let mounts = args.volume.iter().map(|text| mount(text)).collect::<Result<_, _>>()?;
    let mut request = api::CreateRequest {
        image: args.image,
        command: args.command,
        env: args.env.into_iter().filter_map(variable).collect(),
        cwd: args.workdir.unwrap_or_default(),
        user: args.user.unwrap_or_default(),
        hostname: args.hostname.unwrap_or_default(),
        mounts,
        memory_bytes: args.memory.map_or(0, MemoryBytes::get),
        name: args.name.unwrap_or_default(),
        runtime: args.runtime.unwrap_or_default(),
        pool: args.pool.unwrap_or_default(),
        stdin: args.interactive,
        auto_remove: args.rm,
        ..api::CreateRequest::default()
    };
    args.options.apply(&mut request)?;
    Ok(request)
}

/// docker's rule: a name alone takes the value from here, and is left out where it has none.
pub(super) fn variable(text: String) -> Option<String> {
    if text.contains('=') {
        return Some(text);
    }
    let value = std::env::var(&text).ok()?;
    Some(format!("{text}={value}"))
}

fn mount(text: &str) -> Result<api::Mount, Failure> {
    // A path that starts with a dot is relative to here, as for docker.
    let absolute = match text.split_once(':') {
        Some((source, rest)) if source == "." || source.starts_with("./") || source.starts_with("../") => {
            let source = std::path::absolute(source)
                .and_then(|path| path.canonicalize())
                .map_err(|e| Failure::new(format!("mount source {source}: {e}")))?;
            format!("{}:{rest}", source.display())
        }
        _ => text.to_owned(),
    };
    let mount: BindMount =
        absolute.parse().map_err(|e: beta9_types::ParseError| Failure::new(e.to_string()))?;
    Ok(api::Mount {
        source: mount.source.to_string_lossy().into_owned(),
        target: mount.target.to_string_lossy().into_owned(),
        read_only: mount.access == MountAccess::ReadOnly,
    })
}
