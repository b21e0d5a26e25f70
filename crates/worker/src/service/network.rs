//! What a container is connected to: settled when it is created, shown while it runs.

use std::sync::Arc;

use beta9_network::{Connection, Joined, Nft};
use beta9_supervisor::{ContainerDirectory, Operation, Record};
use beta9_types::{
    ContainerName, ContainerRequest, NetworkDefault, NetworkMode, NetworkName, NetworkPlan, NetworkPolicy,
    PortChange, RuntimeKind,
};

use crate::api;
use crate::error::{Error, ErrorKind, Result, chain};
use crate::service::{Worker, blocking, options};

impl Worker {
    /// Settles the network of a request, and says what could not be had.
    pub(super) fn network(
        &self,
        request: &ContainerRequest,
        runtime: RuntimeKind,
        hostname: &str,
    ) -> Result<(NetworkPlan, Option<String>)> {
        let settings = self.pools.network().clone();
        let options = &request.options.network;
        let (mode, warning) = match options.mode.clone() {
            Some(NetworkMode::Container(other)) => (self.container_network(runtime, &other)?, None),
            Some(NetworkMode::Host) if runtime.is_microvm() => {
                let text = format!(
                    "{runtime} does not support --network host: a VM has a network stack of its own; use --network bridge, \
                     with -p for its ports"
                );
                return Err(Error::new(ErrorKind::Invalid, text));
            }
            Some(mode) => (mode, None),
            None => match settings.default {
                NetworkDefault::Bridge => (NetworkMode::Bridge, None),
                NetworkDefault::None => (NetworkMode::None, None),
                NetworkDefault::Host if runtime.is_microvm() => (NetworkMode::None, None),
                NetworkDefault::Host => (NetworkMode::Host, None),
                NetworkDefault::Auto => match beta9_network::is_usable() {
                    Ok(()) => (NetworkMode::Bridge, None),
                    Err(error) => {
                        let why = chain(&error);
                        (NetworkMode::None, Some(format!("the container has loopback alone, because {why}")))
                    }
                },
            },
        };
        if mode != NetworkMode::Bridge {
            let asked = [
                (!options.ports.is_empty(), "-p"),
                (!options.aliases.is_empty(), "--network-alias"),
                (options.policy != NetworkPolicy::Open, "--block-network and --allow-network"),
                (
                    options.rates.egress.is_some() || options.rates.ingress.is_some(),
                    "--egress-rate and --ingress-rate",
                ),
            ];
            if let Some((_, flag)) = asked.into_iter().find(|(asked, _)| *asked) {
                let text =
                    format!("{flag} needs --network bridge, and this container's is {mode}: leave one out");
                return Err(Error::new(ErrorKind::Invalid, text));
            }
        }
        // A name that is none in a network stays one of the container's own.
        let names = NetworkName::parse(hostname).into_iter().collect();
        Ok((NetworkPlan { mode, settings, names }, warning))
    }

    /// A container whose network is the worker's to change.
    fn find_bridged(&self, container: &str) -> Result<(ContainerDirectory, Record)> {
        let (directory, record) = self.find(container)?;
        if record.network.mode != NetworkMode::Bridge {
            let text = format!(
                "container {container} has no network of this worker's to change: its network is {}, not the bridge",
                record.network.mode
            );
            return Err(Error::new(ErrorKind::Precondition, text));
        }
        Ok((directory, record))
    }

    /// Changes whom a container may talk to: now, if it runs, and whenever it is started.
    pub(super) async fn set_network_policy(&self, container: &str, policy: NetworkPolicy) -> Result<()> {
        let (directory, mut record) = self.find_bridged(container)?;
        record.request.options.network.policy = policy.clone();
        record.write(&directory)?;
        let file = Connection::file_in(directory.path());
        let changed = blocking(move || Connection::set_policy(&file, &Nft::new(None), policy)).await?;
        changed.map_err(|e| Error::internal("change the container's rules", e))?;
        self.tell(&record, "update", &[]);
        Ok(())
    }

    /// Changes which ports of a container the host serves: now, if it runs, and whenever it is started.
    pub(super) async fn change_ports(&self, container: &str, change: PortChange) -> Result<()> {
        let (directory, mut record) = self.find_bridged(container)?;
        if !self.is_over(&directory).await? {
            self.operate(&directory, &record, Operation::Ports { change: change.clone() }).await?;
        }
        let ports = &mut record.request.options.network.ports;
        *ports = change.apply(ports);
        record.write(&directory)?;
        self.tell(&record, "update", &[]);
        Ok(())
    }

    /// Changes how fast a container may send and receive: now, if it runs, and whenever it is started. 0 lifts a limit,
    /// and what is absent stays as it is.
    pub(super) async fn set_network_rates(
        &self,
        container: &str,
        egress: Option<u64>,
        ingress: Option<u64>,
    ) -> Result<()> {
        let (directory, mut record) = self.find_bridged(container)?;
        let rates = &mut record.request.options.network.rates;
        for (name, rate, wanted) in
            [("egress rate", &mut rates.egress, egress), ("ingress rate", &mut rates.ingress, ingress)]
        {
            if let Some(wanted) = wanted {
                *rate = options::rate(name, wanted)?;
            }
        }
        let rates = *rates;
        record.write(&directory)?;
        let file = Connection::file_in(directory.path());
        let changed = blocking(move || Connection::set_rates(&file, rates)).await?;
        changed.map_err(|e| Error::internal("change the container's rates", e))?;
        self.tell(&record, "update", &[]);
        Ok(())
    }

