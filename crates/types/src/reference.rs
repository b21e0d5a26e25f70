use serde::{Deserialize, Serialize};

use crate::registry::is_host;
use crate::{Digest, ParseError, string_newtype};

/// The name of an image: `[host[:port]/]name[:tag]`, or `[host[:port]/]name@sha256:…` for exactly one content.
///
/// The grammar is that of the distribution project's reference package, and so are the rules by which different
/// spellings are one name: without a host it is `docker.io`, a name of one part there is below `library/`, and without
/// a tag it is `latest`. A value is kept in its shortest spelling, so `docker.io/library/debian` and `debian:latest` are
/// equal. A tag beside a digest says nothing that the digest does not and is dropped.
///
/// Host and name have at most 255 characters, a tag has at most 128.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageReference(String);

string_newtype!(ImageReference);

/// The registry of names that have none.
const DEFAULT_HOST: &str = "docker.io";
/// The same by its older name.
const OLD_DEFAULT_HOST: &str = "index.docker.io";
/// Where names of one part are on the default registry.
const DEFAULT_NAMESPACE: &str = "library/";
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

impl ImageReference {
    const RULE: &'static str =
        "use [host/]name[:tag] or [host/]name@sha256:…, the name in lower case, as in python:3.12";

    /// Checks a reference and brings it into its shortest spelling, `:latest` added where it has neither tag nor digest.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        Self::normalized(text).ok_or_else(|| ParseError::new("image reference", text, Self::RULE))
    }

    fn normalized(text: &str) -> Option<Self> {
        if text.len() > MAX_NAME + MAX_TAG + 80 {
            return None;
        }
        let (text, digest) = match text.split_once('@') {
            Some((text, digest)) => (text, Some(Digest::parse(digest).ok()?)),
            None => (text, None),
        };
        // The last colon starts a tag only when no slash follows it: `host:5000/name` has no tag.
        let (name, tag) = match text.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (text, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) || name.len() > MAX_NAME {
            return None;
        }
        let (host, path) = split_host(name);
        let host = host.map(|host| if host == OLD_DEFAULT_HOST { DEFAULT_HOST } else { host });
        if host.is_some_and(|host| !is_host(host)) || !path.split('/').all(is_path_component) {
            return None;
        }
        let name = match host {
            Some(host) if host != DEFAULT_HOST => format!("{host}/{path}"),
            _ => familiar(path),
        };
        // Such a name could not be told from a digest's hex digits.
        if name.len() == 64 && name.bytes().all(|c| c.is_ascii_hexdigit()) {
            return None;
        }
        Some(Self(match digest {
            Some(digest) => format!("{name}@{digest}"),
            None => format!("{name}:{}", tag.unwrap_or("latest")),
        }))
    }

    /// The reference in its shortest spelling, with its tag or digest.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name in its shortest spelling, without tag and digest.
    pub fn name(&self) -> &str {
        self.name_and_tag().0
    }

    /// Name and tag apart, as tables show them; the tag is empty where there is a digest instead.
    pub fn name_and_tag(&self) -> (&str, &str) {
        match self.0.split_once('@') {
            Some((name, _)) => (name, ""),
            // A parsed reference without a digest always ends in `:tag`.
            None => self.0.rsplit_once(':').unwrap_or((&self.0, "")),
        }
    }

    /// The tag, unless there is a digest instead.
    pub fn tag(&self) -> Option<&str> {
        Some(self.name_and_tag().1).filter(|tag| !tag.is_empty())
    }

    /// The digest, if the reference is for exactly one content.
    pub fn digest(&self) -> Option<Digest> {
        Digest::parse(self.0.split_once('@')?.1).ok()
    }

    /// The registry's host, with its port if it has one; `docker.io` for names without.
    pub fn host(&self) -> &str {
        split_host(self.name()).0.unwrap_or(DEFAULT_HOST)
    }

    /// The name on its registry: `library/debian` for `debian`.
    pub fn repository(&self) -> String {
        match split_host(self.name()) {
            (Some(host), path) if host != DEFAULT_HOST => path.to_owned(),
            (_, path) if path.contains('/') => path.to_owned(),
            (_, path) => format!("{DEFAULT_NAMESPACE}{path}"),
        }
    }

    /// The whole name with nothing left out: `docker.io/library/debian:latest` for `debian`.
    pub fn canonical(&self) -> String {
        let rest = &self.0[self.name().len()..];
        format!("{}/{}{rest}", self.host(), self.repository())
    }

    /// The reference of exactly this content under the same name.
    pub fn with_digest(&self, digest: &Digest) -> Self {
        Self(format!("{}@{digest}", self.name()))
    }
}

/// The first part is a host if it could not be a name, or is `localhost`.
fn split_host(name: &str) -> (Option<&str>, &str) {
    match name.split_once('/') {
        Some((first, rest)) if looks_like_host(first) => (Some(first), rest),
        _ => (None, name),
    }
}

fn looks_like_host(part: &str) -> bool {
    part == "localhost" || part.contains(['.', ':']) || part.bytes().any(|c| c.is_ascii_uppercase())
}

