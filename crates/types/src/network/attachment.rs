use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::ParseError;

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// The link-local address of IPv6 that a kernel makes of it (RFC 4291, appendix A).
    pub fn link_local(self) -> std::net::Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        let pair = |high: u8, low: u8| u16::from_be_bytes([high, low]);
        std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, pair(a ^ 2, b), pair(c, 0xff), pair(0xfe, d), pair(e, f))
    }
}

impl std::fmt::Display for MacAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl std::str::FromStr for MacAddress {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let bad = || ParseError::new("MAC address", text, "use six pairs of hex digits with colons");
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(Self(bytes)) }
    }
}

impl TryFrom<String> for MacAddress {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

/// A way out of a network: to `destination/prefix`, through `gateway`, or to neighbours where there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gateway {
    /// The lowest address of where to.
    pub destination: IpAddr,
    /// Bits of the prefix; 0 is everywhere else.
    pub prefix: u8,
    /// Through whom.
    pub gateway: Option<IpAddr>,
}

/// A container's end of a network, ready for its runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The network namespace.
    pub namespace: PathBuf,
    /// The interface in it.
    pub interface: String,
    /// The interface that a VM's engine opens in it, if the container is in one.
    pub tap: Option<String>,
    /// The interface's Ethernet address.
    pub mac: MacAddress,
    /// Longest packet.
    pub mtu: u32,
    /// Its addresses, each with the length of its network's prefix.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Its routes beside those to its neighbours.
    pub routes: Vec<Gateway>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_local_address_is_made_of_the_ethernet_address() {
        let mac: MacAddress = "02:b9:c0:a8:00:02".parse().unwrap();
        assert_eq!(mac.link_local().to_string(), "fe80::b9:c0ff:fea8:2");
        assert_eq!(mac.to_string(), "02:b9:c0:a8:00:02");
        for bad in ["", "02:b9:c0:a8:00", "02:b9:c0:a8:00:02:03", "2:b9:c0:a8:00:02", "0g:b9:c0:a8:00:02"] {
            assert!(bad.parse::<MacAddress>().is_err(), "{bad:?} was accepted");
        }
    }
}
