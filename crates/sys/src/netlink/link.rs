//! Network interfaces.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::message::{attributes, number, text};
use super::socket::CREATE;
use super::{Attributes, Message, Socket, native};
use crate::Result;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWLINKPROP: u16 = 108;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_PROP_LIST: u16 = 52;
const IFLA_ALT_IFNAME: u16 = 53;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BR_MCAST_SNOOPING: u16 = 23;

const IFF_UP: u32 = 1;

/// An Ethernet address.
pub type MacAddress = [u8; 6];

/// An interface as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address; all zero where it has none.
    pub mac: MacAddress,
    /// Longest packet.
    pub mtu: u32,
    /// What kind of virtual interface it is, such as `bridge` or `veth`.
    pub kind: Option<String>,
}

/// One end of a veth pair.
#[derive(Debug, Clone)]
pub struct VethEnd<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its Ethernet address.
    pub mac: MacAddress,
}

/// `struct ifinfomsg`.
fn header(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&native(index));
    header[8..12].copy_from_slice(&native(flags));
    header[12..].copy_from_slice(&native(change));
    header
}

impl Socket {
    /// An interface by its name; `None` where there is none.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>> {
        let attributes = Attributes::new().text(IFLA_IFNAME, name);
        let message = Message::new(RTM_GETLINK, 0, &header(0, 0, 0), attributes);
        match self.get("look an interface up", &message) {
            Ok(answer) => Ok(answer.and_then(|answer| parse(&answer.body))),
            Err(error)
                if error.raw_os_error() == Some(libc::ENODEV) || error.kind() == io::ErrorKind::NotFound =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Every interface.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        let message = Message::new(RTM_GETLINK, 0, &header(0, 0, 0), Attributes::new());
        let answers = self.list("list the interfaces", &message)?;
        let links = answers.into_iter().filter(|answer| answer.kind == RTM_NEWLINK);
        Ok(links.filter_map(|answer| parse(&answer.body)).collect())
    }

    /// Makes a bridge without multicast snooping, and brings it up.
    pub fn add_bridge(&mut self, name: &str, mac: MacAddress, mtu: u32) -> Result<()> {
        let data = Attributes::new().bytes(IFLA_BR_MCAST_SNOOPING, &[0]);
        let info = Attributes::new().text(IFLA_INFO_KIND, "bridge").nested(IFLA_INFO_DATA, data);
        let attributes = Attributes::new()
            .text(IFLA_IFNAME, name)
            .bytes(IFLA_ADDRESS, &mac)
            .number(IFLA_MTU, mtu)
            .nested(IFLA_LINKINFO, info);
        let message = Message::new(RTM_NEWLINK, CREATE, &header(0, IFF_UP, IFF_UP), attributes);
        self.request("make a bridge", &message)
    }

    /// Makes a veth pair: `end` here, up and a port of the bridge `master`, `peer` in the namespace `namespace`, still down.
    pub fn add_veth(
        &mut self,
        end: &VethEnd<'_>,
        peer: &VethEnd<'_>,
        mtu: u32,
        master: u32,
        namespace: BorrowedFd<'_>,
    ) -> Result<()> {
        let up = header(0, IFF_UP, IFF_UP);
        let of = |end: &VethEnd<'_>| {
            Attributes::new().text(IFLA_IFNAME, end.name).bytes(IFLA_ADDRESS, &end.mac).number(IFLA_MTU, mtu)
        };
        // A descriptor is never negative.
        let other =
            of(peer).number(IFLA_NET_NS_FD, namespace.as_raw_fd().unsigned_abs()).behind(&header(0, 0, 0));
        let data = Attributes::new().nested(VETH_INFO_PEER, other);
        let info = Attributes::new().text(IFLA_INFO_KIND, "veth").nested(IFLA_INFO_DATA, data);
        let attributes = of(end).number(IFLA_MASTER, master).nested(IFLA_LINKINFO, info);
        self.request("make a veth pair", &Message::new(RTM_NEWLINK, CREATE, &up, attributes))
    }

    /// Gives an interface another name beside its own.
    pub fn add_alternative_name(&mut self, index: u32, name: &str) -> Result<()> {
        let names = Attributes::new().text(IFLA_ALT_IFNAME, name);
        let attributes = Attributes::new().nested(IFLA_PROP_LIST, names);
        let message = Message::new(RTM_NEWLINKPROP, CREATE, &header(index, 0, 0), attributes);
        self.request("give an interface another name", &message)
    }

    /// Writes a note on an interface for whoever lists it.
    pub fn describe_link(&mut self, index: u32, note: &str) -> Result<()> {
        let attributes = Attributes::new().text(IFLA_IFALIAS, note);
        self.request("describe an interface", &Message::new(RTM_SETLINK, 0, &header(index, 0, 0), attributes))
    }

    /// Brings an interface up.
    pub fn set_up(&mut self, index: u32) -> Result<()> {
        let message = Message::new(RTM_SETLINK, 0, &header(index, IFF_UP, IFF_UP), Attributes::new());
        self.request("bring an interface up", &message)
    }

    /// Sets the longest packet of an interface.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<()> {
        let attributes = Attributes::new().number(IFLA_MTU, mtu);
        self.request(
            "set an interface's MTU",
            &Message::new(RTM_SETLINK, 0, &header(index, 0, 0), attributes),
        )
    }

    /// Removes an interface by its name, a veth pair with its other end. Missing is fine.
    pub fn remove_link(&mut self, name: &str) -> Result<()> {
        let attributes = Attributes::new().text(IFLA_IFNAME, name);
        match self.request("remove an interface", &Message::new(RTM_DELLINK, 0, &header(0, 0, 0), attributes))
        {
            Err(error)
                if error.raw_os_error() == Some(libc::ENODEV) || error.kind() == io::ErrorKind::NotFound =>
            {
                Ok(())
            }
            other => other,
        }
    }
}

fn parse(body: &[u8]) -> Option<Link> {
    let index = u32::from_ne_bytes(*body.get(4..)?.first_chunk()?);
    let mut link = Link { index, name: String::new(), mac: [0; 6], mtu: 0, kind: None };
    for (kind, value) in attributes(body.get(16..)?) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_ADDRESS => link.mac = value.first_chunk().copied().unwrap_or_default(),
            IFLA_MTU => link.mtu = number(value).unwrap_or_default(),
            IFLA_LINKINFO => {
                link.kind =
                    attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND).map(|(_, kind)| text(kind));
            }
            _ => {}
        }
    }
    Some(link)
}
