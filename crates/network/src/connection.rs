//! One container's end of a bridge: set up, written down, taken away.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use beta9_sys::namespaces::{current_mounts, on_own_thread};
use beta9_sys::netlink::Socket;
use beta9_sys::netlink::link::VethEnd;
use beta9_sys::netlink::route::Route;
use beta9_types::{
    Attachment, ContainerId, Gateway, MacAddress, NetworkName, NetworkPolicy, NetworkSettings, PublishedPort,
    RateLimits, Subnet,
};
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, ErrorKind, Result};
use crate::lease::Leases;
use crate::names::{self, Names};
use crate::namespace::{self, Namespace};
use crate::nft::Nft;
use crate::nft::container::{NameServer, Subject};
use crate::ports::MAX_PORTS;
use crate::resolver::Bound;
use crate::{bridge, files, tap};

/// The container's interface, as every program expects it to be called.
pub(crate) const INTERFACE: &str = "eth0";

/// Who uses a container's end of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Endpoint {
    /// Processes in the namespace, or gVisor's stack there.
    Namespace,
    /// A VM, by a TAP device in the namespace.
    Vm,
}

/// The host's side: where names of namespaces are seen, and the program that makes rules.
pub struct Host {
    mounts: OwnedFd,
    nft: Nft,
}

impl Host {
    /// Must be made while this process is still in the host's mount namespace.
    pub fn here(nft: Nft) -> Result<Self> {
        let mounts = current_mounts().while_doing(|| "remember the host's mounts".to_owned())?;
        Ok(Self { mounts, nft })
    }

    /// The same with mounts that were remembered.
    pub fn with_mounts(mounts: OwnedFd, nft: Nft) -> Self {
        Self { mounts, nft }
    }

    /// Does something in the host's mount namespace.
    pub(crate) fn outside<T: Send>(&self, work: impl FnOnce(&Nft) -> Result<T> + Send) -> Result<T> {
        on_own_thread(Some(self.mounts.as_fd()), || Ok(work(&self.nft)))
            .while_doing(|| "work in the host's mount namespace".to_owned())?
    }
}

/// What a container's end is to be.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    /// The container.
    pub id: &'a ContainerId,
    /// The bridge.
    pub settings: &'a NetworkSettings,
    /// Whom it may talk to.
    pub policy: &'a NetworkPolicy,
    /// How fast.
    pub rates: RateLimits,
    /// Its ports that were reserved.
    pub ports: &'a [PublishedPort],
    /// The names by which other containers of the worker find it.
    pub names: &'a [NetworkName],
    /// Where the worker keeps its containers, which tells its names from other workers'.
    pub containers: &'a Path,
    /// Who uses it.
    pub endpoint: Endpoint,
    /// Where it is written down.
    pub file: &'a Path,
}

/// A container's end of a bridge, as it is written down before it is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// The container.
    pub id: ContainerId,
    /// The bridge.
    pub settings: NetworkSettings,
    /// Its place among the addresses of the bridge.
    pub offset: u32,
    /// The host's end of the veth pair.
    pub interface: String,
    /// The container's end.
    pub attachment: Attachment,
    /// Whom it may talk to.
    pub policy: NetworkPolicy,
    /// Its ports that the host serves.
    pub ports: Vec<PublishedPort>,
    /// The names by which other containers of the worker find it.
    #[serde(default)]
    pub names: Vec<NetworkName>,
    /// Which worker's.
    #[serde(default)]
    pub(crate) worker: String,
    /// The port of its name server on the gateway's address; 0 is none.
    #[serde(default)]
    name_port: u16,
}

/// A container's end that was set up.
#[derive(Debug)]
pub struct Connected {
    /// What it is.
    pub connection: Connection,
    /// Keeps the namespace there whatever becomes of its name.
    pub namespace: OwnedFd,
    /// For the container's name server.
    pub bound: Bound,
}

