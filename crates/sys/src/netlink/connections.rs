//! Connections that the kernel tracks (ctnetlink): those of an address are forgotten, so that their next packets are judged
//! as the first of new ones.

use std::net::IpAddr;

use super::message::attributes;
use super::{Attributes, Message, Socket};
use crate::Result;

/// `NFNL_SUBSYS_CTNETLINK`, in the upper half of a message's kind.
const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
/// Source and destination of IPv4 and IPv6.
const CTA_IP: std::ops::RangeInclusive<u16> = 1..=4;

/// `struct nfgenmsg`: family, version, resource.
fn header(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}

impl Socket {
    /// Opens one to the kernel's filters and its tracking of connections, for the namespace that this thread is in.
    pub fn open_filters() -> Result<Self> {
        Self::open_to(Some(rustix::net::netlink::NETFILTER))
    }

    /// Forgets every connection that one of the addresses takes part in, on either side of a translation. The socket must
    /// be one to the filters. Returns how many there were. It needs the kernel's `nf_conntrack_netlink`.
    pub fn forget_connections(&mut self, addresses: &[IpAddr]) -> Result<usize> {
        let mut count = 0;
        for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
            let is_v4 = family == libc::AF_INET as u8;
            let own: Vec<Vec<u8>> =
                addresses.iter().filter(|address| address.is_ipv4() == is_v4).map(octets).collect();
            if own.is_empty() {
                continue;
            }
            let mut found = Vec::new();
            let list = Message::new(GET, 0, &header(family), Attributes::new());
            self.look_through("list the tracked connections", &list, |body| {
                found.extend(body.get(4..).filter(|body| concerns(body, &own)).map(key));
            })?;
            for key in found {
                let message = Message::new(DELETE, 0, &header(family), key);
                match self.request("forget a tracked connection", &message) {
                    Ok(()) => count += 1,
                    // It ended by itself.
                    Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(count)
    }
}

fn octets(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Whether a connection has one of the addresses at either end, before or after translation.
fn concerns(body: &[u8], own: &[Vec<u8>]) -> bool {
    let tuples = attributes(body).filter(|(kind, _)| matches!(*kind, CTA_TUPLE_ORIG | CTA_TUPLE_REPLY));
    let mut ends = tuples
        .flat_map(|(_, tuple)| attributes(tuple).filter(|(kind, _)| *kind == CTA_TUPLE_IP))
        .flat_map(|(_, ends)| attributes(ends).filter(|(kind, _)| CTA_IP.contains(kind)));
    ends.any(|(_, end)| own.iter().any(|own| own == end))
}

/// What names a connection: what it began as, its zone, and its number, which no later one of the same ends has.
fn key(body: &[u8]) -> Attributes {
    attributes(body).fold(Attributes::new(), |key, (kind, value)| match kind {
        CTA_TUPLE_ORIG => key.copied(kind, value),
        CTA_ID | CTA_ZONE => key.bytes(kind, value),
        _ => key,
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::namespaces::{enter_new_network, on_own_thread};

    #[test]
    fn connections_of_an_address_are_forgotten_and_others_are_not() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let done = on_own_thread(None, || {
            enter_new_network()?;
            let mut links = Socket::open()?;
            let index = links.link("lo")?.map(|link| link.index).unwrap_or_default();
            links.set_up(index)?;
            // A rule that asks for the state of connections has them tracked.
            let rules =
                "table inet t { chain c { type filter hook input priority 0; ct state new accept; }; }";
            let ruled = std::process::Command::new("nft").arg(rules).status();
            if !ruled.is_ok_and(|status| status.success()) {
                eprintln!("skipped: needs nft");
                return Ok(());
            }
            let mut kept = Vec::new();
            for address in ["127.0.0.2", "127.0.0.3", "::1"] {
                let listener = TcpListener::bind((address, 0)).unwrap();
                kept.push(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
                kept.push(listener.accept().unwrap().0);
            }
            let mut socket = Socket::open_filters()?;
            let mut forget = |address: &str| socket.forget_connections(&[address.parse().unwrap()]);
            assert_eq!(forget("127.0.0.9")?, 0);
            assert_eq!((forget("127.0.0.2")?, forget("127.0.0.2")?), (1, 0));
            assert_eq!((forget("::1")?, forget("127.0.0.3")?), (1, 1));
            Ok(())
        });
        done.unwrap();
    }
}
