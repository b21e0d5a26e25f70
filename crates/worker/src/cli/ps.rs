//! `ps`: the containers, as a table.

use std::process::ExitCode;

use clap::Args;

use crate::api;
use crate::cli::table::{self, age};
use crate::cli::{Outcome, OutputFormat};
use crate::client::Client;
use crate::terminal;

#[derive(Args)]
pub(super) struct PsArgs {
    /// Containers that are over or not started, too.
    #[arg(short, long)]
    all: bool,
    /// Ids only, whole.
    #[arg(short, long)]
    quiet: bool,
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    output: OutputFormat,
}

pub(super) async fn run(client: &mut Client, args: PsArgs) -> Outcome {
    let answer = client.containers.list(api::ListRequest { all: args.all }).await?.into_inner();
    if args.quiet {
        for container in answer.containers {
            terminal::line(&container.id)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if args.output == OutputFormat::Json {
        let list: Vec<_> = answer.containers.iter().map(super::inspect::json).collect();
        terminal::json(&list)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = table::new(["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "RUNTIME", "NAME"]);
    for container in answer.containers {
        table.add_row([
            container.id.chars().take(12).collect(),
            container.image.clone(),
            command(&container.args),
            format!("{} ago", age(container.created_us)),
            status(&container),
            container.runtime.clone(),
            container.name.clone(),
        ]);
    }
    terminal::line(&table.trim_fmt())?;
    Ok(ExitCode::SUCCESS)
}

/// The command as far as it fits, control characters made visible.
fn command(args: &[String]) -> String {
    const WIDTH: usize = 24;
    let line: String = args.join(" ").chars().flat_map(char::escape_default).collect();
    if line.chars().count() <= WIDTH {
        return line;
    }
    line.chars().take(WIDTH - 1).chain(['…']).collect()
}

fn status(container: &api::Container) -> String {
    let reached =
        |name: &str| container.timeline.iter().find(|phase| phase.name == name).map(|phase| phase.at_us);
    match &container.exit {
        Some(exit) => {
            let since = reached("exited").map(|at| format!(" {} ago", age(at))).unwrap_or_default();
            let why = match exit.reason.as_str() {
                "exited" | "signaled" => String::new(),
                reason => format!(", {reason}"),
            };
            format!("exited ({}{why}){since}", exit.code)
        }
        None => match reached("running") {
            Some(at) if container.status == "paused" => format!("up {} (paused)", age(at)),
            Some(at) => format!("up {}", age(at)),
            None => container.status.clone(),
        },
    }
}
