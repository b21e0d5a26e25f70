use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::ParseError;

/// A network by its lowest address and the length of its prefix, as in `10.0.0.0/8` or `fd00::/64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Subnet {
    /// Of IPv4.
    V4(Ipv4Subnet),
    /// Of IPv6.
    V6(Ipv6Subnet),
}

/// A network of IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv4Subnet {
    base: Ipv4Addr,
    prefix: u8,
}

/// A network of IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv6Subnet {
    base: Ipv6Addr,
    prefix: u8,
}

const RULE: &str = "use ADDRESS/PREFIX with the lowest address of the network, as in 10.0.0.0/8";

/// Address and prefix of a text; an address alone is a network of one.
fn parts(text: &str) -> Option<(IpAddr, u8)> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) if prefix.bytes().all(|byte| byte.is_ascii_digit()) => {
            (address.parse().ok()?, prefix.parse().ok()?)
        }
        Some(_) => return None,
        None => {
            let address: IpAddr = text.parse().ok()?;
            (address, if address.is_ipv4() { 32 } else { 128 })
        }
    };
    Some((address, prefix))
}

impl Subnet {
    /// Reads a network, or an address as a network of one.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let bad = || ParseError::new("network", text, RULE);
        match parts(text).ok_or_else(bad)? {
            (IpAddr::V4(base), prefix) => Ipv4Subnet::new(base, prefix).map(Self::V4).ok_or_else(bad),
            (IpAddr::V6(base), prefix) => Ipv6Subnet::new(base, prefix).map(Self::V6).ok_or_else(bad),
        }
    }

    /// Its lowest address.
    pub fn base(self) -> IpAddr {
        match self {
            Self::V4(subnet) => subnet.base.into(),
            Self::V6(subnet) => subnet.base.into(),
        }
    }

    /// Bits of its prefix.
    pub fn prefix(self) -> u8 {
        match self {
            Self::V4(subnet) => subnet.prefix,
            Self::V6(subnet) => subnet.prefix,
        }
    }

    /// Whether an address belongs to it.
    pub fn contains(self, address: IpAddr) -> bool {
        match (self, address) {
            (Self::V4(subnet), IpAddr::V4(address)) => subnet.contains(address),
            (Self::V6(subnet), IpAddr::V6(address)) => subnet.contains(address),
            _ => false,
        }
    }
}

impl Ipv4Subnet {
    /// `None` where the prefix is too long or the address is not the lowest.
    pub const fn new(base: Ipv4Addr, prefix: u8) -> Option<Self> {
        if prefix > 32 {
            return None;
        }
        let hosts = if prefix == 0 { u32::MAX } else { ((1u64 << (32 - prefix)) - 1) as u32 };
        if base.to_bits() & hosts == 0 { Some(Self { base, prefix }) } else { None }
    }

    fn parse(text: &str) -> Result<Self, ParseError> {
        match Subnet::parse(text)? {
            Subnet::V4(subnet) => Ok(subnet),
            Subnet::V6(_) => Err(ParseError::new("IPv4 network", text, RULE)),
        }
    }

    /// Its lowest address.
    pub fn base(self) -> Ipv4Addr {
        self.base
    }

    /// Bits of its prefix.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// How many addresses it has, its lowest and its highest among them.
    pub fn size(self) -> u64 {
        1 << (32 - self.prefix)
    }

    /// The address so far from the lowest.
    pub fn nth(self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base.to_bits().wrapping_add(offset))
    }

    /// Whether an address belongs to it.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u64::from(address.to_bits().wrapping_sub(self.base.to_bits())) < self.size()
    }

    /// Whether the two have an address in common.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.base) || other.contains(self.base)
    }
}

impl Ipv6Subnet {
    /// `None` where the prefix is too long or the address is not the lowest.
    pub const fn new(base: Ipv6Addr, prefix: u8) -> Option<Self> {
        if prefix > 128 {
            return None;
        }
        let hosts = if prefix == 0 {
            u128::MAX
        } else if prefix == 128 {
            0
        } else {
            (1u128 << (128 - prefix)) - 1
        };
        if base.to_bits() & hosts == 0 { Some(Self { base, prefix }) } else { None }
    }

    fn parse(text: &str) -> Result<Self, ParseError> {
        match Subnet::parse(text)? {
            Subnet::V6(subnet) => Ok(subnet),
            Subnet::V4(_) => Err(ParseError::new("IPv6 network", text, RULE)),
        }
    }

    /// Its lowest address.
    pub fn base(self) -> Ipv6Addr {
        self.base
    }

    /// Bits of its prefix.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The address so far from the lowest.
    pub fn nth(self, offset: u32) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.base.to_bits().wrapping_add(offset.into()))
    }

    /// Whether an address belongs to it.
    pub fn contains(self, address: Ipv6Addr) -> bool {
        let differing = address.to_bits() ^ self.base.to_bits();
        differing.leading_zeros() >= u32::from(self.prefix)
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.base(), self.prefix())
    }
}

/// The text form of the types, each by its own parser.
macro_rules! text_form {
    ($($name:ident),*) => {$(
        impl std::str::FromStr for $name {
            type Err = ParseError;

            fn from_str(text: &str) -> Result<Self, ParseError> {
                Self::parse(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseError;

            fn try_from(text: String) -> Result<Self, ParseError> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(subnet: $name) -> Self {
                subnet.to_string()
            }
        }
    )*};
}
text_form!(Subnet, Ipv4Subnet, Ipv6Subnet);

impl std::fmt::Display for Ipv4Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl std::fmt::Display for Ipv6Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_start_at_their_lowest_address() {
        for text in
            ["10.0.0.0/8", "192.168.0.0/20", "0.0.0.0/0", "1.2.3.4/32", "fd00:abcd::/64", "::/0", "::1/128"]
        {
            assert_eq!(text.parse::<Subnet>().unwrap().to_string(), text);
        }
        assert_eq!("1.2.3.4".parse::<Subnet>().unwrap().to_string(), "1.2.3.4/32");
        for bad in
            ["", "10.0.0.1/8", "10.0.0.0/33", "fd00::1/64", "fd00::/129", "10.0.0.0/", "10.0.0.0/+8", "x/8"]
        {
            assert!(bad.parse::<Subnet>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn addresses_are_counted_from_the_lowest() {
        let subnet: Ipv4Subnet = "192.168.0.0/20".parse().unwrap();
        assert_eq!((subnet.size(), subnet.nth(257)), (4096, "192.168.1.1".parse().unwrap()));
        assert!(subnet.contains("192.168.15.255".parse().unwrap()));
        assert!(!subnet.contains("192.168.16.0".parse().unwrap()));
        assert!(
            subnet.overlaps("192.168.4.0/24".parse().unwrap())
                && subnet.overlaps("0.0.0.0/0".parse().unwrap())
        );
        assert!(!subnet.overlaps("192.168.16.0/24".parse().unwrap()));
        let six: Ipv6Subnet = "fd00:abcd::/64".parse().unwrap();
        assert_eq!(six.nth(257), "fd00:abcd::101".parse::<Ipv6Addr>().unwrap());
        assert!(six.contains("fd00:abcd::ffff".parse().unwrap()));
        assert!(!six.contains("fd00:abcd:0:1::".parse().unwrap()));
        let all: Subnet = "::/0".parse().unwrap();
        assert!(all.contains("::1".parse().unwrap()) && !all.contains("127.0.0.1".parse().unwrap()));
    }
}