impl Connection {
    /// Sets it up and leaves its namespace open. On failure nothing of it is left.
    pub fn set_up(host: &Host, wanted: &Wanted<'_>) -> Result<Connected> {
        let connected = host.outside(|nft| {
            let (connection, mut namespace, bound) = Self::make(nft, wanted)?;
            let finished = connection.finish(wanted, &mut namespace);
            match finished {
                Ok(()) => Ok(Connected { connection, namespace: namespace.fd, bound }),
                Err(error) => {
                    connection.undo(nft, wanted.file);
                    Err(error)
                }
            }
        })?;
        let shown = namespace::show_here(&connected.connection.attachment.namespace, &connected.namespace);
        match shown {
            Ok(()) => Ok(connected),
            Err(error) => {
                connected.connection.take_away(host, wanted.file);
                Err(error)
            }
        }
    }

    /// Reads one that was written down; absent is `None`.
    pub fn read(file: &Path) -> Result<Option<Self>> {
        files::read_json(file)
    }

    /// Writes it down.
    pub fn write(&self, file: &Path) -> Result<()> {
        files::write_json(file, self)
    }

    fn make(nft: &Nft, wanted: &Wanted<'_>) -> Result<(Self, Namespace, Bound)> {
        let Wanted { id, settings, .. } = *wanted;
        let leases = Leases::of(&settings.bridge);
        let previous = Self::read(&last(wanted.file)).ok().flatten().filter(|old| old.settings == *settings);
        let worker = names::worker_of(wanted.containers)?;
        let locked = leases.lock()?;
        let link = bridge::ensure(&locked, &leases, settings, nft)?;
        let bound = Bound::to(settings.gateway4())?;
        let name_port = bound.port()?;
        let offset = locked.take(id, settings, previous.map(|previous| previous.offset))?;
        let connection = Self { worker, name_port, ..Self::planned(wanted, offset, link.mtu) };
        let written = connection.write(wanted.file);
        let written = written.and_then(|()| connection.own_names().add(&locked, &connection.names, offset));
        drop(locked);
        let made = written.and_then(|()| {
            std::thread::scope(|scope| {
                // Rules are for names and addresses, whether or not something has them, and take the longest.
                let ruling = scope.spawn(|| connection.apply_rules(nft));
                let wired = Namespace::create(&connection.attachment.namespace).and_then(|namespace| {
                    connection.wire(&namespace, link.index)?;
                    Ok(namespace)
                });
                let ruled = ruling.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                ruled.and(wired)
            })
        });
        match made {
            Ok(namespace) => Ok((connection, namespace, bound)),
            Err(error) => {
                connection.undo(nft, wanted.file);
                Err(error)
            }
        }
    }

    fn own_names(&self) -> Names {
        Names::of(&self.settings.bridge, &self.worker)
    }

    fn planned(wanted: &Wanted<'_>, offset: u32, mtu: u32) -> Self {
        let Wanted { id, settings, .. } = *wanted;
        let own4 = settings.ipv4.nth(offset);
        // The bridge has IPv6 where the kernel does.
        let ipv6 = settings.ipv6.filter(|_| Path::new("/proc/sys/net/ipv6").exists());
        let mut addresses = vec![(IpAddr::V4(own4), settings.ipv4.prefix())];
        addresses.extend(ipv6.map(|subnet| (subnet.nth(offset).into(), subnet.prefix())));
        let gateways = [Some(IpAddr::V4(settings.gateway4())), ipv6.and(settings.gateway6()).map(IpAddr::V6)];
        let route = |gateway: IpAddr| Gateway {
            destination: match gateway {
                IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
            },
            prefix: 0,
            gateway: Some(gateway),
        };
        Self {
            id: id.clone(),
            settings: settings.clone(),
            offset,
            interface: interface_of(id),
            attachment: Attachment {
                namespace: namespace::path_of(id),
                interface: INTERFACE.to_owned(),
                tap: (wanted.endpoint == Endpoint::Vm).then(|| tap::name_of(id)),
                mac: bridge::mac_of(own4),
                mtu,
                addresses,
                routes: gateways.into_iter().flatten().map(route).collect(),
            },
            policy: wanted.policy.clone(),
            ports: wanted.ports.to_vec(),
            names: wanted.names.to_vec(),
            worker: String::new(),
            name_port: 0,
        }
    }

