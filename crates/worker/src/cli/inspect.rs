//! `inspect`: everything known of a container.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use crate::api;
use crate::cli::Outcome;
use crate::cli::template::Template;
use crate::cli::timeline;
use crate::client::Client;
use crate::terminal;

#[derive(Args)]
pub(super) struct InspectArgs {
    /// Draw how the time of the start was spent instead of printing JSON.
    #[arg(long)]
    timeline: bool,
    /// Print by a template, as in '{{.exit.code}}'.
    #[arg(short, long, value_name = "TEMPLATE", conflicts_with = "timeline")]
    format: Option<String>,
    /// Ids, beginnings of ids, or names.
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

pub(super) async fn run(client: &mut Client, args: InspectArgs) -> Outcome {
    let template = args.format.as_deref().map(Template::parse).transpose()?;
    let mut found = Vec::new();
    for container in args.containers {
        let answer = client.containers.inspect(api::InspectRequest { container }).await?.into_inner();
        found.extend(answer.container);
    }
    if let Some(template) = template {
        for container in &found {
            terminal::line(&template.fill(&json(container))?)?;
        }
    } else if args.timeline {
        for container in &found {
            terminal::line(&timeline::draw(container))?;
        }
    } else {
        terminal::json(&found.iter().map(json).collect::<Vec<_>>())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A container as a JSON document.
pub(super) fn json(container: &api::Container) -> Value {
    let text = |text: &String| if text.is_empty() { Value::Null } else { Value::from(text.as_str()) };
    let mount = |mount: &api::Mount| json!({ "source": mount.source, "target": mount.target, "read_only": mount.read_only });
    let phase = |phase: &api::Phase| json!({ "phase": phase.name, "at_us": phase.at_us });
    json!({
        "id": container.id,
        "name": text(&container.name),
        "image": container.image,
        "image_digest": container.image_digest,
        "args": container.args,
        "pool": container.pool,
        "runtime_asked": container.runtime_asked,
        "runtime": container.runtime,
        "fallback_reason": text(&container.fallback_reason),
        "status": container.status,
        "pid": container.pid,
        "exit": container.exit.as_ref().map(|exit| json!({
            "code": exit.code,
            "reason": exit.reason,
            "message": text(&exit.message),
        })),
        "created_us": container.created_us,
        "timeline": container.timeline.iter().map(phase).collect::<Vec<_>>(),
        "mounts": container.mounts.iter().map(mount).collect::<Vec<_>>(),
        "memory_bytes": container.memory_bytes,
        "env_names": container.env_names,
        "labels": container.labels,
        "restart": container.restart,
        "restart_count": container.restart_count,
        "stop_signal": container.stop_signal,
        "stop_timeout": container.stop_timeout,
    })
}
