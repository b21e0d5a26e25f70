//! The machine's network interface: addresses and routes as the host says.
//!
//! The host's other end lets nothing pass but what carries these addresses, so nothing is asked of anybody here.

use std::fs;

use beta9_sys::netlink::Socket;
use beta9_sys::netlink::route::Route;
use beta9_wire::GuestNetwork;

use crate::failure::{Context, Failure, Result};

/// Gives the interface that the host means what it is to have, and brings it up.
pub(crate) fn set_up(wanted: &GuestNetwork) -> Result<()> {
    let doing = || "set up the network".to_owned();
    let mut socket = Socket::open().context(doing)?;
    let links = socket.links().context(doing)?;
    let Some(link) = links.into_iter().find(|link| link.mac == wanted.mac) else {
        return Err(Failure::refused(
            "the machine has no network interface with the address that the host names",
        ));
    };
    // Routers are not believed: the routes are the host's. A kernel without IPv6 has no such setting.
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{}/accept_ra", link.name), "0");
    socket.set_mtu(link.index, wanted.mtu).context(doing)?;
    socket.set_up(link.index).context(doing)?;
    for (address, prefix) in &wanted.addresses {
        socket.add_address(link.index, *address, *prefix).context(|| format!("add address {address}"))?;
    }
    for route in &wanted.routes {
        let route = Route {
            link: link.index,
            destination: route.destination,
            prefix: route.prefix,
            gateway: route.gateway,
        };
        socket
            .add_route(&route)
            .context(|| format!("add the route to {}/{}", route.destination, route.prefix))?;
    }
    Ok(())
}