    /// The veth pair between bridge and namespace.
    fn wire(&self, namespace: &Namespace, bridge: u32) -> Result<()> {
        let doing = || format!("connect the container to the bridge {}", self.settings.bridge);
        let mut socket = Socket::open().while_doing(doing)?;
        // One of an earlier life under this name is nobody's.
        socket.remove_link(&self.interface).while_doing(doing)?;
        let MacAddress(mac) = self.attachment.mac;
        let mut outer = mac;
        // The host's end needs one of its own, which nobody sees.
        outer[0] = 0x06;
        let (end, peer) = (
            VethEnd { name: &self.interface, mac: outer },
            VethEnd { name: &self.attachment.interface, mac },
        );
        socket.add_veth(&end, &peer, self.attachment.mtu, bridge, namespace.fd.as_fd()).while_doing(doing)?;
        let link = socket.link(&self.interface).while_doing(doing)?;
        let Some(link) = link else {
            return Err(Error::new(ErrorKind::Failed, format!("interface {} is gone", self.interface)));
        };
        // By this name it is found on the host. Two ids may end alike.
        let name = tap::name_of(&self.id);
        if socket.add_alternative_name(link.index, &name).is_err() {
            let hashed = format!("b9fc_{}", &self.id.vm_id().to_string()[..8]);
            socket.add_alternative_name(link.index, &hashed).while_doing(doing)?;
        }
        Ok(())
    }

    /// What is left once both ends are there.
    fn finish(&self, wanted: &Wanted<'_>, namespace: &mut Namespace) -> Result<()> {
        self.limit(wanted.rates, namespace)?;
        match wanted.endpoint {
            Endpoint::Namespace => self.give_addresses(namespace),
            Endpoint::Vm => {
                let name = tap::name_of(&self.id);
                tap::add(namespace, &name, &self.attachment.interface, self.attachment.mtu)
            }
        }
    }

    fn limit(&self, rates: RateLimits, namespace: &mut Namespace) -> Result<()> {
        let doing = || "limit the container's rates".to_owned();
        if let Some(rate) = rates.egress
            && let Some(link) = namespace.socket.link(&self.attachment.interface).while_doing(doing)?
        {
            namespace.socket.limit_rate(link.index, rate).while_doing(doing)?;
        }
        if let Some(rate) = rates.ingress {
            let mut socket = Socket::open().while_doing(doing)?;
            if let Some(link) = socket.link(&self.interface).while_doing(doing)? {
                socket.limit_rate(link.index, rate).while_doing(doing)?;
            }
        }
        Ok(())
    }

    fn give_addresses(&self, namespace: &mut Namespace) -> Result<()> {
        let doing = || "give the container its addresses".to_owned();
        let socket = &mut namespace.socket;
        let Some(link) = socket.link(&self.attachment.interface).while_doing(doing)? else {
            let text = format!("the container's namespace has no interface {}", self.attachment.interface);
            return Err(Error::new(ErrorKind::Failed, text));
        };
        socket.set_up(link.index).while_doing(doing)?;
        for (address, prefix) in &self.attachment.addresses {
            socket.add_address(link.index, *address, *prefix).while_doing(doing)?;
        }
        for route in &self.attachment.routes {
            let Gateway { destination, prefix, gateway } = *route;
            socket.add_route(&Route { link: link.index, destination, prefix, gateway }).while_doing(doing)?;
        }
        Ok(())
    }

