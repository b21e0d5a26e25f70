//! `run`: create, start, attach, and return the container's exit code.

use std::path::PathBuf;
use std::process::ExitCode;

use beta9_types::{LogLimits, MemoryBytes};
use clap::Args;

use crate::api;
use crate::cli::attach::attach;
use crate::cli::cidfile::CidFile;
use crate::cli::flags;
use crate::cli::pull::{self, ImageFlags};
use crate::cli::session::{self, OUR_FAILURE, Options, Process, Signals, Stdin, Terminal, is_not_its_own};
use crate::cli::{Failure, Outcome};
use crate::client::Client;
use crate::detach_keys::DetachKeys;
use crate::terminal;

const EXAMPLES: &str = "\
Examples:
  beta9-worker run --rm debian python3 -c 'print(1)'
  beta9-worker run --rm --runtime firecracker -m 256m -v /srv/data:/data:ro debian ls /data
  echo hello | beta9-worker run --rm -i busybox cat
  beta9-worker run --rm -it debian bash
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
    #[arg(short, long)]
    interactive: bool,
    /// Give the container's process a terminal.
    #[arg(short, long)]
    tty: bool,
    /// Pass signals on to the container's process. Where it has a terminal, its keys do that.
    #[arg(
        long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set,
        num_args = 0..=1, default_missing_value = "true", require_equals = true
    )]
    sig_proxy: bool,
    /// The keys that leave the container's terminal and let it run on.
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: DetachKeys,
    /// How much of the output is kept: max-size=SIZE of a file, max-file=NUMBER of them.
    #[arg(long, value_name = "NAME=VALUE")]
    log_opt: Vec<String>,
    /// Set an environment variable; without =VALUE the value of the same variable here.
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Working directory inside the container.
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Run as this user, by name or number, optionally with a group.
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
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
    options: flags::Options,
    /// Run in exactly this runtime: runc, gvisor, firecracker, qemu, or microvm for whichever VM works here.
    /// It never falls back to another.
    #[arg(long, value_name = "RUNTIME")]
    runtime: Option<String>,
    /// Run in this pool; its configuration decides the runtime.
    #[arg(long, value_name = "POOL")]
    pool: Option<String>,
    #[command(flatten)]
    source: ImageFlags,
    /// The image.
    image: String,
    /// The command and its arguments; the image's own where absent.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(super) async fn run(client: &mut Client, args: RunArgs) -> Outcome {
    run_in(client, args).await.map_err(ours)
}

async fn run_in(client: &mut Client, args: RunArgs) -> Outcome {
    let (detach, interactive, has_terminal) = (args.detach, args.interactive, args.tty);
    if !detach {
        session::check_terminal(interactive, has_terminal)?;
    }
    let options = Options {
        stdin: if interactive { Stdin::PassedOn } else { Stdin::Ours },
        terminal: if has_terminal { Terminal::New } else { Terminal::None },
        signals: if args.sig_proxy { Signals::PassedOn } else { Signals::Ours },
        keys: args.detach_keys.clone(),
    };
    let id = create_from(client, args).await?;
    let started = client.containers.start(api::StartRequest { container: id.clone() }).await?.into_inner();
    if detach {
        let exit = started.container.and_then(|container| container.exit);
        if let Some(exit) = exit.filter(is_not_its_own) {
            return Err(failed(&exit));
        }
        terminal::line(&id)?;
        return Ok(ExitCode::SUCCESS);
    }
    let process = Process { container: id, exec: String::new() };
    attach(client, process, options, api::AttachFrom::Start).await
}

/// `create`: everything of a run up to its start.
pub(super) async fn create(client: &mut Client, args: RunArgs) -> Outcome {
    if args.detach {
        return Err(Failure::new("create starts nothing, so there is nothing to detach from: leave -d out")
            .with_code(OUR_FAILURE));
    }
    let id = create_from(client, args).await.map_err(ours)?;
    terminal::line(&id)?;
    Ok(ExitCode::SUCCESS)
}

/// What goes wrong before there is a container is told apart from every code of its own.
fn ours(failure: Failure) -> Failure {
    if failure.code == 1 { failure.with_code(OUR_FAILURE) } else { failure }
}

async fn create_from(client: &mut Client, args: RunArgs) -> Result<String, Failure> {
    let cidfile = args.cidfile.as_deref().map(CidFile::claim).transpose()?;
    let source = args.source.clone();
    let created = pull::create(client, request(args)?, &source).await?;
    for warning in created.warnings {
        terminal::warning(&warning);
    }
    if let Some(cidfile) = cidfile {
        cidfile.write(&created.id)?;
    }
    Ok(created.id)
}

pub(super) fn failed(exit: &api::Exit) -> Failure {
    Failure::new(exit.message.clone()).with_code(u8::try_from(exit.code).unwrap_or(OUR_FAILURE))
}

fn request(args: RunArgs) -> Result<api::CreateRequest, Failure> {
    let (log_max_size, log_max_files) = log_options(&args.log_opt)?;
    let mut request = api::CreateRequest {
        image: args.image,
        command: args.command,
        env: args.env.into_iter().filter_map(variable).collect(),
        cwd: args.workdir.unwrap_or_default(),
        user: args.user.unwrap_or_default(),
        hostname: args.hostname.unwrap_or_default(),
        memory_bytes: args.memory.map_or(0, MemoryBytes::get),
        name: args.name.unwrap_or_default(),
        runtime: args.runtime.unwrap_or_default(),
        pool: args.pool.unwrap_or_default(),
        stdin: args.interactive,
        auto_remove: args.rm,
        terminal: session::new_terminal(args.tty),
        attach: !args.detach,
        log_max_size,
        log_max_files,
        ..api::CreateRequest::default()
    };
    args.options.apply(&mut request)?;
    Ok(request)
}

/// docker's options of its log drivers; 0 is the worker's.
fn log_options(options: &[String]) -> Result<(u64, u32), Failure> {
    let (mut size, mut files) = (0, 0);
    for option in options {
        let bad = || Failure::new(format!("invalid --log-opt {option:?}: use max-size=10m or max-file=3"));
        match option.split_once('=') {
            Some(("max-size", text)) => {
                size = LogLimits::parse_size(text).map_err(|e| Failure::new(e.to_string()))?;
            }
            Some(("max-file", text)) => {
                files = text.parse().ok().filter(|count| *count > 0).ok_or_else(bad)?;
            }
            _ => return Err(bad()),
        }
    }
    Ok((size, files))
}

/// docker's rule: a name alone takes the value from here, and is left out where it has none.
pub(super) fn variable(text: String) -> Option<String> {
    if text.contains('=') {
        return Some(text);
    }
    let value = std::env::var(&text).ok()?;
    Some(format!("{text}={value}"))
}
