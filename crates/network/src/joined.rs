//! A namespace that somebody else made: a CNI plugin, `ip netns`, another container.
//!
//! It keeps its addresses, its routes and its rules. A VM gets a TAP device and two queueing disciplines in it, which are
//! taken away again.

use std::os::fd::OwnedFd;
use std::path::Path;

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
}

impl Joined {
    /// Opens it, and for a VM adds a device. On failure nothing is left.
    pub fn set_up(id: &ContainerId, path: &Path, endpoint: Endpoint, file: &Path) -> Result<(Self, OwnedFd)> {
        let mut namespace = Namespace::open(path)?;
        let mut joined = Self { attachment: describe(path, &mut namespace)? };
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

    /// Takes away what was added, if the namespace still exists.
    pub fn take_away(&self) {
        let Some(tap) = &self.attachment.tap else { return };
        if let Ok(mut namespace) = Namespace::open(&self.attachment.namespace) {
            tap::remove(&mut namespace, tap, &self.attachment.interface);
        }
    }
}

/// What a namespace has: its first interface that is connected to somewhere.
fn describe(path: &Path, namespace: &mut Namespace) -> Result<Attachment> {
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
    let local = |address: std::net::IpAddr| match address {
        std::net::IpAddr::V6(address) => address.is_unicast_link_local() || address.is_multicast(),
        std::net::IpAddr::V4(_) => false,
    };
    let mut ways: Vec<Gateway> = routes
        .iter()
        .filter(|route| route.link == index && !local(route.destination))
        .map(|route| Gateway { destination: route.destination, prefix: route.prefix, gateway: route.gateway })
        .collect();
    // Gateways are reached by routes to neighbours, which have to be there first.
    ways.sort_by_key(|way| way.gateway.is_some());
    Ok(Attachment {
        namespace: path.to_owned(),
        interface: link.map(|link| link.name.clone()).unwrap_or_default(),
        tap: None,
        mac: MacAddress(link.map_or([0; 6], |link| link.mac)),
        mtu: link.map_or(0, |link| link.mtu),
        addresses: own.map(|address| (address.address, address.prefix)).collect(),
        routes: ways,
    })
}