    /// Makes it what it was for another start: gVisor takes the addresses off the interface for its own stack.
    pub fn renew(&self) -> Result<()> {
        if self.attachment.tap.is_some() {
            return Ok(());
        }
        self.give_addresses(&mut Namespace::open(&self.attachment.namespace)?)
    }

    /// Puts its rules in place instead of those that there are.
    fn apply_rules(&self, nft: &Nft) -> Result<()> {
        // Transactions that overlap make each other start again.
        let _one_at_a_time = files::lock(&Leases::of(&self.settings.bridge).rules_lock())?;
        self.apply_rules_alone(nft).or_else(|error| {
            // Somebody may have thrown all rules of the machine away.
            if bridge::restore_tables(&self.settings, nft)? {
                self.apply_rules_alone(nft)
            } else {
                Err(error)
            }
        })
    }

    fn apply_rules_alone(&self, nft: &Nft) -> Result<()> {
        let (addresses, neighbours) = self.subjects();
        nft.apply(&self.subject(&addresses, &neighbours).replace())
    }

    /// The chains that there are while its rules are in place.
    pub(crate) fn chains(&self) -> [String; 2] {
        let (addresses, neighbours) = self.subjects();
        self.subject(&addresses, &neighbours).chains()
    }

    /// Makes the rules again of the container that is written down in `file`. Returns whether there is one.
    pub(crate) fn restore(file: &Path, nft: &Nft) -> Result<bool> {
        let Some(before) = Self::read(file)? else { return Ok(false) };
        let _one_at_a_time = files::lock(&Leases::of(&before.settings.bridge).rules_lock())?;
        let Some(connection) = Self::read(file)? else { return Ok(false) };
        bridge::restore_tables(&connection.settings, nft)?;
        connection.apply_rules_alone(nft)?;
        // Whoever looks at it sees that what names had let through is closed again.
        connection.write(file)?;
        Ok(true)
    }

    /// Changes whom the container that is written down in `file` may talk to, from the next packet on: of connections that
    /// there are, too. Returns whether there is one.
    pub fn set_policy(file: &Path, nft: &Nft, policy: NetworkPolicy) -> Result<bool> {
        let Some(before) = Self::read(file)? else { return Ok(false) };
        let _one_at_a_time = files::lock(&Leases::of(&before.settings.bridge).rules_lock())?;
        // It may have been taken away meanwhile.
        let Some(mut connection) = Self::read(file)? else { return Ok(false) };
        connection.policy = policy;
        connection.apply_rules_alone(nft)?;
        connection.write(file)?;
        connection.end_connections()?;
        Ok(true)
    }

    /// Changes which ports the container that is written down in `file` has on the host. Whoever calls it holds them all.
    /// Returns what is written down then.
    pub fn set_ports(host: &Host, file: &Path, ports: &[PublishedPort]) -> Result<Self> {
        host.outside(|nft| {
            let gone = || Error::new(ErrorKind::Failed, "the container's network is being taken away");
            let before = Self::read(file)?.ok_or_else(gone)?;
            let _one_at_a_time = files::lock(&Leases::of(&before.settings.bridge).rules_lock())?;
            let mut connection = Self::read(file)?.ok_or_else(gone)?;
            if ports.len() > MAX_PORTS {
                let text = format!(
                    "{} ports are too many for one container: publish at most {MAX_PORTS}",
                    ports.len()
                );
                return Err(Error::new(ErrorKind::Invalid, text));
            }
            let before = std::mem::replace(&mut connection.ports, ports.to_vec());
            let (addresses, neighbours) = connection.subjects();
            nft.apply(&connection.subject(&addresses, &neighbours).change_ports(&before))?;
            connection.write(file)?;
            Ok(connection)
        })
    }

