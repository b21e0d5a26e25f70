use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{ParseError, string_newtype};

/// Where a registry is: a host name or an address, with a port if it is not the usual one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RegistryHost(String);

string_newtype!(RegistryHost);

impl RegistryHost {
    /// Checks a host that came from outside.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let text = if text == "index.docker.io" { "docker.io" } else { text };
        if text.len() <= 255 && is_host(text) {
            return Ok(Self(text.to_owned()));
        }
        Err(ParseError::new("registry", text, "use host[:port], without https:// and without a path"))
    }

    /// Host and port as they are written in a reference.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is this very machine by its name or address, whatever a resolver says.
    pub fn is_loopback(&self) -> bool {
        let host = split_port(&self.0).map_or(self.0.as_str(), |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host.eq_ignore_ascii_case("localhost")
            || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
    }
}

/// How the images of one registry are reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistrySettings {
    /// Asked first, in this order, for what is pulled.
    pub mirrors: Vec<RegistryHost>,
    /// Whether it speaks HTTP without TLS. Where nothing is said, only a registry on loopback does.
    pub plain_http: Option<bool>,
    /// Certificates of authorities to trust beside the system's, in PEM.
    pub ca_file: Option<PathBuf>,
}

/// `host[:port]`; an IPv6 address is in brackets.
pub(crate) fn is_host(text: &str) -> bool {
    let Some((host, port)) = split_port(text) else { return false };
    let is_port = |port: &str| {
        !port.is_empty()
            && port.bytes().all(|c| c.is_ascii_digit())
            && port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    if port.is_some_and(|port| !is_port(port)) {
        return false;
    }
    if let Some(address) = host.strip_prefix('[') {
        return address.strip_suffix(']').is_some_and(|address| address.parse::<Ipv6Addr>().is_ok());
    }
    host.split('.').all(|label| {
        let edge = |c: Option<u8>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        edge(label.bytes().next())
            && edge(label.bytes().last())
            && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
    })
}

/// Host and port apart; `None` for brackets that do not close.
fn split_port(text: &str) -> Option<(&str, Option<&str>)> {
    if text.starts_with('[') {
        let end = text.find(']')? + 1;
        let (host, rest) = text.split_at(end);
        return match rest {
            "" => Some((host, None)),
            rest => Some((host, Some(rest.strip_prefix(':')?))),
        };
    }
    Some(match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_and_addresses_with_ports() {
        for good in ["a", "a.b", "a-b.c:5000", "127.0.0.1", "[::1]", "[::1]:5000", "Host"] {
            assert_eq!(RegistryHost::parse(good).unwrap().as_str(), good);
        }
        let bad = [
            "",
            "a/b",
            "https://a",
            "a:",
            "a:0",
            "a:65536",
            "a:+1",
            "-a",
            "a-",
            "a..b",
            "[::1",
            "::1",
            "a b",
        ];
        for bad in bad {
            assert!(RegistryHost::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn loopback_is_told_without_a_resolver() {
        for near in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.8.9.1", "[::1]:5000", "[::1]"] {
            assert!(RegistryHost::parse(near).unwrap().is_loopback(), "{near}");
        }
        for far in ["localhost.example", "10.0.0.1", "[fe80::1]:5000", "example"] {
            assert!(!RegistryHost::parse(far).unwrap().is_loopback(), "{far}");
        }
    }
}
