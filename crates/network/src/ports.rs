//! Ports of the host that a container serves, reserved by listening on them.
//!
//! Nobody else can have a port while its socket is open, and a port that somebody else has is found out before anything is
//! started. Packets from outside are rewritten before they reach the socket; what does arrive there comes from the host
//! itself or from its containers, and is passed on by a [`Proxies`](crate::Proxies).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use beta9_types::{PortMapping, PortProtocol, PublishedPort};
use rustix::net::sockopt::{set_ipv6_v6only, set_socket_reuseaddr};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};

use crate::error::{Error, ErrorKind, Result};

/// How often another free port is looked for that is free for both families.
const TRIES: u32 = 32;
/// Connections that wait to be taken.
const BACKLOG: i32 = 1024;
/// More sockets than a process may have open by default.
pub(crate) const MAX_PORTS: usize = 500;

/// Sockets that hold ports. Dropping it gives them back.
#[derive(Debug, Default)]
pub struct Reserved {
    pub(crate) sockets: Vec<(PublishedPort, OwnedFd)>,
}

impl Reserved {
    /// Reserves every port, or none.
    pub fn take(mappings: &[PortMapping]) -> Result<Self> {
        let count: usize = mappings.iter().map(|mapping| usize::from(mapping.count)).sum();
        if count > MAX_PORTS {
            let text = format!("{count} ports are too many for one container: publish at most {MAX_PORTS}");
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let mut reserved = Self::default();
        for mapping in mappings {
            for step in 0..mapping.count {
                let host_port = match mapping.host_port.map(|port| port.checked_add(step)) {
                    Some(None) => {
                        return Err(Error::new(
                            ErrorKind::Invalid,
                            format!("{mapping} goes beyond port 65535"),
                        ));
                    }
                    Some(port) => port,
                    None => None,
                };
                let container_port = mapping.container_port.saturating_add(step);
                reserved.sockets.extend(reserve(mapping, host_port, container_port)?);
            }
        }
        Ok(reserved)
    }

    /// What was reserved.
    pub fn ports(&self) -> Vec<PublishedPort> {
        self.sockets.iter().map(|(port, _)| *port).collect()
    }
}

fn reserve(
    mapping: &PortMapping,
    host_port: Option<u16>,
    container_port: u16,
) -> Result<Vec<(PublishedPort, OwnedFd)>> {
    let addresses = match mapping.host_ip {
        None => vec![IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv6Addr::UNSPECIFIED)],
        Some(address) => vec![address],
    };
    let failed = |port: u16, address: IpAddr, error: io::Error| {
        let name = format!("{}/{}", SocketAddr::new(address, port), mapping.protocol.as_str());
        match error.kind() {
            io::ErrorKind::AddrInUse => {
                let text = format!("host port {name} is in use: choose another one, or stop what has it");
                Error::caused(ErrorKind::Taken, text, error)
            }
            io::ErrorKind::AddrNotAvailable => {
                let text = format!("host port {name} cannot be had: {address} is no address of this host");
                Error::caused(ErrorKind::Invalid, text, error)
            }
            _ => Error::caused(ErrorKind::Failed, format!("reserve host port {name}"), error),
        }
    };
    for attempt in 1..=TRIES {
        let mut port = host_port.unwrap_or(0);
        let mut sockets = Vec::new();
        let mut conflict = None;
        for address in &addresses {
            match open(SocketAddr::new(*address, port), mapping.protocol) {
                Ok((socket, chosen)) => {
                    port = chosen;
                    let published = PublishedPort {
                        host_ip: *address,
                        host_port: chosen,
                        container_port,
                        protocol: mapping.protocol,
                    };
                    sockets.push((published, socket));
                }
                // A host without IPv6 serves IPv4.
                Err(e) if mapping.host_ip.is_none() && address.is_ipv6() && is_without(&e) => {}
                Err(e) => {
                    conflict = Some(failed(port, *address, e));
                    break;
                }
            }
        }
        match conflict {
            None => return Ok(sockets),
            // Another one may be free for both families.
            Some(error) if host_port.is_none() && error.kind() == ErrorKind::Taken && attempt < TRIES => {}
            Some(error) => return Err(error),
        }
    }
    Err(Error::new(ErrorKind::Exhausted, "no host port is free for both families"))
}

fn is_without(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported)
        || error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
}

/// A socket that holds an address; which port it is, where any was asked for.
fn open(address: SocketAddr, protocol: PortProtocol) -> io::Result<(OwnedFd, u16)> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = match protocol {
        PortProtocol::Tcp => SocketType::STREAM,
        PortProtocol::Udp => SocketType::DGRAM,
    };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if address.is_ipv6() {
        set_ipv6_v6only(&socket, true)?;
    }
    if protocol == PortProtocol::Tcp {
        // Connections of an earlier listener that are not quite over do not hold the port.
        set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &address)?;
    if protocol == PortProtocol::Tcp {
        listen(&socket, BACKLOG)?;
    }
    let own = rustix::net::getsockname(&socket)?;
    let own = SocketAddr::try_from(own).map_err(io::Error::from)?;
    Ok((socket, own.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(text: &str) -> Result<Reserved> {
        Reserved::take(&[text.parse().unwrap()])
    }

    #[test]
    fn a_port_is_reserved_for_both_families_and_given_back() {
        let reserved = take("80").unwrap();
        let ports = reserved.ports();
        let port = ports[0].host_port;
        assert!(port > 0 && ports.iter().all(|other| other.host_port == port && other.container_port == 80));
        let text = format!("{port}:80");
        let error = take(&text).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Taken);
        assert!(error.to_string().contains(&format!("0.0.0.0:{port}/tcp is in use")), "{error}");
        // The same number is another port for UDP.
        take(&format!("{port}:80/udp")).unwrap();
        drop(reserved);
        take(&text).unwrap();
    }

    #[test]
    fn one_taken_port_of_a_range_gives_all_back() {
        let held = take("127.0.0.1::80").unwrap();
        let last = held.ports()[0].host_port;
        let first = last - 1;
        let text = format!("127.0.0.1:{first}-{last}:80-81");
        assert_eq!(take(&text).unwrap_err().kind(), ErrorKind::Taken);
        drop(held);
        let both = take(&text).unwrap().ports();
        assert_eq!([both[0].host_port, both[1].host_port], [first, last]);
        assert_eq!([both[0].container_port, both[1].container_port], [80, 81]);
    }

    #[test]
    fn an_address_that_the_host_does_not_have_is_told() {
        let error = take("192.0.2.1:8080:80").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("no address of this host"), "{error}");
    }
}
