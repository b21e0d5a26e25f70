use serde::{Deserialize, Serialize};

use crate::{ParseError, string_newtype};

/// `NAME:ADDRESS`: one line of `/etc/hosts`, as `docker run --add-host` takes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostEntry(String);

string_newtype!(HostEntry);

impl HostEntry {
    /// Checks name and address.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let fine = Self::split(text).is_some_and(|(name, address)| {
            let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
            !name.is_empty()
                && name.len() <= 253
                && name.bytes().all(known)
                && address.parse::<std::net::IpAddr>().is_ok()
        });
        let rule = "use NAME:ADDRESS with an IPv4 or IPv6 address";
        if fine { Ok(Self(text.to_owned())) } else { Err(ParseError::new("host", text, rule)) }
    }

    fn split(text: &str) -> Option<(&str, &str)> {
        let (name, address) = text.split_once([':', '='])?;
        Some((name, address.trim_start_matches('[').trim_end_matches(']')))
    }

    /// Name and address.
    pub fn parts(&self) -> (&str, &str) {
        // It was checked when it was made.
        Self::split(&self.0).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_a_name_and_an_address() {
        assert_eq!(HostEntry::parse("db:10.0.0.1").unwrap().parts(), ("db", "10.0.0.1"));
        assert_eq!(HostEntry::parse("six:[::1]").unwrap().parts(), ("six", "::1"));
        assert_eq!(HostEntry::parse("six:fe80::2").unwrap().parts(), ("six", "fe80::2"));
        for bad in ["", "db", ":10.0.0.1", "db:", "db:x", "a b:10.0.0.1", "a\n:1.1.1.1"] {
            assert!(HostEntry::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
