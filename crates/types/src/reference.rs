use serde::{Deserialize, Serialize};

use crate::{ParseError, string_newtype};

/// The name of an image in the local store, `name[:tag]`, kept with its tag (`latest` where none was given).
///
/// The grammar is that of the distribution project's reference package: an optional registry host with an
/// optional port, path components of lower-case letters, digits and separators, and a tag of up to 128
/// characters. At most 255 characters in all.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageReference(String);

string_newtype!(ImageReference);

impl ImageReference {
    const RULE: &'static str = "use name[:tag], the name in lower case, as in python:3.12";

    /// Checks a reference and adds `:latest` where it has no tag.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let bad = || ParseError::new("image reference", text, Self::RULE);
        // The last colon starts a tag only when no slash follows it: `host:5000/name` has no tag.
        let (name, tag) = match text.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, tag),
            _ => (text, "latest"),
        };
        let (host, path) = match name.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (Some(first), rest),
            _ => (None, name),
        };
        let valid = text.len() <= 255
            && host.is_none_or(is_host)
            && path.split('/').all(is_path_component)
            && is_tag(tag);
        if valid { Ok(Self(format!("{name}:{tag}"))) } else { Err(bad()) }
    }

    /// The reference with its tag.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Name and tag apart, as tables show them.
    pub fn name_and_tag(&self) -> (&str, &str) {
        // A parsed reference always ends in `:tag`.
        self.0.rsplit_once(':').unwrap_or((&self.0, ""))
    }
}

fn is_host(host: &str) -> bool {
    let (name, port) = host.split_once(':').unwrap_or((host, "0"));
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-'))
        && !port.is_empty()
        && port.bytes().all(|c| c.is_ascii_digit())
}

fn is_path_component(part: &str) -> bool {
    let edge = |c: Option<u8>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    edge(part.bytes().next())
        && edge(part.bytes().last())
        && !part.contains("..")
        && part
            .bytes()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'.' | b'_' | b'-'))
}

fn is_tag(tag: &str) -> bool {
    tag.len() <= 128
        && tag.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric() || c == b'_')
        && tag.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tag_is_latest() {
        let cases = [
            ("debian", "debian:latest"),
            ("python:3.12", "python:3.12"),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
            ("reg.example.org/a_b/c-d:v1", "reg.example.org/a_b/c-d:v1"),
        ];
        for (given, kept) in cases {
            assert_eq!(ImageReference::parse(given).unwrap().as_str(), kept);
        }
    }

    #[test]
    fn what_could_be_a_path_or_a_flag_is_refused() {
        for bad in ["", "-x", "../x", "a//b", "/a", "A", "a:", ":b", "a b", "a:b:c", "a/../b", "a\n"] {
            assert!(ImageReference::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