    /// What passed by another policy is judged anew. Nothing of one that is blocked passes, whatever is tracked; the rest may.
    fn end_connections(&self) -> Result<()> {
        let addresses: Vec<IpAddr> = self.attachment.addresses.iter().map(|(address, _)| *address).collect();
        let ended = match self.policy {
            NetworkPolicy::Open => return Ok(()),
            _ => Socket::open_filters().and_then(|mut socket| socket.forget_connections(&addresses)),
        };
        match ended {
            Ok(count) => {
                tracing::debug!(container = %self.id, count, "connections of a container are judged anew");
                Ok(())
            }
            Err(error) if self.policy == NetworkPolicy::Blocked => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(container = %self.id, error, "connections of a blocked container stay tracked");
                Ok(())
            }
            Err(error) => Err(error).while_doing(|| {
                "the rules are changed, but connections that there were may go on: load the kernel's \
                 nf_conntrack_netlink and try again"
                    .to_owned()
            }),
        }
    }

    /// Gives the container that is written down in `file` another name in the place of `old`.
    pub fn rename(file: &Path, old: Option<&NetworkName>, new: &NetworkName) -> Result<()> {
        let Some(before) = Self::read(file)? else { return Ok(()) };
        let leases = Leases::of(&before.settings.bridge);
        let _one_at_a_time = files::lock(&leases.rules_lock())?;
        let locked = leases.lock()?;
        let Some(mut connection) = Self::read(file)? else { return Ok(()) };
        let names = connection.own_names();
        names.add(&locked, std::slice::from_ref(new), connection.offset)?;
        if let Some(old) = old.filter(|old| *old != new) {
            names.remove(&locked, std::slice::from_ref(old), connection.offset)?;
            connection.names.retain(|name| name != old);
        }
        if !connection.names.contains(new) {
            connection.names.push(new.clone());
        }
        connection.write(file)
    }

    /// Lets packets through to the addresses of a name, for a while, if the container that is written down in `file` may talk
    /// to whoever has that name. Returns whether it may.
    pub(crate) fn let_through(
        file: &Path,
        nft: &Nft,
        name: &str,
        addresses: &[(IpAddr, Duration)],
    ) -> Result<bool> {
        let Some(before) = Self::read(file)? else { return Ok(false) };
        let _one_at_a_time = files::lock(&Leases::of(&before.settings.bridge).rules_lock())?;
        // By the rules that there are now.
        let Some(connection) = Self::read(file)? else { return Ok(false) };
        if !connection.policy.names().any(|pattern| pattern.matches(name)) {
            return Ok(false);
        }
        let (own, neighbours) = connection.subjects();
        let is_elsewhere = |address: &IpAddr| {
            !is_near(*address) && !neighbours.iter().any(|neighbour| neighbour.contains(*address))
        };
        let addresses: Vec<_> =
            addresses.iter().filter(|(address, _)| is_elsewhere(address)).copied().collect();
        if !addresses.is_empty() {
            nft.apply(&connection.subject(&own, &neighbours).let_through(&addresses))?;
        }
        Ok(true)
    }

    fn subjects(&self) -> (Vec<IpAddr>, Vec<Subnet>) {
        let addresses = self.attachment.addresses.iter().map(|(address, _)| *address).collect();
        let neighbours = [Some(Subnet::V4(self.settings.ipv4)), self.settings.ipv6.map(Subnet::V6)];
        (addresses, neighbours.into_iter().flatten().collect())
    }

    fn subject<'a>(&'a self, addresses: &'a [IpAddr], neighbours: &'a [Subnet]) -> Subject<'a> {
        Subject {
            bridge: self.settings.bridge.as_str(),
            interface: &self.interface,
            id: self.id.as_str(),
            mac: self.attachment.mac,
            addresses,
            neighbours,
            policy: &self.policy,
            ports: &self.ports,
            name_server: (self.name_port != 0)
                .then(|| NameServer { gateway: self.settings.gateway4(), port: self.name_port }),
        }
    }

    /// Takes everything away, whatever of it is there, and gives the address back. What cannot be taken away is told in the
    /// log, and stays written down in `file`; whoever calls this again goes on with it.
    pub fn take_away(&self, host: &Host, file: &Path) {
        let done = host.outside(|nft| {
            self.undo(nft, file);
            Ok(())
        });
        if let Err(error) = done {
            self.complain(&error);
        }
    }

    fn undo(&self, nft: &Nft, file: &Path) {
        // The pair goes with either end.
        let unwired = Socket::open().and_then(|mut socket| socket.remove_link(&self.interface));
        let unwired = unwired.while_doing(|| format!("remove interface {}", self.interface));
        let unnamed = namespace::remove(&self.attachment.namespace);
        let leases = Leases::of(&self.settings.bridge);
        let renamed = Self::read(file).ok().flatten().map(|written| written.names).unwrap_or_default();
        let forgotten = self.remove_rules(nft, &leases, file, unwired.and(unnamed));
        let unfound = leases.lock().and_then(|locked| {
            // Who has the address next has other names.
            self.own_names().remove(&locked, &[&self.names[..], &renamed].concat(), self.offset)
        });
        // An address whose interface or rules are still there is not free.
        if let Err(error) = forgotten.and(unfound).and_then(|()| leases.release(&self.id, self.offset)) {
            self.complain(&error);
        }
    }

    /// Removes the rules and, if nothing else is left, that it was written down, at once for whoever else changes rules.
    fn remove_rules(&self, nft: &Nft, leases: &Leases, file: &Path, rest: Result<()>) -> Result<()> {
        let _one_at_a_time = files::lock(&leases.rules_lock())?;
        // Without the bridge there are no tables, and no rules.
        if leases.settings_file().exists() {
            // Ports may have changed since.
            let written = Self::read(file).ok().flatten();
            let connection = written.as_ref().unwrap_or(self);
            let (addresses, neighbours) = connection.subjects();
            let subject = connection.subject(&addresses, &neighbours);
            for script in subject.remove_ports() {
                if let Err(error) = nft.apply(&script) {
                    let error: &dyn std::error::Error = &error;
                    tracing::debug!(error, container = %self.id, "a published port is somebody else's by now");
                }
            }
            nft.apply(&subject.remove())?;
        }
        rest?;
        // The next start asks for the same address.
        match std::fs::rename(file, last(file)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::file("rename", file, e)),
            _ => Ok(()),
        }
    }

    fn complain(&self, error: &Error) {
        let error: &dyn std::error::Error = error;
        tracing::error!(container = %self.id, error, "something of a container's network could not be taken away");
    }

    /// Bytes that it has received and sent, by the count of the host's end of its veth pair.
    pub fn traffic(&self) -> Option<(u64, u64)> {
        let statistics = Path::new("/sys/class/net").join(&self.interface).join("statistics");
        let count = |name: &str| std::fs::read_to_string(statistics.join(name)).ok()?.trim().parse().ok();
        // What the host's end sends is what the container receives.
        Some((count("tx_bytes")?, count("rx_bytes")?))
    }

    /// Gives back what a container has whose connection was not written down yet.
    pub fn forget_unwritten(settings: &NetworkSettings, id: &ContainerId) -> Result<()> {
        Leases::of(&settings.bridge).release_all(id)
    }

    /// Where a container's connection is written down, in its own directory.
    pub fn file_in(directory: &Path) -> PathBuf {
        directory.join("network.json")
    }
}

/// Whether an address is the host's own, or one that every link has: names that lead there are no way to them.
fn is_near(address: IpAddr) -> bool {
    let address = address.to_canonical();
    let is_link_local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    is_link_local || address.is_loopback() || address.is_unspecified() || address.is_multicast()
}

/// Where a connection is written down that there was.
fn last(file: &Path) -> PathBuf {
    file.with_extension("last.json")
}

/// The name of the host's end of a container's veth pair: 15 characters, the most that an interface has.
fn interface_of(id: &ContainerId) -> String {
    format!("b9h{}", &id.vm_id().to_string()[..12])
}
