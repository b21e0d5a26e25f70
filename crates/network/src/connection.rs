//! One container's end of a bridge: set up, written down, taken away.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use beta9_sys::namespaces::{current_mounts, on_own_thread};
use beta9_sys::netlink::Socket;
use beta9_sys::netlink::link::VethEnd;
use beta9_sys::netlink::route::Route;
use beta9_types::{
    Attachment, ContainerId, Gateway, MacAddress, NetworkPolicy, NetworkSettings, PublishedPort, RateLimits,
    Subnet,
};
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, ErrorKind, Result};
use crate::lease::Leases;
use crate::namespace::{self, Namespace};
use crate::nft::Nft;
use crate::nft::container::Subject;
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
}

impl Connection {
    /// Sets it up and leaves its namespace open. On failure nothing of it is left.
    pub fn set_up(host: &Host, wanted: &Wanted<'_>) -> Result<(Self, OwnedFd)> {
        let (connection, namespace) = host.outside(|nft| {
            let (connection, mut namespace) = Self::make(nft, wanted)?;
            let finished = connection.finish(wanted, &mut namespace);
            match finished {
                Ok(()) => Ok((connection, namespace.fd)),
                Err(error) => {
                    connection.undo(nft, wanted.file);
                    Err(error)
                }
            }
        })?;
        let shown = namespace::show_here(&connection.attachment.namespace, &namespace);
        match shown {
            Ok(()) => Ok((connection, namespace)),
            Err(error) => {
                connection.take_away(host, wanted.file);
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

    fn make(nft: &Nft, wanted: &Wanted<'_>) -> Result<(Self, Namespace)> {
        let Wanted { id, settings, .. } = *wanted;
        let leases = Leases::of(&settings.bridge);
        let previous = Self::read(&last(wanted.file)).ok().flatten().filter(|old| old.settings == *settings);
        let locked = leases.lock()?;
        let link = bridge::ensure(&locked, &leases, settings, nft)?;
        let offset = locked.take(id, settings, previous.map(|previous| previous.offset))?;
        drop(locked);
        let connection = Self::planned(wanted, offset, link.mtu);
        let made = connection.write(wanted.file).and_then(|()| {
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
            Ok(namespace) => Ok((connection, namespace)),
            Err(error) => {
                connection.undo(nft, wanted.file);
                Err(error)
            }
        }
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
        self.apply_rules_alone(nft)
    }

    fn apply_rules_alone(&self, nft: &Nft) -> Result<()> {
        let (addresses, neighbours) = self.subjects();
        nft.apply(&self.subject(&addresses, &neighbours).replace())
    }

    /// Changes whom the container that is written down in `file` may talk to, from the next packet on. Returns whether there
    /// is one.
    pub fn set_policy(file: &Path, nft: &Nft, policy: NetworkPolicy) -> Result<bool> {
        let Some(before) = Self::read(file)? else { return Ok(false) };
        let _one_at_a_time = files::lock(&Leases::of(&before.settings.bridge).rules_lock())?;
        // It may have been taken away meanwhile.
        let Some(mut connection) = Self::read(file)? else { return Ok(false) };
        connection.policy = policy;
        connection.apply_rules_alone(nft)?;
        connection.write(file)?;
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
        let forgotten = unwired.and(unnamed).and_then(|()| self.remove_rules(nft, &leases, file));
        // An address whose interface or rules are still there is not free.
        if let Err(error) = forgotten.and_then(|()| leases.release(&self.id, self.offset)) {
            self.complain(&error);
        }
    }

    /// Removes the rules and that they were written down, at once for whoever else changes rules.
    fn remove_rules(&self, nft: &Nft, leases: &Leases, file: &Path) -> Result<()> {
        let _one_at_a_time = files::lock(&leases.rules_lock())?;
        // Without the bridge there are no tables, and no rules.
        if leases.settings_file().exists() {
            let (addresses, neighbours) = self.subjects();
            let subject = self.subject(&addresses, &neighbours);
            for script in subject.remove_ports() {
                if let Err(error) = nft.apply(&script) {
                    let error: &dyn std::error::Error = &error;
                    tracing::debug!(error, container = %self.id, "a published port is somebody else's by now");
                }
            }
            nft.apply(&subject.remove())?;
        }
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

/// Where a connection is written down that there was.
fn last(file: &Path) -> PathBuf {
    file.with_extension("last.json")
}

/// The name of the host's end of a container's veth pair: 15 characters, the most that an interface has.
fn interface_of(id: &ContainerId) -> String {
    format!("b9h{}", &id.vm_id().to_string()[..12])
}
