use serde::{Deserialize, Serialize};

use super::Subnet;
use crate::{ParseError, string_newtype};

/// Whom a container may talk to, on top of what nobody may.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkPolicy {
    /// Everybody.
    #[default]
    Open,
    /// These only, and whoever reaches it by a port that it publishes. Other containers and the host only if they are
    /// among them.
    Only(Vec<Allowed>),
    /// Nobody, in neither direction.
    Blocked,
}

/// Somebody whom a container may talk to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Allowed {
    /// Every address of a network.
    Network(Subnet),
    /// The addresses that a name has at the moment.
    Name(HostPattern),
}

/// A host name of two words at least, or `*.` and the end of host names. One word alone is a slip of the pen, or a container's
/// name, which is none of a host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPattern(String);

string_newtype!(HostPattern);

impl HostPattern {
    const RULE: &'static str = "use a host name such as example.com, or *.example.com for all names below it";

    /// Reads a name; letters become small ones.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let text = text.to_ascii_lowercase();
        let name = text.strip_prefix("*.").unwrap_or(&text);
        let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let is_label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(known);
        // A name that ends in a number is an address gone wrong.
        let last = name.rsplit('.').next().unwrap_or_default();
        let is_number = last.bytes().all(|byte| byte.is_ascii_digit());
        if name.len() <= 253 && text.contains('.') && name.split('.').all(is_label) && !is_number {
            Ok(Self(text))
        } else {
            Err(ParseError::new("host name", &text, Self::RULE))
        }
    }

    /// Whether a name, in small letters and without a dot at its end, is meant.
    pub fn matches(&self, name: &str) -> bool {
        match self.0.strip_prefix('*') {
            // The rest begins with its dot.
            Some(end) => name.len() > end.len() && name.ends_with(end),
            None => name == self.0,
        }
    }
}

impl Allowed {
    const RULE: &'static str =
        "use ADDRESS[/PREFIX] with the lowest address of the network, as in 10.0.0.0/8, or a host name";

    /// Reads a network, an address, or a host name.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        Subnet::parse(text)
            .map(Self::Network)
            .or_else(|_| HostPattern::parse(text).map(Self::Name))
            .map_err(|_| ParseError::new("network or host name", text, Self::RULE))
    }
}

impl std::fmt::Display for Allowed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Network(subnet) => subnet.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl std::str::FromStr for Allowed {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Allowed {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        Self::parse(&text)
    }
}

impl From<Allowed> for String {
    fn from(allowed: Allowed) -> Self {
        allowed.to_string()
    }
}

impl NetworkPolicy {
    /// Reads `open`, `blocked`, or networks and host names with commas between them.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        match text {
            "open" => Ok(Self::Open),
            "blocked" => Ok(Self::Blocked),
            text => text.split(',').map(Allowed::parse).collect::<Result<_, _>>().map(Self::Only),
        }
    }

    /// The networks that it names.
    pub fn networks(&self) -> impl Iterator<Item = Subnet> + '_ {
        self.allowed().iter().filter_map(|allowed| match allowed {
            Allowed::Network(subnet) => Some(*subnet),
            Allowed::Name(_) => None,
        })
    }

    /// The host names that it names.
    pub fn names(&self) -> impl Iterator<Item = &HostPattern> + '_ {
        self.allowed().iter().filter_map(|allowed| match allowed {
            Allowed::Network(_) => None,
            Allowed::Name(name) => Some(name),
        })
    }

    fn allowed(&self) -> &[Allowed] {
        match self {
            Self::Open | Self::Blocked => &[],
            Self::Only(allowed) => allowed,
        }
    }
}

impl std::fmt::Display for NetworkPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Open => f.write_str("open"),
            Self::Blocked => f.write_str("blocked"),
            Self::Only(allowed) => {
                let allowed: Vec<_> = allowed.iter().map(ToString::to_string).collect();
                f.write_str(&allowed.join(","))
            }
        }
    }
}

impl std::str::FromStr for NetworkPolicy {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_and_names_are_told_apart() {
        let policy: NetworkPolicy = "10.0.0.0/8,Example.com,*.example.org,fd00::/64,*.test".parse().unwrap();
        assert_eq!(policy.to_string(), "10.0.0.0/8,example.com,*.example.org,fd00::/64,*.test");
        assert_eq!((policy.networks().count(), policy.names().count()), (2, 3));
        let text = serde_json::to_string(&policy).unwrap();
        assert_eq!(serde_json::from_str::<NetworkPolicy>(&text).unwrap(), policy);
        for bad in [
            "",
            ",",
            "10.0.0.1/8",
            "10.0.0.300",
            "a..b",
            "*",
            "*.",
            "a.*",
            "a b",
            "example.com/24",
            ".a",
            "a.",
        ] {
            assert!(bad.parse::<NetworkPolicy>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_pattern_matches_whole_labels() {
        let exact = HostPattern::parse("example.com").unwrap();
        assert!(exact.matches("example.com"));
        assert!(!exact.matches("www.example.com") && !exact.matches("badexample.com"));
        let below = HostPattern::parse("*.example.com").unwrap();
        assert!(below.matches("www.example.com") && below.matches("a.b.example.com"));
        for other in ["example.com", ".example.com", "badexample.com", "example.com.evil.org"] {
            assert!(!below.matches(other), "{other} matches");
        }
    }
}
