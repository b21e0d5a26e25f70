use serde::{Deserialize, Serialize};

use crate::{ParseError, string_newtype};

/// The name of a worker pool: at most 63 lower-case letters, digits, `-` and `_`, starting with a letter or a digit.
///
/// It is a metric label, a log field and part of Kubernetes object names, so it needs no quoting in any of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PoolName(String);

string_newtype!(PoolName);

impl PoolName {
    const MAX: usize = 63;

    /// Checks a name from a file, a flag or a request.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let bytes = text.as_bytes();
        let valid = bytes.len() <= Self::MAX
            && bytes.first().is_some_and(|&c| plain(c))
            && bytes.iter().all(|&c| plain(c) || c == b'-' || c == b'_');
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            let rule = "use 1 to 63 of a-z, 0-9, - and _, starting with a letter or a digit";
            Err(ParseError::new("pool name", text, rule))
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for PoolName {
    /// The pool that exists when nothing is configured.
    fn default() -> Self {
        Self("default".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_need_quoting_somewhere_are_refused() {
        for good in ["default", "0", "vm-pool_2", &"a".repeat(63)] {
            assert_eq!(PoolName::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "-a", "_a", "A", "a.b", "a/b", "a b", "ä", "a\n", &"a".repeat(64)] {
            assert!(PoolName::parse(bad).is_err(), "{bad:?} was accepted");
        }
        assert!(PoolName::parse(PoolName::default().as_str()).is_ok());
    }
}
