//! Where an address is: how far a registry may send us.
//!
//! A registry on the Internet must not make us talk to services on this machine or in this network, which trust who can
//! reach them. What a registry on this machine or in this network is allowed to name is what it could reach as well.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::{Error, ErrorKind};

/// How near an address is, from the farthest to the nearest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reach {
    /// The Internet.
    Public,
    /// A network behind a router (RFC 1918, RFC 4193, RFC 6598).
    Private,
    /// This very machine.
    Loopback,
    /// This very cable, where clouds keep their metadata services; and what is no host's address.
    Local,
}

impl Reach {
    /// Where that address is.
    pub(crate) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::of_v4(address),
            IpAddr::V6(address) => Self::of_v6(address),
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        let [a, b, ..] = address.octets();
        if address.is_loopback() {
            Self::Loopback
        } else if address.is_private() || (a == 100 && (64..128).contains(&b)) {
            Self::Private
        } else if address.is_link_local() || address.is_multicast() || a == 0 || a >= 240 {
            Self::Local
        } else {
            Self::Public
        }
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        // An IPv4 address in other clothes (RFC 4291, RFC 6052).
        if let Some(inner) = address.to_ipv4_mapped() {
            return Self::of_v4(inner);
        }
        let words = address.segments();
        if words[..6] == [0x64, 0xff9b, 0, 0, 0, 0] {
            let [.., a, b, c, d] = address.octets();
            return Self::of_v4(Ipv4Addr::new(a, b, c, d));
        }
        if address.is_loopback() {
            Self::Loopback
        } else if address.is_unique_local() {
            Self::Private
        } else if address.is_unicast_link_local() || address.is_multicast() || address.is_unspecified() {
            Self::Local
        } else {
            Self::Public
        }
    }

    /// Whether a registry that is this near may send us to an address that is that near.
    pub(crate) fn may_send_to(self, other: Self) -> bool {
        match other {
            Self::Local => self == Self::Local,
            other => other <= self,
        }
    }
}

/// The system's resolver, less the addresses that are too near.
#[derive(Debug)]
pub(crate) struct Filtered {
    pub(crate) from: Reach,
}

impl Resolve for Filtered {
    fn resolve(&self, name: Name) -> Resolving {
        let from = self.from;
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            // One wrong address is one too many: the next question might be answered by it alone.
            if found.iter().all(|address| from.may_send_to(Reach::of(address.ip()))) {
                return Ok(Box::new(found.into_iter()) as Addrs);
            }
            Err(Box::new(too_near(name.as_str())) as Box<dyn std::error::Error + Send + Sync>)
        })
    }
}

/// The refusal of a host that is too near.
pub(crate) fn too_near(host: &str) -> Error {
    let message = format!(
        "the registry points to {host}, which is an address of this machine or of a private network; this is not followed"
    );
    Error::new(ErrorKind::Protocol, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(text: &str) -> Reach {
        Reach::of(text.parse().unwrap())
    }

    #[test]
    fn addresses_are_where_they_are() {
        for public in ["1.1.1.1", "203.0.113.5", "2001:db8::1", "64:ff9b::101:101"] {
            assert_eq!(reach(public), Reach::Public, "{public}");
        }
        for private in ["10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fd00::1", "::ffff:10.0.0.1"] {
            assert_eq!(reach(private), Reach::Private, "{private}");
        }
        for loopback in ["127.0.0.1", "127.255.0.1", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"] {
            assert_eq!(reach(loopback), Reach::Loopback, "{loopback}");
        }
        for local in ["169.254.169.254", "fe80::1", "0.0.0.0", "::", "224.0.0.1", "255.255.255.255"] {
            assert_eq!(reach(local), Reach::Local, "{local}");
        }
    }

    #[test]
    fn nobody_sends_us_nearer_than_themselves() {
        use Reach::{Local, Loopback, Private, Public};
        assert!(Public.may_send_to(Public) && !Public.may_send_to(Private) && !Public.may_send_to(Loopback));
        assert!(
            Private.may_send_to(Private) && Private.may_send_to(Public) && !Private.may_send_to(Loopback)
        );
        assert!(Loopback.may_send_to(Loopback) && Loopback.may_send_to(Private));
        assert!(!Loopback.may_send_to(Local) && !Public.may_send_to(Local) && Local.may_send_to(Local));
    }
}
