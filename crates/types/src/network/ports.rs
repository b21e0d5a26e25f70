use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::is_wildcard;
use crate::ParseError;

/// What a port is one of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl PortProtocol {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// `[IP:][HOST[-HOST]:]CONTAINER[-CONTAINER][/tcp|udp]`: ports of a container that the host serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortMapping {
    /// The host's address; every one where absent.
    pub host_ip: Option<IpAddr>,
    /// The first of the host's ports; any that is free where absent.
    pub host_port: Option<u16>,
    /// The first of the container's ports.
    pub container_port: u16,
    /// How many of each, in order.
    pub count: u16,
    /// Of which kind.
    pub protocol: PortProtocol,
}

/// One port of a container that the host serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// The host's address; every one of its family where it is unspecified.
    pub host_ip: IpAddr,
    /// The host's port.
    pub host_port: u16,
    /// The container's port.
    pub container_port: u16,
    /// Of which kind.
    pub protocol: PortProtocol,
}

impl PortMapping {
    const RULE: &'static str =
        "use [IP:][HOST:]CONTAINER[/udp], with ranges such as 8000-8010 of the same length on both sides";

    /// Reads what `-p` says.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        Self::read(text).ok_or_else(|| ParseError::new("port", text, Self::RULE))
    }

    fn read(text: &str) -> Option<Self> {
        let (ports, protocol) = match text.rsplit_once('/') {
            None => (text, PortProtocol::Tcp),
            Some((ports, "tcp")) => (ports, PortProtocol::Tcp),
            Some((ports, "udp")) => (ports, PortProtocol::Udp),
            Some(_) => return None,
        };
        let (rest, container) = match ports.rsplit_once(':') {
            Some((rest, container)) => (Some(rest), container),
            None => (None, ports),
        };
        let (host_ip, host) = match rest {
            None => (None, ""),
            Some(rest) => match rest.rsplit_once(':') {
                Some((ip, host)) => {
                    let bare = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip);
                    (Some(bare.parse::<IpAddr>().ok()?), host)
                }
                None => (None, rest),
            },
        };
        let (container_port, count) = range(container)?;
        let host_port = match host {
            "" | "0" => None,
            host => {
                let (first, hosts) = range(host)?;
                if hosts != count {
                    return None;
                }
                Some(first)
            }
        };
        Some(Self { host_ip, host_port, container_port, count, protocol })
    }

    /// Whether it is for every address of the host.
    pub fn is_everywhere(&self) -> bool {
        is_wildcard(&self.host_ip)
    }
}

/// The first port of a range and how many there are.
fn range(text: &str) -> Option<(u16, u16)> {
    let port = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u16>().ok().filter(|port| digits && *port > 0)
    };
    match text.split_once('-') {
        None => Some((port(text)?, 1)),
        Some((first, last)) => {
            let (first, last) = (port(first)?, port(last)?);
            (first <= last).then(|| (first, last - first + 1)).filter(|(_, count)| *count > 0)
        }
    }
}

impl std::fmt::Display for PortMapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host_ip {
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:")?,
            Some(IpAddr::V4(ip)) => write!(f, "{ip}:")?,
            None => {}
        }
        let range = |f: &mut std::fmt::Formatter<'_>, first: u16| match self.count {
            1 => write!(f, "{first}"),
            count => write!(f, "{first}-{}", first + (count - 1)),
        };
        match (self.host_port, self.host_ip) {
            (Some(port), _) => {
                range(f, port)?;
                f.write_str(":")?;
            }
            (None, Some(_)) => f.write_str(":")?,
            (None, None) => {}
        }
        range(f, self.container_port)?;
        write!(f, "/{}", self.protocol.as_str())
    }
}

impl std::str::FromStr for PortMapping {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for PortMapping {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        Self::parse(&text)
    }
}

impl From<PortMapping> for String {
    fn from(mapping: PortMapping) -> Self {
        mapping.to_string()
    }
}

impl std::fmt::Display for PublishedPort {
    /// docker's form: `0.0.0.0:8080->80/tcp`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let host = std::net::SocketAddr::new(self.host_ip, self.host_port);
        write!(f, "{host}->{}/{}", self.container_port, self.protocol.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_as_docker_reads_them() {
        for (text, shown) in [
            ("80", "80/tcp"),
            ("8080:80", "8080:80/tcp"),
            ("8080:80/udp", "8080:80/udp"),
            ("127.0.0.1:8080:80", "127.0.0.1:8080:80/tcp"),
            ("127.0.0.1::80", "127.0.0.1::80/tcp"),
            ("[::1]:8080:80", "[::1]:8080:80/tcp"),
            ("8000-8002:80-82", "8000-8002:80-82/tcp"),
            (":80", "80/tcp"),
            ("0:80", "80/tcp"),
        ] {
            let mapping = PortMapping::parse(text).unwrap();
            assert_eq!(mapping.to_string(), shown);
            assert_eq!(PortMapping::parse(shown).unwrap(), mapping);
        }
        let bad = [
            "",
            ":",
            "x",
            "80:",
            "0",
            "65536",
            "1:2:3:4",
            "8000-8002:80",
            "82-80",
            "80/sctp",
            "localhost:1:2",
            "+80",
            "1.2.3.4:80:x",
        ];
        for bad in bad {
            assert!(PortMapping::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
