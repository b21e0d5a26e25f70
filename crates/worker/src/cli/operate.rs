//! `pause`, `unpause`, `top` and `update`.

use std::process::ExitCode;

use beta9_types::{ContainerPort, MemoryBytes, NetworkPolicy, PortMapping, RestartPolicy};
use clap::Args;
use serde_json::json;

use crate::api;
use crate::cli::container::each;
use crate::cli::flags::{nano_cpus, rate};
use crate::cli::table;
use crate::cli::{Outcome, OutputFormat};
use crate::client::Client;
use crate::terminal;

#[derive(Args)]
pub(super) struct FreezeArgs {
    /// Ids, beginnings of ids, or names.
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Args)]
pub(super) struct TopArgs {
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    output: OutputFormat,
    /// Id, beginning of an id, or name.
    container: String,
}

#[derive(Args)]
pub(super) struct UpdateArgs {
    /// Memory limit, as in 512m or 2g.
    #[arg(short, long, value_name = "SIZE")]
    memory: Option<MemoryBytes>,
    /// Memory that it keeps when the host runs short.
    #[arg(long, value_name = "SIZE")]
    memory_reservation: Option<MemoryBytes>,
    /// Processors that it may use, as in 0.5 or 2.
    #[arg(long, value_name = "NUMBER", value_parser = nano_cpus)]
    cpus: Option<u64>,
    /// Processes and threads that it may have.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..=4_194_304))]
    pids_limit: Option<u64>,
    /// What happens when it ends: no, on-failure[:TIMES], always or unless-stopped.
    #[arg(long, value_name = "POLICY")]
    restart: Option<RestartPolicy>,
    /// Whom it may talk to from now on: open, blocked, or networks and host names with commas between them.
    #[arg(long, value_name = "POLICY")]
    network_policy: Option<NetworkPolicy>,
    /// Serve a port of the container on the host from now on, as `run -p` does.
    #[arg(long, value_name = "[IP:][HOST:]CONTAINER[/udp]")]
    publish_add: Vec<PortMapping>,
    /// Do not serve a port of the container any more.
    #[arg(long, value_name = "CONTAINER[/udp]")]
    publish_rm: Vec<ContainerPort>,
    /// The most that it sends, in bytes per second; 0 is no limit.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    egress_rate: Option<u64>,
    /// The most that it receives, in bytes per second; 0 is no limit.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    ingress_rate: Option<u64>,
    /// Bytes per second on its own disks, as in 20m; 0 is no limit.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    disk_rate: Option<u64>,
    /// Reads and writes per second on its own disks; 0 is no limit.
    #[arg(long, value_name = "NUMBER")]
    disk_operations: Option<u64>,
    /// Ids, beginnings of ids, or names.
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

pub(super) async fn pause(client: &mut Client, args: FreezeArgs) -> Outcome {
    each(args.containers, async |container| {
        client.containers.pause(api::PauseRequest { container: container.clone() }).await?;
        terminal::line(&container)
    })
    .await
}

pub(super) async fn unpause(client: &mut Client, args: FreezeArgs) -> Outcome {
    each(args.containers, async |container| {
        client.containers.unpause(api::UnpauseRequest { container: container.clone() }).await?;
        terminal::line(&container)
    })
    .await
}

pub(super) async fn update(client: &mut Client, args: UpdateArgs) -> Outcome {
    let UpdateArgs { memory, cpus, pids_limit, restart, network_policy, .. } = args;
    let UpdateArgs {
        memory_reservation,
        egress_rate,
        ingress_rate,
        disk_rate,
        disk_operations,
        publish_add,
        publish_rm,
        containers,
        ..
    } = args;
    each(containers, async |container| {
        let request = api::UpdateRequest {
            memory_reservation_bytes: memory_reservation.map(|memory| memory.get()),
            egress_rate,
            ingress_rate,
            disk_rate,
            disk_operations,
            container: container.clone(),
            memory_bytes: memory.map(|memory| memory.get()),
            nano_cpus: cpus,
            pids: pids_limit,
            restart: restart.map(|policy| policy.to_string()).unwrap_or_default(),
            network_policy: network_policy.as_ref().map(NetworkPolicy::to_string).unwrap_or_default(),
            publish_add: publish_add.iter().map(ToString::to_string).collect(),
            publish_remove: publish_rm.iter().map(ToString::to_string).collect(),
        };
        client.containers.update(request).await?;
        terminal::line(&container)
    })
    .await
}

pub(super) async fn top(client: &mut Client, args: TopArgs) -> Outcome {
    let processes =
        client.containers.top(api::TopRequest { container: args.container }).await?.into_inner().processes;
    if args.output == OutputFormat::Json {
        let list: Vec<_> = processes
            .iter()
            .map(|process| {
                json!({
                    "pid": process.pid,
                    "parent": process.parent,
                    "uid": process.uid,
                    "cpu_ms": process.cpu_ms,
                    "command": process.command,
                })
            })
            .collect();
        terminal::json(&list)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = table::new(["UID", "PID", "PPID", "TIME", "COMMAND"]);
    for process in processes {
        table.add_row([
            process.uid.to_string(),
            process.pid.to_string(),
            process.parent.to_string(),
            time(process.cpu_ms),
            // A process chooses its own name.
            process.command.chars().flat_map(char::escape_default).collect(),
        ]);
    }
    terminal::line(&table.trim_fmt())?;
    Ok(ExitCode::SUCCESS)
}

fn time(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_hours_minutes_and_seconds() {
        assert_eq!(time(3_723_456), "01:02:03");
    }
}
