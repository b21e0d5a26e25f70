//! What a container's network may be asked to be, and what it became.

mod attachment;
mod policy;
mod ports;
mod settings;
mod subnet;

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use attachment::{Attachment, Gateway, MacAddress};
pub use policy::{Allowed, HostPattern, NetworkPolicy};
pub use ports::{ContainerPort, PortChange, PortMapping, PortProtocol, PublishedPort};
pub use settings::{BridgeName, NetworkDefault, NetworkSettings};
pub use subnet::{Ipv4Subnet, Ipv6Subnet, Subnet};

use crate::{ContainerId, ParseError, string_newtype};

/// What a container is connected to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum NetworkMode {
    /// A bridge of the worker's, with an address of its own.
    Bridge,
    /// Nothing but its loopback interface.
    None,
    /// The host's own network.
    Host,
    /// The network of another container, by name or id.
    Container(String),
    /// A network namespace that somebody else made.
    Namespace(PathBuf),
}

impl NetworkMode {
    const RULE: &'static str = "use bridge, none, host, container:NAME or netns:PATH";

    /// Reads what `--network` says.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let bad = || ParseError::new("network", text, Self::RULE);
        match text.split_once(':') {
            None => match text {
                "bridge" | "default" => Ok(Self::Bridge),
                "none" => Ok(Self::None),
                "host" => Ok(Self::Host),
                _ => Err(bad()),
            },
            Some(("container", name)) if ContainerId::parse(name).is_ok() => {
                Ok(Self::Container(name.to_owned()))
            }
            Some(("netns" | "ns", path)) => {
                let path = PathBuf::from(path);
                let plain = !path.components().any(|part| part == std::path::Component::ParentDir);
                let fine = path.is_absolute() && plain && !text.contains('\0') && text.len() < 4096;
                if fine { Ok(Self::Namespace(path)) } else { Err(bad()) }
            }
            Some(_) => Err(bad()),
        }
    }
}

impl std::fmt::Display for NetworkMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bridge => f.write_str("bridge"),
            Self::None => f.write_str("none"),
            Self::Host => f.write_str("host"),
            Self::Container(name) => write!(f, "container:{name}"),
            Self::Namespace(path) => write!(f, "netns:{}", path.display()),
        }
    }
}

impl std::str::FromStr for NetworkMode {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for NetworkMode {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        Self::parse(&text)
    }
}

impl From<NetworkMode> for String {
    fn from(mode: NetworkMode) -> Self {
        mode.to_string()
    }
}

/// How fast a container may send and receive, in bytes per second. Absent is as fast as it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RateLimits {
    /// What it sends.
    pub egress: Option<u64>,
    /// What it receives.
    pub ingress: Option<u64>,
}

/// The network in a request.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkOptions {
    /// What it is connected to; the worker's default where absent.
    pub mode: Option<NetworkMode>,
    /// Its ports that the host serves.
    pub ports: Vec<PortMapping>,
    /// Whom it may talk to.
    pub policy: NetworkPolicy,
    /// How fast.
    pub rates: RateLimits,
    /// Names by which other containers find it, beside its own.
    pub aliases: Vec<NetworkName>,
}

/// The network of a container as it was settled when it was created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkPlan {
    /// What it is connected to.
    pub mode: NetworkMode,
    /// How the bridge is set up, if it is that.
    pub settings: NetworkSettings,
    /// Its names beside `localhost`, for its `/etc/hosts`.
    #[serde(default)]
    pub names: Vec<NetworkName>,
}

impl NetworkPlan {
    /// A container with loopback only.
    pub fn none() -> Self {
        Self { mode: NetworkMode::None, settings: NetworkSettings::default(), names: Vec::new() }
    }
}

impl Default for NetworkPlan {
    fn default() -> Self {
        Self::none()
    }
}

/// A name of a container in the network.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NetworkName(String);

string_newtype!(NetworkName);

impl NetworkName {
    /// Checks a host name.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        let fine = !text.is_empty() && text.len() <= 253 && text.bytes().all(known);
        let rule = "use a host name of letters, digits, - and .";
        if fine { Ok(Self(text.to_owned())) } else { Err(ParseError::new("name in the network", text, rule)) }
    }
}

/// Whether `address` is one that only the machine it is used on has.
pub(crate) fn is_wildcard(address: &Option<IpAddr>) -> bool {
    address.is_none_or(|address| address.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_as_docker_reads_them() {
        for text in ["bridge", "none", "host", "container:web", "netns:/run/netns/x"] {
            assert_eq!(NetworkMode::parse(text).unwrap().to_string(), text);
        }
        for bad in
            ["", "brid", "container:", "container:a b", "netns:", "netns:x", "netns:/a/../b", "x:y", "host:1"]
        {
            assert!(NetworkMode::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
