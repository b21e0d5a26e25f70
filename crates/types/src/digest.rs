use serde::{Deserialize, Serialize};

use crate::{ParseError, string_newtype};

/// A content digest, `sha256:` and 64 lower-case hex digits (OCI image spec, descriptor.md, "Digests").
///
/// Other algorithms are refused: a digest that we cannot verify is worth nothing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

string_newtype!(Digest);

impl Digest {
    const PREFIX: &'static str = "sha256:";

    /// Checks a digest that came from outside.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let valid = text.strip_prefix(Self::PREFIX).is_some_and(|hex| {
            hex.len() == 64 && hex.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
        });
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseError::new("digest", text, "use sha256: followed by 64 lower-case hex digits"))
        }
    }

    /// The digest of a finished SHA-256 computation.
    pub fn from_sha256(bytes: [u8; 32]) -> Self {
        let mut text = String::with_capacity(Self::PREFIX.len() + 64);
        text.push_str(Self::PREFIX);
        for byte in bytes {
            text.push_str(&format!("{byte:02x}"));
        }
        Self(text)
    }

    /// The 64 hex digits, safe as a file name.
    pub fn hex(&self) -> &str {
        &self.0[Self::PREFIX.len()..]
    }

    /// The first 12 hex digits: what tables show.
    pub fn short(&self) -> &str {
        &self.hex()[..12]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_lower_case_sha256_passes() {
        let good = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(Digest::parse(&good).unwrap().hex(), "0a".repeat(32));
        for bad in ["", "sha256:", "sha512:00", &good.to_uppercase(), &good[1..], &format!("{good}0")] {
            assert!(Digest::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn bytes_become_hex() {
        assert_eq!(Digest::from_sha256([0xff; 32]).hex(), "f".repeat(64));
    }
}
