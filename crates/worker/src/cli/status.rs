//! `status`: pools, their runtimes, and why they are what they are.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::api;
use crate::cli::table::{self, age};
use crate::cli::{Outcome, OutputFormat};
use crate::client::Client;
use crate::terminal;

#[derive(Args)]
pub(super) struct StatusArgs {
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    output: OutputFormat,
}

pub(super) async fn run(client: &mut Client, args: StatusArgs) -> Outcome {
    let status = client.worker.status(api::StatusRequest {}).await?.into_inner();
    if args.output == OutputFormat::Json {
        terminal::json(&as_json(&status))?;
        return Ok(ExitCode::SUCCESS);
    }
    terminal::line(&format!(
        "worker      {} in {}, up {}",
        status.version,
        status.root,
        age(status.started_us)
    ))?;
    terminal::line(&format!("containers  {} running", status.containers_running))?;
    terminal::line(&format!("config      {}\n", config(&status)))?;
    let mut table = table::new(["POOL", "ASKED", "SET BY", "USED", "READY", "DETAIL"]);
    for pool in &status.pools {
        table.add_row([
            pool.name.as_str(),
            pool.runtime_asked.as_str(),
            pool.runtime_source.as_str(),
            if pool.runtime.is_empty() { "-" } else { pool.runtime.as_str() },
            if pool.ready { "yes" } else { "no" },
            pool.detail.as_str(),
        ]);
    }
    terminal::line(&table.trim_fmt())?;
    let mut table =
        table::new(["POOL", "checkpoint_restore", "gpu", "oom_events", "join_existing_netns", "cdi"]);
    for pool in &status.pools {
        if let Some(able) = &pool.capabilities {
            let flags =
                [able.checkpoint_restore, able.gpu, able.oom_events, able.join_existing_netns, able.cdi];
            table.add_row(std::iter::once(pool.name.clone()).chain(flags.map(|flag| flag.to_string())));
        }
    }
    terminal::line(&format!("\n{}", table.trim_fmt()))?;
    for pool in &status.pools {
        for warning in &pool.warnings {
            terminal::line(&format!("\npool {}: WARNING: {warning}", pool.name))?;
        }
        for failure in &pool.failures {
            terminal::line(&format!("\npool {}: {} failed: {}", pool.name, failure.runtime, failure.error))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn config(status: &api::StatusResponse) -> String {
    if status.config_path.is_empty() {
        return "none; defaults and environment".to_owned();
    }
    let loaded = status.config_loaded_sha256.chars().take(12).collect::<String>();
    let state = match status.config_file_sha256.as_str() {
        "" => "the file is gone".to_owned(),
        now if now == status.config_loaded_sha256 => "the file is unchanged".to_owned(),
        now => {
            format!("THE FILE HAS CHANGED to {}: restart the worker to load it", &now[..now.len().min(12)])
        }
    };
    format!("{} loaded as {loaded}; {state}", status.config_path)
}

fn as_json(status: &api::StatusResponse) -> serde_json::Value {
    let text = |text: &String| if text.is_empty() { None } else { Some(text.clone()) };
    let pool = |pool: &api::Pool| {
        json!({
            "name": pool.name,
            "runtime_asked": pool.runtime_asked,
            "runtime_source": pool.runtime_source,
            "runtime": text(&pool.runtime),
            "ready": pool.ready,
            "fell_back": pool.fell_back,
            "failures": pool.failures.iter()
                .map(|failure| json!({ "runtime": failure.runtime, "error": failure.error }))
                .collect::<Vec<_>>(),
            "capabilities": pool.capabilities.map(|able| json!({
                "checkpoint_restore": able.checkpoint_restore,
                "gpu": able.gpu,
                "oom_events": able.oom_events,
                "join_existing_netns": able.join_existing_netns,
                "cdi": able.cdi,
            })),
            "detail": pool.detail,
            "warnings": pool.warnings,
        })
    };
    json!({
        "version": status.version,
        "root": status.root,
        "started_us": status.started_us,
        "config_path": text(&status.config_path),
        "config_loaded_sha256": text(&status.config_loaded_sha256),
        "config_file_sha256": text(&status.config_file_sha256),
        "containers_running": status.containers_running,
        "pools": status.pools.iter().map(pool).collect::<Vec<_>>(),
    })
}
