//! `stats`: what containers use. In place on a terminal, one block elsewhere.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use crate::api;
use crate::cli::table;
use crate::cli::template::Template;
use crate::cli::{Failure, Outcome, OutputFormat};
use crate::client::Client;
use crate::terminal::{self, bytes};

#[derive(Args)]
pub(super) struct StatsArgs {
    /// Print once and end. So it is anyway where stdout is no terminal, unless it is JSON.
    #[arg(long)]
    no_stream: bool,
    /// Print each by a template, as in '{{.Name}} {{.CPUPerc}}', or as `json`.
    #[arg(long, value_name = "TEMPLATE", conflicts_with = "output")]
    format: Option<String>,
    /// Print ids whole.
    #[arg(long)]
    no_trunc: bool,
    /// How to print. JSON is one list, or without --no-stream one list a line.
    #[arg(long, value_enum, default_value = "table")]
    output: OutputFormat,
    /// Ids, beginnings of ids, or names; all that run where absent.
    #[arg(value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Home, and erase what is below: the block before is written over.
const AGAIN: &str = "\u{1b}[H\u{1b}[J";

pub(super) async fn run(client: &mut Client, args: StatsArgs) -> Outcome {
    let is_json = args.output == OutputFormat::Json;
    let template = match args.format.as_deref() {
        Some("json") => Some(Template::parse("{{json .}}")?),
        Some(text) => Some(Template::parse(text.strip_prefix("table ").unwrap_or(text))?),
        None => None,
    };
    let once = args.no_stream || !(is_json || std::io::stdout().is_terminal());
    let request = api::StatsRequest { containers: args.containers, once, interval_ms: None };
    let mut rounds = client.containers.stats(request).await?.into_inner();
    while let Some(api::StatsResponse { stats }) = rounds.message().await? {
        if let Some(template) = &template {
            for one in &stats {
                terminal::line(&template.fill(&fields(one, args.no_trunc))?)?;
            }
            continue;
        }
        match (is_json, once) {
            (true, true) => terminal::json(&stats.iter().map(json).collect::<Vec<_>>())?,
            (true, false) => {
                terminal::line(&Value::from(stats.iter().map(json).collect::<Vec<_>>()).to_string())?
            }
            (false, true) => terminal::line(&block(&stats, args.no_trunc))?,
            (false, false) => terminal::line(&format!("{AGAIN}{}", block(&stats, args.no_trunc)))?,
        }
    }
    if once { Ok(ExitCode::SUCCESS) } else { Err(Failure::new("the worker is gone")) }
}

fn json(stats: &api::Stats) -> Value {
    json!({
        "id": stats.id,
        "name": stats.name,
        "runtime": stats.runtime,
        "cpu_percent": stats.cpu_percent,
        "cpu_ns": stats.cpu_ns,
        "memory_bytes": stats.memory_bytes,
        "memory_limit_bytes": stats.memory_limit_bytes,
        "pids": stats.pids,
        "pids_limit": stats.pids_limit,
        "block_read_bytes": stats.block_read_bytes,
        "block_write_bytes": stats.block_write_bytes,
        "vm_bytes": stats.vm_bytes,
        "network_received_bytes": stats.network_received_bytes,
        "network_sent_bytes": stats.network_sent_bytes,
    })
}

/// What a template may name: docker's words, and ours.
fn fields(stats: &api::Stats, whole: bool) -> Value {
    let of_limit = stats.memory_limit_bytes.filter(|limit| *limit > 0);
    json!({
        "ID": id(stats, whole),
        "Container": id(stats, whole),
        "Name": stats.name,
        "Runtime": stats.runtime,
        "CPUPerc": format!("{:.2}%", stats.cpu_percent),
        "MemUsage": format!("{} / {}", bytes(stats.memory_bytes), limit(of_limit)),
        "MemPerc": share(stats.memory_bytes, of_limit),
        "BlockIO": format!("{} / {}", bytes(stats.block_read_bytes), bytes(stats.block_write_bytes)),
        "PIDs": stats.pids,
        "VMMem": stats.vm_bytes.map_or_else(|| "-".to_owned(), bytes),
    })
}

fn id(stats: &api::Stats, whole: bool) -> String {
    if whole { stats.id.clone() } else { stats.id.chars().take(12).collect() }
}

fn limit(limit: Option<u64>) -> String {
    limit.map_or_else(|| "unlimited".to_owned(), bytes)
}

fn share(used: u64, limit: Option<u64>) -> String {
    limit.map_or_else(|| "-".to_owned(), |limit| format!("{:.1}%", used as f64 / limit as f64 * 100.0))
}

fn block(all: &[api::Stats], whole: bool) -> String {
    let mut table = table::new([
        "CONTAINER ID",
        "NAME",
        "RUNTIME",
        "CPU %",
        "MEM USAGE / LIMIT",
        "MEM %",
        "PIDS",
        "NET RECEIVED / SENT",
        "BLOCK READ / WRITTEN",
        "VM MEM",
    ]);
    for stats in all {
        let of_limit = stats.memory_limit_bytes.filter(|limit| *limit > 0);
        table.add_row([
            id(stats, whole),
            stats.name.clone(),
            stats.runtime.clone(),
            format!("{:.1}%", stats.cpu_percent),
            format!("{} / {}", bytes(stats.memory_bytes), limit(of_limit)),
            share(stats.memory_bytes, of_limit),
            stats.pids.to_string(),
            match (stats.network_received_bytes, stats.network_sent_bytes) {
                (Some(received), Some(sent)) => format!("{} / {}", bytes(received), bytes(sent)),
                _ => "-".to_owned(),
            },
            format!("{} / {}", bytes(stats.block_read_bytes), bytes(stats.block_write_bytes)),
            stats.vm_bytes.map_or_else(|| "-".to_owned(), bytes),
        ]);
    }
    table.trim_fmt()
}
