//! A namespace that somebody else made: a CNI plugin, `ip netns`, another container.
//!
//! It keeps its addresses, its routes and its rules. A VM gets a TAP device and two queueing disciplines in it, which are
//! taken away again.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::Path;

use beta9_sys::netlink::Socket;
use beta9_sys::netlink::route::Route;
use beta9_types::{Attachment, ContainerId, Gateway, MacAddress};
use serde::{Deserialize, Serialize};

use crate::connection::{Endpoint, INTERFACE};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::namespace::Namespace;
use crate::{files, tap};

/// What is reached only on the machine or on the link itself is not a guest's to have.
const SCOPE_UNIVERSE: u8 = 0;

/// A container's use of a namespace that is not its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// What is there.
    pub attachment: Attachment,
    /// Every address of the interface, those that reach no further than the link among them.
    addresses: Vec<(IpAddr, u8)>,
}

impl Joined {
    /// Opens it, and for a VM adds a device. On failure nothing is left.
    pub fn set_up(id: &ContainerId, path: &Path, endpoint: Endpoint, file: &Path) -> Result<(Self, OwnedFd)> {
        let mut namespace = Namespace::open(path)?;
        let mut joined = describe(path, &mut namespace)?;
        if endpoint == Endpoint::Vm {
            let name = tap::name_of(id);
            if joined.attachment.interface.is_empty() {
                let text = format!(
                    "network namespace {} has no interface for a VM: connect it first",
                    path.display()
                );
                return Err(Error::new(ErrorKind::Invalid, text));
            }
            joined.attachment.tap = Some(name.clone());
            files::write_json(file, &joined)?;
            tap::add(&mut namespace, &name, &joined.attachment.interface, joined.attachment.mtu)?;
        } else {
            files::write_json(file, &joined)?;
        }
        Ok((joined, namespace.fd))
    }

    /// Reads one that was written down; absent is `None`.
    pub fn read(file: &Path) -> Result<Option<Self>> {
        files::read_json(file)
    }

    /// Takes away what was added, and puts back what gVisor took, if the namespace still exists.
    pub fn take_away(&self) {
        let Ok(mut namespace) = Namespace::open(&self.attachment.namespace) else { return };
        if let Some(tap) = &self.attachment.tap {
            tap::remove(&mut namespace, tap, &self.attachment.interface);
        } else if let Err(error) = self.restore(&mut namespace.socket) {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, namespace = %self.attachment.namespace.display(), "addresses could not be put back");
        }
    }

    /// Gives the interface what it had and does not have any more.
    fn restore(&self, socket: &mut Socket) -> beta9_sys::Result<()> {
        let Some(link) = socket.link(&self.attachment.interface)? else { return Ok(()) };
        let there = socket.addresses()?;
        for (address, prefix) in &self.addresses {
            if !there.iter().any(|other| other.link == link.index && other.address == *address) {
                socket.add_address(link.index, *address, *prefix)?;
            }
        }
        let there = socket.routes()?;
        for Gateway { destination, prefix, gateway } in self.attachment.routes.iter().copied() {
            let route = Route { link: link.index, destination, prefix, gateway };
            if !there.contains(&route) {
                socket.add_route(&route)?;
            }
        }
        Ok(())
    }
}

/// What a namespace has: its first interface that is connected to somewhere.
fn describe(path: &Path, namespace: &mut Namespace) -> Result<Joined> {
    let doing = || format!("look into the network namespace {}", path.display());
    let socket = &mut namespace.socket;
    let mut links = socket.links().while_doing(doing)?;
    let addresses = socket.addresses().while_doing(doing)?;
    let routes = socket.routes().while_doing(doing)?;
    let has_address =
        |index: u32| addresses.iter().any(|address| address.link == index && address.scope == SCOPE_UNIVERSE);
    links.retain(|link| link.name != "lo" && link.mac != [0; 6]);
    links.sort_by_key(|link| (!has_address(link.index), link.name != INTERFACE, link.index));
    let link = links.first();
    let index = link.map_or(0, |link| link.index);
    let own = addresses.iter().filter(|address| address.link == index && address.scope == SCOPE_UNIVERSE);
    let local = |address: IpAddr| match address {
        IpAddr::V6(address) => address.is_unicast_link_local() || address.is_multicast(),
        IpAddr::V4(_) => false,
    };
    let all = addresses.iter().filter(|address| address.link == index);
    let all = all.map(|address| (address.address, address.prefix)).collect();
    let mut ways: Vec<Gateway> = routes
        .iter()
        .filter(|route| route.link == index && !local(route.destination))
        .map(|route| Gateway { destination: route.destination, prefix: route.prefix, gateway: route.gateway })
        .collect();
    // Gateways are reached by routes to neighbours, which have to be there first.
    ways.sort_by_key(|way| way.gateway.is_some());
    let attachment = Attachment {
        namespace: path.to_owned(),
        interface: link.map(|link| link.name.clone()).unwrap_or_default(),
        tap: None,
        mac: MacAddress(link.map_or([0; 6], |link| link.mac)),
        mtu: link.map_or(0, |link| link.mtu),
        addresses: own.map(|address| (address.address, address.prefix)).collect(),
        routes: ways,
    };
    Ok(Joined { attachment, addresses: all })
}
