use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::{Ipv4Subnet, Ipv6Subnet};
use crate::{ParseError, string_newtype};

/// The network of containers whose requests do not say which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkDefault {
    /// The bridge where one can be made, else none.
    #[default]
    Auto,
    /// The bridge.
    Bridge,
    /// Loopback alone.
    None,
    /// The host's own; loopback alone for containers in VMs, which cannot have it.
    Host,
}

impl NetworkDefault {
    /// Every one, in the order in which they are shown.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Bridge, Self::None, Self::Host];

    /// The word used in configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Bridge => "bridge",
            Self::None => "none",
            Self::Host => "host",
        }
    }
}

/// The name of a bridge, and of the tables of rules that belong to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BridgeName(String);

string_newtype!(BridgeName);

impl BridgeName {
    /// Longest name of an interface.
    const MAX: usize = 15;

    /// Checks a name. It is that of an interface, and of tables in nft.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let starts_well = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic());
        let fine = starts_well && text.len() <= Self::MAX && text.bytes().all(known);
        // Interfaces of containers have such names, and rules are made for all of them.
        let fine = fine && !text.starts_with("b9h") && !text.starts_with("b9fc_");
        let rule = "use 1 to 15 letters, digits and _, starting with a letter and not with b9h or b9fc_";
        if fine { Ok(Self(text.to_owned())) } else { Err(ParseError::new("bridge", text, rule)) }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for BridgeName {
    fn default() -> Self {
        Self("b9_br0".to_owned())
    }
}

/// How a worker's bridge is set up. Workers on one host that do not share a bridge need different names and ranges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSettings {
    /// What containers are connected to that do not say.
    pub default: NetworkDefault,
    /// The bridge.
    pub bridge: BridgeName,
    /// Its IPv4 network; the first address is the gateway's.
    pub ipv4: Ipv4Subnet,
    /// Its IPv6 network; the first address is the gateway's. Without one there is no IPv6.
    pub ipv6: Option<Ipv6Subnet>,
    /// Longest packet; the uplink's where absent.
    pub mtu: Option<u32>,
    /// Whether containers may ask the cloud's metadata service, which gives out credentials.
    pub allow_metadata: bool,
}

impl NetworkSettings {
    /// Shortest and longest prefix of the IPv4 network: room for a container at least, and addresses for the search of a
    /// free one at most.
    pub const IPV4_PREFIXES: std::ops::RangeInclusive<u8> = 8..=29;
    /// The same for IPv6: what follows the prefix numbers the containers.
    pub const IPV6_PREFIXES: std::ops::RangeInclusive<u8> = 48..=96;
    /// What IPv6 needs, and the longest that an interface takes.
    pub const MTUS: std::ops::RangeInclusive<u32> = 1280..=65_535;

    /// The gateway's place in both networks.
    pub const GATEWAY: u32 = 1;

    /// The bridge's own address.
    pub fn gateway4(&self) -> Ipv4Addr {
        self.ipv4.nth(Self::GATEWAY)
    }

    /// The bridge's own address of IPv6.
    pub fn gateway6(&self) -> Option<Ipv6Addr> {
        self.ipv6.map(|subnet| subnet.nth(Self::GATEWAY))
    }
}

impl Default for NetworkSettings {
    fn default() -> Self {
        const IPV4: Ipv4Subnet = match Ipv4Subnet::new(Ipv4Addr::new(192, 168, 0, 0), 20) {
            Some(subnet) => subnet,
            None => panic!("not a network"),
        };
        const IPV6: Ipv6Subnet = match Ipv6Subnet::new(Ipv6Addr::new(0xfd00, 0xabcd, 0, 0, 0, 0, 0, 0), 64) {
            Some(subnet) => subnet,
            None => panic!("not a network"),
        };
        Self {
            default: NetworkDefault::default(),
            bridge: BridgeName::default(),
            ipv4: IPV4,
            ipv6: Some(IPV6),
            mtu: None,
            allow_metadata: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bridges_have_names_of_interfaces() {
        assert_eq!(BridgeName::parse("b9_br0").unwrap(), BridgeName::default());
        for bad in ["", "0b", "a-b", "a b", "sixteen_letters_", "b9h0", "b9fc_1", "a/b", "a\"b"] {
            assert!(BridgeName::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn gateways_are_the_first_addresses() {
        let settings = NetworkSettings::default();
        assert_eq!(settings.gateway4(), Ipv4Addr::new(192, 168, 0, 1));
        assert_eq!(settings.gateway6().unwrap().to_string(), "fd00:abcd::1");
    }
}
