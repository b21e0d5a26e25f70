use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ParseError;

/// What machine an image is for: `os/architecture[/variant]`, in the words of the OCI image specification.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Platform {
    const RULE: &'static str = "use linux/ARCHITECTURE[/VARIANT], as in linux/amd64 or linux/arm/v7";

    /// This machine's.
    pub fn here() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            other => other,
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    /// Checks a platform that came from outside. Machines' own names for processors are understood, too.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let bad = || ParseError::new("platform", text, Self::RULE);
        let mut parts = text.split('/');
        let (os, architecture, variant) = (parts.next(), parts.next(), parts.next());
        let is_word = |word: &str| {
            (1..=32).contains(&word.len()) && word.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_')
        };
        let words = [os, architecture, variant];
        if parts.next().is_some() || !words.iter().flatten().all(|word| is_word(word)) || os != Some("linux")
        {
            return Err(bad());
        }
        let architecture = match architecture.ok_or_else(bad)? {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Ok(Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        })
    }

    /// Whether an image that says this of itself is meant. A variant that nobody names fits.
    pub fn accepts(&self, os: &str, architecture: &str, variant: Option<&str>) -> bool {
        let variant_fits = match (&self.variant, variant) {
            (Some(wanted), Some(offered)) => wanted == offered,
            // Every arm64 is v8.
            (Some(wanted), None) => self.architecture == "arm64" && wanted == "v8",
            (None, _) => true,
        };
        self.os == os && self.architecture == architecture && variant_fits
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Platform {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        Self::parse(&text)
    }
}

impl From<Platform> for String {
    fn from(platform: Platform) -> Self {
        platform.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_linux_and_words() {
        for (given, kept) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("linux/arm/v7", "linux/arm/v7"),
        ] {
            assert_eq!(Platform::parse(given).unwrap().to_string(), kept);
        }
        for bad in ["", "linux", "linux/", "windows/amd64", "linux/a/b/c", "linux/a b", "/amd64"] {
            assert!(Platform::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_variant_counts_where_it_is_asked_for() {
        let arm = Platform::parse("linux/arm/v7").unwrap();
        assert!(arm.accepts("linux", "arm", Some("v7")));
        assert!(!arm.accepts("linux", "arm", Some("v6")) && !arm.accepts("linux", "arm", None));
        assert!(Platform::parse("linux/arm64").unwrap().accepts("linux", "arm64", Some("v8")));
        assert!(Platform::parse("linux/arm64/v8").unwrap().accepts("linux", "arm64", None));
        assert!(!Platform::here().accepts("windows", "amd64", None));
    }
}