    /// Has other containers find it by another name.
    pub(super) async fn rename_in_network(
        &self,
        directory: &ContainerDirectory,
        old: Option<&ContainerName>,
        new: Option<&ContainerName>,
    ) -> Result<()> {
        let name =
            |name: Option<&ContainerName>| NetworkName::parse(&name?.as_ref().to_ascii_lowercase()).ok();
        let (old, Some(new)) = (name(old), name(new)) else { return Ok(()) };
        let file = Connection::file_in(directory.path());
        let renamed = blocking(move || Connection::rename(&file, old.as_ref(), &new)).await?;
        renamed.map_err(|e| Error::internal("change the container's name in its network", e))
    }

    /// The network of another container, by its id.
    fn container_network(&self, runtime: RuntimeKind, other: &str) -> Result<NetworkMode> {
        let refuse = |why: String| Err(Error::new(ErrorKind::Invalid, why));
        if runtime != RuntimeKind::Runc {
            return refuse(format!(
                "{runtime} does not support --network container:{other}: its network stack is its own; use --network \
                 bridge, or --runtime runc"
            ));
        }
        let (_, record) = self.find(other)?;
        if record.runtime != RuntimeKind::Runc {
            return refuse(format!(
                "container {other} runs in {}, whose network stack is its own: use --network bridge",
                record.runtime
            ));
        }
        Ok(NetworkMode::Container(record.id.to_string()))
    }
}

/// What a container has received and sent over the bridge.
pub(crate) struct Traffic {
    /// Its id.
    pub(crate) container: String,
    pub(crate) received: u64,
    pub(crate) sent: u64,
}

impl Worker {
    fn all_on_record(&self) -> Result<Vec<(ContainerDirectory, Record)>> {
        // One that is being removed is none.
        Ok(self.ids()?.iter().filter_map(|id| self.by_id(id).ok().flatten()).collect())
    }

    /// Makes rules of containers again whenever somebody has thrown them away, and those that are gone already.
    pub(crate) async fn keep_rules(self: Arc<Self>) {
        let watch = beta9_network::RulesWatch::open(&self.pools.network().bridge);
        let mut watch = match watch {
            Ok(watch) => watch,
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                return tracing::warn!(
                    error,
                    "rules of containers that others throw away are not made again"
                );
            }
        };
        loop {
            match self.restore_rules().await {
                Ok(0) => {}
                Ok(count) => tracing::warn!(count, "rules of containers were gone and are made again"),
                Err(error) => {
                    tracing::error!(error = chain(&error), "rules of containers could not be made again");
                }
            }
            if let Err(error) = watch.gone().await {
                let error: &dyn std::error::Error = &error;
                return tracing::error!(
                    error,
                    "rules of containers that others throw away are not made again"
                );
            }
        }
    }

    async fn restore_rules(&self) -> Result<usize> {
        let bridged = |(_, record): &(ContainerDirectory, Record)| record.network.mode == NetworkMode::Bridge;
        let containers = self.all_on_record()?.into_iter().filter(bridged);
        let files = containers.map(|(directory, _)| Connection::file_in(directory.path()));
        let files: Vec<_> = files.filter(|file| file.exists()).collect();
        if files.is_empty() {
            return Ok(0);
        }
        let restored = blocking(move || beta9_network::restore_rules(&Nft::new(None), &files)).await?;
        restored.map_err(|e| Error::internal("make the rules of containers", e))
    }

    /// What every container has received and sent that is connected to the bridge now.
    pub(crate) async fn traffic(&self) -> Result<Vec<Traffic>> {
        let containers = self.all_on_record()?;
        blocking(move || {
            let of = |(directory, record): (ContainerDirectory, Record)| {
                let (received, sent) = traffic(&directory, &record)?;
                Some(Traffic { container: record.id.to_string(), received, sent })
            };
            containers.into_iter().filter_map(of).collect()
        })
        .await
    }
}

/// Bytes that a container has received and sent over the bridge.
pub(super) fn traffic(directory: &ContainerDirectory, record: &Record) -> Option<(u64, u64)> {
    let is_bridged = record.network.mode == NetworkMode::Bridge;
    let connection =
        is_bridged.then(|| Connection::read(&Connection::file_in(directory.path())).ok().flatten());
    connection.flatten()?.traffic()
}

/// A container's end of its network, while it has one.
pub(super) fn end(directory: &ContainerDirectory, record: &Record) -> Option<api::NetworkEnd> {
    let file = Connection::file_in(directory.path());
    let (attachment, connection) = match &record.network.mode {
        NetworkMode::None | NetworkMode::Host => return None,
        NetworkMode::Bridge => {
            let connection = Connection::read(&file).ok().flatten()?;
            (connection.attachment.clone(), Some(connection))
        }
        NetworkMode::Container(_) | NetworkMode::Namespace(_) => {
            (Joined::read(&file).ok().flatten()?.attachment, None)
        }
    };
    let policy = connection.as_ref().map(|connection| connection.policy.to_string());
    let ports = connection.iter().flat_map(|connection| &connection.ports);
    Some(api::NetworkEnd {
        namespace: attachment.namespace.to_string_lossy().into_owned(),
        mac: attachment.mac.to_string(),
        mtu: attachment.mtu,
        addresses: attachment
            .addresses
            .iter()
            .map(|(address, prefix)| format!("{address}/{prefix}"))
            .collect(),
        gateways: attachment
            .routes
            .iter()
            .filter_map(|route| route.gateway)
            .map(|gateway| gateway.to_string())
            .collect(),
        ports: ports
            .map(|port| api::PublishedPort {
                host_ip: port.host_ip.to_string(),
                host_port: port.host_port.into(),
                container_port: port.container_port.into(),
                protocol: port.protocol.as_str().to_owned(),
            })
            .collect(),
        policy: policy.unwrap_or_default(),
        host_interface: connection.map(|connection| connection.interface).unwrap_or_default(),
        tap: attachment.tap.unwrap_or_default(),
    })
}
