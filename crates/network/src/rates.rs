//! How fast a container sends and receives: a queueing discipline on each end of its veth pair, which the container's own
//! interface, or a VM's, is behind. So it is the same for every runtime, and out of a VM's reach; a container of the host's
//! kernel with `NET_ADMIN` can lift what it sends.

use std::path::Path;

use beta9_sys::netlink::Socket;
use beta9_types::RateLimits;

use crate::connection::Connection;
use crate::error::{Context, Result};
use crate::namespace::Namespace;

impl Connection {
    /// Changes the rates of a container that is connected; absent is as fast as it goes. `false` where it is not.
    pub fn set_rates(file: &Path, rates: RateLimits) -> Result<bool> {
        let Some(connection) = Self::read(file)? else { return Ok(false) };
        let mut namespace = Namespace::open(&connection.attachment.namespace)?;
        set(&mut namespace.socket, &connection.attachment.interface, rates.egress)?;
        let mut socket = Socket::open().while_doing(doing)?;
        set(&mut socket, &connection.interface, rates.ingress)?;
        Ok(true)
    }
}

fn doing() -> String {
    "limit the container's rates".to_owned()
}

fn set(socket: &mut Socket, interface: &str, rate: Option<u64>) -> Result<()> {
    let Some(link) = socket.link(interface).while_doing(doing)? else { return Ok(()) };
    match rate {
        Some(rate) => socket.limit_rate(link.index, rate).while_doing(doing),
        None => socket.lift_rate(link.index).while_doing(doing),
    }
}
