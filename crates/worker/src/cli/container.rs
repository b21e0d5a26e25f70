//! The commands that do one thing to each of the containers they name: `start`, `restart`, `wait`, `stop`,
//! `kill`, `rm`.

use std::process::ExitCode;

use beta9_types::SignalNumber;
use clap::{Args, Subcommand};

use crate::api;
use crate::cli::filter::{self, Filter};
use crate::cli::{Failure, Outcome, attach, run, session};
use crate::client::Client;
use crate::detach_keys::DetachKeys;
use crate::terminal;

#[derive(Args)]
pub(super) struct WaitArgs {
    /// Ids, beginnings of ids, or names.
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Args)]
pub(super) struct StopArgs {
    /// Seconds between its stop signal and SIGKILL; the container's own where absent, which is 10 by default.
    #[arg(short, long, value_name = "SECONDS", alias = "timeout")]
    time: Option<u64>,
    /// What is sent first, by name or number, instead of the container's own stop signal.
    #[arg(short, long, value_name = "SIGNAL")]
    signal: Option<SignalNumber>,
    /// Ids, beginnings of ids, or names.
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Args)]
pub(super) struct KillArgs {
    /// The signal, by name (KILL, SIGTERM) or number.
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    signal: SignalNumber,
    /// Send it to every process of the container, not only to its main one.
    #[arg(short, long)]
    all: bool,
    /// Ids, beginnings of ids, or names.
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Args)]
pub(super) struct RmArgs {
    /// Kill containers that run.
    #[arg(short, long)]
    force: bool,
    /// Remove the volumes that were made for them, too.
    #[arg(short, long)]
    volumes: bool,
    /// Ids, beginnings of ids, or names.
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// What is done to all containers at once.
#[derive(Subcommand)]
pub(super) enum ContainerCommand {
    /// Remove every container that does not run.
    Prune(PruneArgs),
}

#[derive(Args)]
pub(super) struct PruneArgs {
    /// Do not ask first.
    #[arg(short, long)]
    force: bool,
    /// Only containers that fit, as in label=NAME=VALUE.
    #[arg(long, value_name = "NAME=VALUE")]
    filter: Vec<String>,
}

pub(super) async fn run(client: &mut Client, command: ContainerCommand) -> Outcome {
    let ContainerCommand::Prune(args) = command;
    let filters = args.filter.iter().map(|text| Filter::parse(text)).collect::<Result<Vec<_>, _>>()?;
    if !args.force {
        return Err(Failure::new("this removes every container that does not run: say --force to do it"));
    }
    let all =
        client.containers.list(api::ListRequest { all: true, sizes: false }).await?.into_inner().containers;
    let over = |one: &api::Container| matches!(one.status.as_str(), "created" | "exited");
    let ids = filter::keep(&filters, all)?.into_iter().filter(over).map(|one| one.id).collect();
    rm(client, RmArgs { force: false, volumes: false, containers: ids }).await
}

#[derive(Args)]
pub(super) struct StartArgs {
    /// Pass the container's output on, and return its exit code.
    #[arg(short, long)]
    attach: bool,
    /// Pass stdin on, too; for a container that was made with -i.
    #[arg(short, long)]
    interactive: bool,
    /// The keys that leave the container's terminal and let it run on.
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: DetachKeys,
    /// Ids, beginnings of ids, or names.
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Args)]
pub(super) struct RenameArgs {
    /// Id, beginning of an id, or name.
    container: String,
    /// Its new name.
    name: String,
}

pub(super) async fn start(client: &mut Client, args: StartArgs) -> Outcome {
    if args.attach || args.interactive {
        let [container] = &args.containers[..] else {
            return Err(Failure::new("-a and -i are for one container: name one, or leave them out"));
        };
        return start_attached(client, container.clone(), args).await;
    }
    each(args.containers, async |container| {
        let request = api::StartRequest { container: container.clone() };
        let answer = client.containers.start(request).await?.into_inner();
        started(&container, answer.container)
    })
    .await
}

async fn start_attached(client: &mut Client, container: String, args: StartArgs) -> Outcome {
    let request = api::StartRequest { container };
    let known = client.containers.start(request).await?.into_inner().container.unwrap_or_default();
    let process = session::Process { container: known.id, exec: String::new() };
    let options = session::Options {
        stdin: if args.interactive && known.stdin { session::Stdin::PassedOn } else { session::Stdin::Ours },
        terminal: if known.terminal { session::Terminal::There } else { session::Terminal::None },
        signals: session::Signals::PassedOn,
        keys: args.detach_keys,
    };
    attach::attach(client, process, options, api::AttachFrom::Start).await
}

pub(super) async fn restart(client: &mut Client, args: StopArgs) -> Outcome {
    each(args.containers, async |container| {
        let grace_ms = args.time.map(|seconds| seconds.saturating_mul(1000));
        let signal = args.signal.map_or(0, SignalNumber::get);
        let request = api::RestartRequest { container: container.clone(), grace_ms, signal };
        let answer = client.containers.restart(request).await?.into_inner();
        started(&container, answer.container)
    })
    .await
}

/// Prints the container, or why it does not run.
fn started(name: &str, container: Option<api::Container>) -> Result<(), Failure> {
    match container.and_then(|container| container.exit) {
        Some(exit) if exit.reason == "start_failed" => Err(run::failed(&exit)),
        _ => terminal::line(name),
    }
}

pub(super) async fn rename(client: &mut Client, args: RenameArgs) -> Outcome {
    client.containers.rename(api::RenameRequest { container: args.container, name: args.name }).await?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn wait(client: &mut Client, args: WaitArgs) -> Outcome {
    each(args.containers, async |container| {
        let answer = client.containers.wait(api::WaitRequest { container }).await?.into_inner();
        terminal::line(&answer.exit.unwrap_or_default().code.to_string())
    })
    .await
}

pub(super) async fn stop(client: &mut Client, args: StopArgs) -> Outcome {
    each(args.containers, async |container| {
        let grace_ms = args.time.map(|seconds| seconds.saturating_mul(1000));
        let signal = args.signal.map_or(0, SignalNumber::get);
        let request = api::StopRequest { container: container.clone(), grace_ms, signal };
        client.containers.stop(request).await?;
        terminal::line(&container)
    })
    .await
}

pub(super) async fn kill(client: &mut Client, args: KillArgs) -> Outcome {
    each(args.containers, async |container| {
        let (signal, all, exec) = (args.signal.get(), args.all, String::new());
        let request = api::KillRequest { container: container.clone(), signal, all, exec };
        client.containers.kill(request).await?;
        terminal::line(&container)
    })
    .await
}

pub(super) async fn rm(client: &mut Client, args: RmArgs) -> Outcome {
    each(args.containers, async |container| {
        let (force, volumes) = (args.force, args.volumes);
        let request = api::RemoveRequest { container: container.clone(), force, volumes };
        client.containers.remove(request).await?;
        terminal::line(&container)
    })
    .await
}

/// Does it to every container, also when one fails; fails if one did.
pub(super) async fn each(
    containers: Vec<String>,
    mut action: impl AsyncFnMut(String) -> Result<(), Failure>,
) -> Outcome {
    let mut code = ExitCode::SUCCESS;
    for container in containers {
        if let Err(failure) = action(container).await {
            terminal::error(&failure.message);
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}
