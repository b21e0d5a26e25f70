//! `ps`: the containers, as a table.

use std::process::ExitCode;

use clap::Args;

use crate::api;
use crate::cli::filter::{self, Filter};
use crate::cli::table::{self, age};
use crate::cli::template::Template;
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
    /// Only containers that fit: id, name, label, status, exited, ancestor, runtime, pool, before or since.
    #[arg(short, long, value_name = "NAME=VALUE")]
    filter: Vec<String>,
    /// Print by a template, as in '{{.ID}} {{.Names}}', `table TEMPLATE`, or `json`.
    #[arg(long, value_name = "TEMPLATE", conflicts_with = "output")]
    format: Option<String>,
    /// The newest so many, whatever their state.
    #[arg(short = 'n', long, value_name = "NUMBER")]
    last: Option<usize>,
    /// The newest one, whatever its state.
    #[arg(short, long, conflicts_with = "last")]
    latest: bool,
    /// Show how much each has written, and with its image.
    #[arg(short, long)]
    size: bool,
    /// Print ids and commands whole.
    #[arg(long)]
    no_trunc: bool,
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    output: OutputFormat,
}

pub(super) async fn run(client: &mut Client, args: PsArgs) -> Outcome {
    let filters = args.filter.iter().map(|text| Filter::parse(text)).collect::<Result<Vec<_>, _>>()?;
    let last = if args.latest { Some(1) } else { args.last };
    // Those that a condition names by time need not run, so all are asked for.
    let answer = client
        .containers
        .list(api::ListRequest { all: true, sizes: args.size && !args.quiet })
        .await?
        .into_inner();
    let all = args.all || last.is_some() || filters.iter().any(Filter::wants_all);
    let mut containers = filter::keep(&filters, answer.containers)?;
    containers
        .retain(|one| all || matches!(one.status.as_str(), "running" | "starting" | "restarting" | "paused"));
    containers.truncate(last.unwrap_or(usize::MAX));
    if args.quiet {
        for container in containers {
            terminal::line(&container.id)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if args.output == OutputFormat::Json {
        let list: Vec<_> = containers.iter().map(super::inspect::json).collect();
        terminal::json(&list)?;
        return Ok(ExitCode::SUCCESS);
    }
    match args.format.as_deref() {
        None | Some("table") => {}
        Some("json") => {
            for container in &containers {
                terminal::line(&fields(container, args.no_trunc).to_string())?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        Some(format) => return formatted(format, &containers, args.no_trunc),
    }
    // A column for what most containers do not have would only make lines longer.
    let has_ports = containers.iter().any(|container| !super::port::summary(container).is_empty());
    let mut heads = vec!["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "RUNTIME", "NAME"];
    if has_ports {
        heads.insert(6, "PORTS");
    }
    heads.extend(args.size.then_some("SIZE"));
    let mut table = table::new(heads);
    for container in containers {
        let mut row = vec![
            id(&container, args.no_trunc),
            container.image.clone(),
            command(&container.args, args.no_trunc),
            format!("{} ago", age(container.created_us)),
            status(&container),
            container.runtime.clone(),
            container.name.clone(),
        ];
        if has_ports {
            row.insert(6, super::port::summary(&container));
        }
        row.extend(args.size.then(|| size(&container)));
        table.add_row(row);
    }
    terminal::line(&table.trim_fmt())?;
    Ok(ExitCode::SUCCESS)
}

/// By a template: a line per container, or a table whose columns are apart by tabs.
fn formatted(format: &str, containers: &[api::Container], whole: bool) -> Outcome {
    let (is_table, text) = match format.strip_prefix("table ") {
        Some(text) => (true, text),
        None => (false, format),
    };
    let template = Template::parse(text)?;
    let mut lines = Vec::new();
    if is_table {
        lines.push(template.heads());
    }
    for container in containers {
        lines.push(template.fill(&fields(container, whole))?);
    }
    if is_table {
        lines = table::aligned(&lines);
    }
    lines.iter().try_for_each(|line| terminal::line(line))?;
    Ok(ExitCode::SUCCESS)
}

/// What a template may name: docker's words, and ours.
fn fields(container: &api::Container, whole: bool) -> serde_json::Value {
    let labels: Vec<_> = container.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mounts: Vec<_> = container.mounts.iter().map(|mount| mount.source.as_str()).collect();
    serde_json::json!({
        "ID": id(container, whole),
        "Names": container.name,
        "Image": container.image,
        "Command": command(&container.args, whole),
        "CreatedAt": container.created_us,
        "RunningFor": format!("{} ago", age(container.created_us)),
        "State": container.status,
        "Status": status(container),
        "Labels": labels.join(","),
        "Mounts": mounts.join(","),
        "Ports": super::port::summary(container),
        "Networks": container.network,
        "Runtime": container.runtime,
        "Pool": container.pool,
        "Size": size(container),
        "ExitCode": container.exit.as_ref().map(|exit| exit.code),
        "labels": container.labels,
    })
}

/// What it has written, and that with its image; unknown where nobody asked.
fn size(container: &api::Container) -> String {
    match (container.written_bytes, container.image_bytes) {
        (Some(own), Some(image)) => {
            format!("{} (virtual {})", terminal::bytes(own), terminal::bytes(own.saturating_add(image)))
        }
        (Some(own), None) => terminal::bytes(own),
        (None, _) => String::new(),
    }
}

fn id(container: &api::Container, whole: bool) -> String {
    if whole { container.id.clone() } else { container.id.chars().take(12).collect() }
}

/// The command as far as it fits, control characters made visible.
fn command(args: &[String], whole: bool) -> String {
    const WIDTH: usize = 24;
    let line: String = args.join(" ").chars().flat_map(char::escape_default).collect();
    if whole || line.chars().count() <= WIDTH {
        return line;
    }
    line.chars().take(WIDTH - 1).chain(['…']).collect()
}

fn status(container: &api::Container) -> String {
    let reached =
        |name: &str| container.timeline.iter().find(|phase| phase.name == name).map(|phase| phase.at_us);
    if container.status == "restarting" {
        return format!("restarting, {} times so far", container.restart_count);
    }
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
