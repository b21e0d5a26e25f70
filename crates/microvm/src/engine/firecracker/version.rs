//! Which Firecracker it is.

use std::fmt;

use beta9_runtime::{Error, ErrorKind, Result};

/// A release of Firecracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

impl Version {
    /// Below this, fields that are used here are missing.
    const OLDEST: Self = Self { major: 1, minor: 10, patch: 0 };
    /// From here on a balloon can report pages that the guest frees.
    pub(crate) const FREE_PAGE_REPORTING: Self = Self { major: 1, minor: 14, patch: 0 };
    /// First and last release this worker is tested with.
    const TESTED: [Self; 2] =
        [Self { major: 1, minor: 13, patch: 1 }, Self { major: 1, minor: 16, patch: 1 }];

    pub(crate) const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }

    /// Reads `1.13.1`, with or without `v` before and a suffix behind. Releases that cannot work are refused;
    /// whether one was tested is [`Version::is_known`].
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let unreadable = || Error::new(ErrorKind::Unavailable, format!("firecracker calls itself {text:?}"));
        let numbers = text.trim().trim_start_matches('v');
        let numbers = numbers.split(|c: char| c != '.' && !c.is_ascii_digit()).next().unwrap_or_default();
        let mut parts = numbers.split('.').map(|part| part.parse().map_err(|_| unreadable()));
        let mut next = || parts.next().ok_or_else(unreadable)?;
        let version = Self { major: next()?, minor: next()?, patch: next()? };
        if version < Self::OLDEST || version.major > 1 {
            let [first, last] = Self::TESTED;
            let text = format!("firecracker {version} is not supported; install {first} to {last}");
            return Err(Error::new(ErrorKind::Unavailable, text));
        }
        Ok(version)
    }

    /// Whether this worker was tested with it.
    pub(crate) fn is_known(self) -> bool {
        let [first, last] = Self::TESTED;
        (first..=last).contains(&self)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_judged() {
        for known in ["1.13.1", "v1.14.0", "1.16.1\n", "1.15.2-dirty"] {
            assert!(Version::parse(known).unwrap().is_known(), "{known}");
        }
        for unknown in ["1.10.0", "1.13.0", "1.17.0"] {
            assert!(!Version::parse(unknown).unwrap().is_known(), "{unknown}");
        }
        for bad in ["", "1.13", "x", "0.25.0", "1.9.1", "2.0.0", "1.13.x"] {
            assert!(Version::parse(bad).is_err(), "{bad} was accepted");
        }
    }
}
