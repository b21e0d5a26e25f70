//! `attach`: take part in the streams of a running container.

use std::process::ExitCode;

use clap::Args;
use tokio::sync::mpsc;

use crate::api;
use crate::cli::session::{self, Ended, Options, Process, Signals, Stdin, Terminal};
use crate::cli::{Failure, Outcome};
use crate::client::Client;
use crate::detach_keys::DetachKeys;

#[derive(Args)]
pub(super) struct AttachArgs {
    /// Only look: do not pass stdin on.
    #[arg(long)]
    no_stdin: bool,
    /// Pass signals on to the container's process. Where it has a terminal, its keys do that.
    #[arg(
        long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set,
        num_args = 0..=1, default_missing_value = "true", require_equals = true
    )]
    sig_proxy: bool,
    /// The keys that leave the container's terminal and let it run on.
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: DetachKeys,
    /// Id, beginning of an id, or name.
    container: String,
}

pub(super) async fn run(client: &mut Client, args: AttachArgs) -> Outcome {
    let request = api::InspectRequest { container: args.container.clone(), sizes: false };
    let known = client.containers.inspect(request).await?.into_inner().container.unwrap_or_default();
    if known.status != "running" {
        let text = format!("container {} is not running: `logs` shows what it wrote", args.container);
        return Err(Failure::new(text));
    }
    let passes_stdin = known.stdin && !args.no_stdin;
    session::check_terminal(passes_stdin, known.terminal)?;
    let process = Process { container: known.id.clone(), exec: String::new() };
    let options = Options {
        stdin: if passes_stdin { Stdin::PassedOn } else { Stdin::Ours },
        terminal: if known.terminal { Terminal::There } else { Terminal::None },
        signals: if args.sig_proxy { Signals::PassedOn } else { Signals::Ours },
        keys: args.detach_keys,
    };
    let from = api::AttachFrom::Now;
    attach(client, process, options, from).await
}

/// Attaches to a container's main process, and returns its exit code, or 0 when the user has left.
pub(super) async fn attach(
    client: &mut Client,
    process: Process,
    options: Options,
    from: api::AttachFrom,
) -> Outcome {
    let (say, said) = mpsc::channel(4);
    let no_stdin = options.stdin == Stdin::Ours;
    let open = api::AttachOpen { container: process.container.clone(), no_stdin, from: from.into() };
    let output = client.containers.attach(session::attach_messages(open, said)).await?.into_inner();
    let name = process.container.get(..12).unwrap_or(&process.container).to_owned();
    match session::run(client, process, options, output, say).await? {
        Ended::Exit(exit) => session::exit_code(&exit),
        Ended::Detached => {
            eprintln!("\ndetached; the container goes on: `beta9-worker attach {name}` comes back to it");
            Ok(ExitCode::SUCCESS)
        }
    }
}