/// A name on the default registry without what goes without saying.
fn familiar(path: &str) -> String {
    match path.strip_prefix(DEFAULT_NAMESPACE) {
        Some(rest) if !rest.contains('/') => rest.to_owned(),
        // Without the host its first part would be taken for one.
        _ if path.split_once('/').is_some_and(|(first, _)| looks_like_host(first)) => {
            format!("{DEFAULT_HOST}/{path}")
        }
        _ => path.to_owned(),
    }
}

/// Letters and digits, with a dot, one or two underscores or any number of dashes between them.
fn is_path_component(part: &str) -> bool {
    let is_plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let edge = |c: Option<u8>| c.is_some_and(is_plain);
    let separators = part.split(|c: char| c.is_ascii() && is_plain(c as u8));
    edge(part.bytes().next())
        && edge(part.bytes().last())
        && separators
            .into_iter()
            .all(|run| matches!(run, "" | "." | "_" | "__") || run.bytes().all(|c| c == b'-'))
}

fn is_tag(tag: &str) -> bool {
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric() || c == b'_')
        && tag.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(text: &str) -> ImageReference {
        ImageReference::parse(text).unwrap()
    }

    #[test]
    fn a_missing_tag_is_latest() {
        let cases = [
            ("debian", "debian:latest"),
            ("python:3.12", "python:3.12"),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
            ("reg.example.org/a_b/c-d:v1", "reg.example.org/a_b/c-d:v1"),
            ("[::1]:5000/a:b", "[::1]:5000/a:b"),
            ("localhost:5000", "localhost:5000"),
        ];
        for (given, kept) in cases {
            assert_eq!(parse(given).as_str(), kept);
        }
    }

    #[test]
    fn spellings_of_one_name_are_one() {
        let spellings = [
            "debian",
            "debian:latest",
            "library/debian",
            "docker.io/debian",
            "docker.io/library/debian:latest",
            "index.docker.io/library/debian",
        ];
        for spelling in spellings {
            assert_eq!(parse(spelling), parse("debian"), "{spelling}");
        }
        assert_eq!(parse("docker.io/grafana/loki").as_str(), "grafana/loki:latest");
        assert_eq!(parse("ghcr.example/library/x").as_str(), "ghcr.example/library/x:latest");
        assert_ne!(parse("localhost/debian"), parse("debian"));
        assert_eq!(parse("docker.io/a.b/c").as_str(), "docker.io/a.b/c:latest");
    }

    #[test]
    fn host_repository_and_tag_are_found() {
        let cases = [
            ("debian", "docker.io", "library/debian", Some("latest")),
            ("a/b:1", "docker.io", "a/b", Some("1")),
            ("localhost/x", "localhost", "x", Some("latest")),
            ("Host/x", "Host", "x", Some("latest")),
            ("127.0.0.1:5000/x/y:t", "127.0.0.1:5000", "x/y", Some("t")),
            ("docker.io/a.b/c", "docker.io", "a.b/c", Some("latest")),
        ];
        for (text, host, repository, tag) in cases {
            let found = parse(text);
            assert_eq!((found.host(), found.repository().as_str(), found.tag()), (host, repository, tag));
            assert_eq!(parse(&found.canonical()), found, "{text}");
        }
        assert_eq!(parse("debian").canonical(), "docker.io/library/debian:latest");
    }

    #[test]
    fn a_digest_replaces_the_tag() {
        let found = parse(&format!("debian:12@{HEX}"));
        assert_eq!(found.as_str(), format!("debian@{HEX}"));
        assert_eq!(found.name_and_tag(), ("debian", ""));
        assert_eq!((found.tag(), found.digest().unwrap().to_string()), (None, HEX.to_owned()));
        assert_eq!(found.repository(), "library/debian");
        assert_eq!(parse("debian:12").with_digest(&Digest::parse(HEX).unwrap()), found);
        for bad in ["a@", "a@sha256:", "@", &format!("a@{}", HEX.to_uppercase()), "a@sha512:00"] {
            assert!(ImageReference::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn what_could_be_a_path_or_a_flag_is_refused() {
        for bad in ["", "-x", "../x", "a//b", "/a", "A", "a:", ":b", "a b", "a:b:c", "a/../b", "a\n", "a/"] {
            assert!(ImageReference::parse(bad).is_err(), "{bad:?} was accepted");
        }
        let more =
            ["a..b", "a._b", "a___b", "-a/b", "host:/a", "host:99999/a", "a.b:port/c", "a@b", &HEX[7..]];
        for bad in more {
            assert!(ImageReference::parse(bad).is_err(), "{bad:?} was accepted");
        }
        for good in ["a--b", "a__b", "a_b", "a.b", "0/1"] {
            assert!(ImageReference::parse(good).is_ok(), "{good:?} was refused");
        }
    }

    #[test]
    fn lengths_are_capped() {
        let name = "a".repeat(255);
        assert!(ImageReference::parse(&name).is_ok());
        assert!(ImageReference::parse(&format!("{name}a")).is_err());
        assert!(ImageReference::parse(&format!("a:{}", "t".repeat(128))).is_ok());
        assert!(ImageReference::parse(&format!("a:{}", "t".repeat(129))).is_err());
    }
}
