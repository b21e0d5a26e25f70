//! `port`: where a container's ports are served on the host.

use std::process::ExitCode;

use clap::Args;

use crate::api;
use crate::cli::{Failure, Outcome};
use crate::client::Client;
use crate::terminal;

#[derive(Args)]
pub(super) struct PortArgs {
    /// Id, beginning of an id, or name.
    container: String,
    /// Only this port of the container, as in 80 or 53/udp.
    #[arg(value_name = "PORT[/PROTOCOL]")]
    port: Option<String>,
}

pub(super) async fn run(client: &mut Client, args: PortArgs) -> Outcome {
    let request = api::InspectRequest { container: args.container, sizes: false };
    let container = client.containers.inspect(request).await?.into_inner().container.unwrap_or_default();
    let ports = container.network_end.map(|end| end.ports).unwrap_or_default();
    let Some(wanted) = args.port else {
        for port in &ports {
            let host = host(port);
            terminal::line(&format!("{}/{} -> {host}", port.container_port, port.protocol))?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    let (number, protocol) = wanted.split_once('/').unwrap_or((&wanted, "tcp"));
    let fits =
        |port: &&api::PublishedPort| port.container_port.to_string() == number && port.protocol == protocol;
    let found: Vec<_> = ports.iter().filter(fits).collect();
    if found.is_empty() {
        return Err(Failure::new(format!(
            "port {number}/{protocol} of the container is not published: see `port` without it"
        )));
    }
    found.into_iter().try_for_each(|port| terminal::line(&host(port)))?;
    Ok(ExitCode::SUCCESS)
}

/// An address and a port of the host's, that of IPv6 in brackets.
fn host(port: &api::PublishedPort) -> String {
    if port.host_ip.contains(':') {
        format!("[{}]:{}", port.host_ip, port.host_port)
    } else {
        format!("{}:{}", port.host_ip, port.host_port)
    }
}

/// Every published port in one line, as a table shows it.
pub(super) fn summary(container: &api::Container) -> String {
    let ports = container.network_end.iter().flat_map(|end| &end.ports);
    let shown = ports.map(|port| format!("{}->{}/{}", host(port), port.container_port, port.protocol));
    shown.collect::<Vec<_>>().join(", ")
}
