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
    /// Find out how much it has written, too.
    #[arg(short, long)]
    size: bool,
    /// What is named: containers are what this shows.
    #[arg(long = "type", value_name = "TYPE", value_parser = parse_kind)]
    kind: Option<()>,
    /// Ids, beginnings of ids, or names.
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

fn parse_kind(text: &str) -> Result<(), String> {
    match text {
        "container" => Ok(()),
        "image" => Err("images are shown by `image inspect`: use that".to_owned()),
        _ => Err("use container, or leave it out".to_owned()),
    }
}

pub(super) async fn run(client: &mut Client, args: InspectArgs) -> Outcome {
    let _ = args.kind;
    let template = args.format.as_deref().map(Template::parse).transpose()?;
    let mut found = Vec::new();
    for container in args.containers {
        let answer = client
            .containers
            .inspect(api::InspectRequest { container, sizes: args.size })
            .await?
            .into_inner();
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
    let mount = |mount: &api::Mount| {
        json!({
            "type": if mount.volume.is_empty() { "bind" } else { "volume" },
            "volume": text(&mount.volume),
            "source": mount.source,
            "target": mount.target,
            "read_only": mount.read_only,
            "nosuid": mount.nosuid,
            "nodev": mount.nodev,
            "noexec": mount.noexec,
            "propagation": mount.propagation,
        })
    };
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
        "written_bytes": container.written_bytes,
        "image_bytes": container.image_bytes,
        "mounts": container.mounts.iter().map(mount).collect::<Vec<_>>(),
        "memory_bytes": container.memory_bytes,
        "env_names": container.env_names,
        "labels": container.labels,
        "restart": container.restart,
        "restart_count": container.restart_count,
        "stop_signal": container.stop_signal,
        "stop_timeout": container.stop_timeout,
        "network": container.network,
        "network_end": container.network_end.as_ref().map(network_end),
    })
}

/// Its end of its network.
fn network_end(end: &api::NetworkEnd) -> Value {
    let text = |text: &String| if text.is_empty() { Value::Null } else { Value::from(text.as_str()) };
    let port = |port: &api::PublishedPort| {
        json!({
            "host_ip": port.host_ip,
            "host_port": port.host_port,
            "container_port": port.container_port,
            "protocol": port.protocol,
        })
    };
    json!({
        "namespace": end.namespace,
        "mac": end.mac,
        "mtu": end.mtu,
        "addresses": end.addresses,
        "gateways": end.gateways,
        "ports": end.ports.iter().map(port).collect::<Vec<_>>(),
        "policy": text(&end.policy),
        "host_interface": text(&end.host_interface),
        "tap": text(&end.tap),
    })
}
