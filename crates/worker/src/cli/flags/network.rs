use clap::Args;

use super::bytes;
use crate::api;

/// What it is connected to.
#[derive(Args)]
pub(super) struct NetworkFlags {
    /// Connect it to bridge, none, host, container:NAME or netns:PATH; the worker's default where absent.
    #[arg(long, alias = "net", value_name = "NETWORK", default_value = "", hide_default_value = true)]
    network: String,
    /// Serve a port of the container on the host, as in 8080:80, 127.0.0.1::53/udp or 8000-8010:8000-8010.
    #[arg(short, long, value_name = "[IP:][HOST:]CONTAINER[/udp]")]
    publish: Vec<String>,
    /// Let it talk to nobody.
    #[arg(long)]
    block_network: bool,
    /// Another name by which the worker's containers find it.
    #[arg(long, alias = "net-alias", value_name = "NAME")]
    network_alias: Vec<String>,
    /// Let it talk to these only: networks, and host names such as example.com or *.example.com.
    #[arg(long, value_name = "ADDRESS[/PREFIX]|NAME")]
    allow_network: Vec<String>,
    /// The most that it sends, in bytes per second.
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    egress_rate: Option<u64>,
    /// The most that it receives, in bytes per second.
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    ingress_rate: Option<u64>,
}

impl NetworkFlags {
    pub(super) fn apply(self, request: &mut api::CreateRequest) {
        request.network = self.network;
        request.publish = self.publish;
        request.block_network = self.block_network;
        request.allow_networks = self.allow_network;
        request.network_aliases = self.network_alias;
        request.egress_rate = self.egress_rate.unwrap_or(0);
        request.ingress_rate = self.ingress_rate.unwrap_or(0);
    }
}
