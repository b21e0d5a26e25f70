//! Addresses and routes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::message::{attributes, number};
use super::socket::REPLACE;
use super::{Attributes, Message, Socket};
use crate::Result;

const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

/// `IFA_F_NODAD`: an address of our own making is nobody else's, and is good at once.
const NO_DUPLICATE_DETECTION: u8 = 0x02;
const RT_TABLE_MAIN: u8 = 254;
/// `RTPROT_BOOT`, what `ip route` writes.
const PROTOCOL: u8 = 3;
const RTN_UNICAST: u8 = 1;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;

/// An address of an interface, with the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The interface's number.
    pub link: u32,
    /// The address.
    pub address: IpAddr,
    /// Bits of the prefix.
    pub prefix: u8,
    /// How far it reaches: 0 is everywhere, 253 the link, 254 the machine.
    pub scope: u8,
}

/// A way to other machines through an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The interface's number.
    pub link: u32,
    /// Where to. All zero with a prefix of 0 is everywhere else.
    pub destination: IpAddr,
    /// Bits of the prefix.
    pub prefix: u8,
    /// Through whom; absent for neighbours.
    pub gateway: Option<IpAddr>,
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => bytes.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets).into()),
        16 => bytes.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets).into()),
        _ => None,
    }
}

fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

impl Socket {
    /// Gives an interface an address. One that it has is fine.
    pub fn add_address(&mut self, link: u32, address: IpAddr, prefix: u8) -> Result<()> {
        // `struct ifaddrmsg`.
        let mut header = [family(address), prefix, NO_DUPLICATE_DETECTION, 0, 0, 0, 0, 0];
        header[4..].copy_from_slice(&link.to_ne_bytes());
        let bytes = octets(address);
        let attributes = Attributes::new().bytes(IFA_LOCAL, &bytes).bytes(IFA_ADDRESS, &bytes);
        self.request("give an interface an address", &Message::new(RTM_NEWADDR, REPLACE, &header, attributes))
    }

    /// Adds a route of the main table, or replaces the one to the same place.
    pub fn add_route(&mut self, route: &Route) -> Result<()> {
        let scope = if route.gateway.is_some() { RT_SCOPE_UNIVERSE } else { RT_SCOPE_LINK };
        // `struct rtmsg`.
        let header = [
            family(route.destination),
            route.prefix,
            0,
            0,
            RT_TABLE_MAIN,
            PROTOCOL,
            scope,
            RTN_UNICAST,
            0,
            0,
            0,
            0,
        ];
        let mut attributes = Attributes::new().number(RTA_OIF, route.link);
        if route.prefix > 0 {
            attributes = attributes.bytes(RTA_DST, &octets(route.destination));
        }
        if let Some(gateway) = route.gateway {
            attributes = attributes.bytes(RTA_GATEWAY, &octets(gateway));
        }
        self.request("add a route", &Message::new(RTM_NEWROUTE, REPLACE, &header, attributes))
    }

    /// Every address of both families.
    pub fn addresses(&mut self) -> Result<Vec<Address>> {
        let message = Message::new(RTM_GETADDR, 0, &[0; 8], Attributes::new());
        let answers = self.list("list addresses", &message)?;
        Ok(answers.iter().filter(|a| a.kind == RTM_NEWADDR).filter_map(|a| parse_address(&a.body)).collect())
    }

    /// Every unicast route of the main table, of both families.
    pub fn routes(&mut self) -> Result<Vec<Route>> {
        let mut routes = Vec::new();
        for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
            let mut header = [0; 12];
            header[0] = family;
            let message = Message::new(RTM_GETROUTE, 0, &header, Attributes::new());
            match self.list("list routes", &message) {
                Ok(answers) => {
                    let found = answers.iter().filter(|a| a.kind == RTM_NEWROUTE);
                    routes.extend(found.filter_map(|a| parse_route(&a.body)));
                }
                // A kernel without IPv6 has no such routes.
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
                Err(error) => return Err(error),
            }
        }
        Ok(routes)
    }
}

fn parse_address(body: &[u8]) -> Option<Address> {
    let [_, prefix, _, scope, link @ ..] = *body.first_chunk::<8>()?;
    let mut found = None;
    for (kind, value) in attributes(body.get(8..)?) {
        // Where there are two, the local one is the interface's and the other its peer's.
        if kind == IFA_LOCAL || (kind == IFA_ADDRESS && found.is_none()) {
            found = address_of(value);
        }
    }
    Some(Address { link: u32::from_ne_bytes(link), address: found?, prefix, scope })
}

fn parse_route(body: &[u8]) -> Option<Route> {
    let [family, prefix, _, _, table, _, _, kind, ..] = *body.first_chunk::<12>()?;
    if table != RT_TABLE_MAIN || kind != RTN_UNICAST {
        return None;
    }
    let any = if i32::from(family) == libc::AF_INET {
        IpAddr::from(Ipv4Addr::UNSPECIFIED)
    } else {
        IpAddr::from(Ipv6Addr::UNSPECIFIED)
    };
    let mut route = Route { link: 0, destination: any, prefix, gateway: None };
    for (kind, value) in attributes(body.get(12..)?) {
        match kind {
            RTA_DST => route.destination = address_of(value)?,
            RTA_GATEWAY => route.gateway = address_of(value),
            RTA_OIF => route.link = number(value)?,
            _ => {}
        }
    }
    Some(route)
}
