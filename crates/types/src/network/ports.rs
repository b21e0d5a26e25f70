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

/// A port of a container, whatever it is on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerPort {
    /// Its number.
    pub number: u16,
    /// Of which kind.
    pub protocol: PortProtocol,
}

/// Which ports the host serves from now on, and which not any more.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PortChange {
    /// Those that are not served any more.
    pub remove: Vec<ContainerPort>,
    /// Those that are.
    pub add: Vec<PortMapping>,
}

impl PortChange {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }

    /// What is asked for after the change, by what was asked for before.
    pub fn apply(&self, before: &[PortMapping]) -> Vec<PortMapping> {
        let mut after = Vec::new();
        for mapping in before {
            let removed = |port: &ContainerPort| {
                let step = port.number.checked_sub(mapping.container_port);
                port.protocol == mapping.protocol && step.is_some_and(|step| step < mapping.count)
            };
            if !self.remove.iter().any(removed) {
                after.push(mapping.clone());
                continue;
            }
            // What is left of a range is single ports.
            let singles = (0..mapping.count).map(|step| PortMapping {
                host_port: mapping.host_port.map(|port| port.saturating_add(step)),
                container_port: mapping.container_port.saturating_add(step),
                count: 1,
                ..mapping.clone()
            });
            after.extend(singles.filter(|single| {
                let own = ContainerPort { number: single.container_port, protocol: single.protocol };
                !self.remove.contains(&own)
            }));
        }
        after.extend(self.add.iter().cloned());
        after
    }
}

impl PublishedPort {
    /// The container's port.
    pub fn inner(&self) -> ContainerPort {
        ContainerPort { number: self.container_port, protocol: self.protocol }
    }
}

impl ContainerPort {
    /// Reads `80` or `53/udp`.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let bad = || ParseError::new("port of a container", text, "use a number, as in 80 or 53/udp");
        let (number, protocol) = match text.split_once('/') {
            None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), PortProtocol::Tcp),
            Some((number, "udp")) => (number, PortProtocol::Udp),
            Some(_) => return Err(bad()),
        };
        match range(number) {
            Some((number, 1)) => Ok(Self { number, protocol }),
            _ => Err(bad()),
        }
    }
}

impl std::fmt::Display for ContainerPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.number, self.protocol.as_str())
    }
}

impl std::str::FromStr for ContainerPort {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for ContainerPort {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        Self::parse(&text)
    }
}

impl From<ContainerPort> for String {
    fn from(port: ContainerPort) -> Self {
        port.to_string()
    }
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

    #[test]
    fn a_change_leaves_the_rest_of_a_range() {
        let before: Vec<PortMapping> =
            ["8000-8002:80-82", "53:53/udp", "9000:90"].map(|text| text.parse().unwrap()).to_vec();
        let change = PortChange {
            remove: ["81", "53/udp", "53/tcp", "7"].map(|text| text.parse().unwrap()).to_vec(),
            add: vec!["127.0.0.1::443".parse().unwrap()],
        };
        let after: Vec<String> = change.apply(&before).iter().map(ToString::to_string).collect();
        assert_eq!(after, ["8000:80/tcp", "8002:82/tcp", "9000:90/tcp", "127.0.0.1::443/tcp"]);
        for bad in ["", "80-81", "80/sctp", "/udp", "0", "x", "80/tcp/tcp"] {
            assert!(ContainerPort::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
