use serde::{Deserialize, Serialize};

use crate::{MemoryBytes, ParseError, string_newtype};

/// `NAME=SOFT[:HARD]`: one `setrlimit(2)`, as `docker run --ulimit` takes it. -1 is unlimited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ulimit(String);

string_newtype!(Ulimit);

impl Ulimit {
    const NAMES: [&'static str; 15] = [
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ];

    /// Checks name and numbers.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let rule = "use NAME=SOFT[:HARD] with a name such as nofile, nproc or core, and SOFT at most HARD";
        match Self::split(text) {
            Some((name, soft, hard)) if Self::NAMES.contains(&name) && soft <= hard => {
                Ok(Self(text.to_owned()))
            }
            _ => Err(ParseError::new("ulimit", text, rule)),
        }
    }

    fn split(text: &str) -> Option<(&str, u64, u64)> {
        let number = |text: &str| if text == "-1" { Some(u64::MAX) } else { text.parse().ok() };
        let (name, limits) = text.split_once('=')?;
        let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
        Some((name, number(soft)?, number(hard)?))
    }

    /// Name, soft and hard limit; `u64::MAX` is unlimited.
    pub fn parts(&self) -> (&str, u64, u64) {
        // It was checked when it was made.
        Self::split(&self.0).unwrap_or_default()
    }
}

/// A list of numbers and ranges, `0-2,5`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CpuSet(String);

string_newtype!(CpuSet);

impl CpuSet {
    /// Checks the shape; whether the host has them is known only there.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let number = |text: &str| text.parse::<u16>().ok().filter(|number| *number < 8192);
        let fine = text.split(',').all(|part| match part.split_once('-') {
            Some((first, last)) => number(first).zip(number(last)).is_some_and(|(first, last)| first <= last),
            None => number(part).is_some(),
        });
        if fine {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseError::new("cpu set", text, "use a list such as 0-2,5"))
        }
    }

    /// Every number in it.
    pub fn numbers(&self) -> impl Iterator<Item = u16> {
        self.0.split(',').flat_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            first.parse().unwrap_or(1)..=last.parse().unwrap_or(0)
        })
    }
}

/// Memory and swap together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemorySwap {
    /// As much swap as there is.
    Unlimited,
    /// Bytes of both.
    Limited(MemoryBytes),
}

impl std::str::FromStr for MemorySwap {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text == "-1" {
            return Ok(Self::Unlimited);
        }
        let rule = "use a size such as 1g, for memory and swap together, or -1 for unlimited swap";
        text.parse().map(Self::Limited).map_err(|_| ParseError::new("memory swap", text, rule))
    }
}

/// What a throttle limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThrottleKind {
    /// Bytes read per second.
    ReadBytes,
    /// Bytes written per second.
    WriteBytes,
    /// Reads per second.
    ReadOperations,
    /// Writes per second.
    WriteOperations,
}

/// What a container may do on its own disks in a second, whichever they are. What is absent is as the pool says, and 0 is
/// no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskRate {
    /// Bytes read and written.
    pub bytes: Option<u64>,
    /// Reads and writes.
    pub operations: Option<u64>,
}

impl DiskRate {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// This, and what it does not say as `other` has it.
    pub fn or(self, other: Self) -> Self {
        Self { bytes: self.bytes.or(other.bytes), operations: self.operations.or(other.operations) }
    }
}

/// A limit on one disk of the host, `/dev/NAME:RATE`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Throttle {
    /// What is limited.
    pub kind: ThrottleKind,
    /// The disk's node on the host.
    pub device: String,
    /// Per second.
    pub rate: u64,
}

impl Throttle {
    /// Reads `/dev/NAME:RATE`; a rate of bytes may end in k, m or g.
    pub fn parse(kind: ThrottleKind, text: &str) -> Result<Self, ParseError> {
        let is_bytes = matches!(kind, ThrottleKind::ReadBytes | ThrottleKind::WriteBytes);
        let rule = if is_bytes { "use /dev/NAME:RATE as in /dev/sda:10m" } else { "use /dev/NAME:NUMBER" };
        let bad = || ParseError::new("disk limit", text, rule);
        let (device, rate) = text.rsplit_once(':').ok_or_else(bad)?;
        let lower = rate.to_ascii_lowercase();
        let lower = if is_bytes { lower.strip_suffix('b').unwrap_or(&lower) } else { &lower };
        let (number, shift) = match lower.as_bytes().last() {
            Some(b'k') if is_bytes => (&lower[..lower.len() - 1], 10),
            Some(b'm') if is_bytes => (&lower[..lower.len() - 1], 20),
            Some(b'g') if is_bytes => (&lower[..lower.len() - 1], 30),
            _ => (lower, 0),
        };
        let rate = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
        match rate {
            Some(rate) if rate > 0 && device.starts_with('/') && !device.contains('\0') => {
                Ok(Self { kind, device: device.to_owned(), rate })
            }
            _ => Err(bad()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ulimits_have_a_known_name_and_ordered_limits() {
        assert_eq!(Ulimit::parse("nofile=1024:2048").unwrap().parts(), ("nofile", 1024, 2048));
        assert_eq!(Ulimit::parse("core=-1").unwrap().parts(), ("core", u64::MAX, u64::MAX));
        for bad in ["", "nofile", "files=1", "nofile=x", "nofile=2:1", "nofile=-1:5", "nofile=1:2:3"] {
            assert!(Ulimit::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn cpu_sets_are_lists_of_ranges() {
        assert_eq!(CpuSet::parse("0-2,5").unwrap().numbers().collect::<Vec<_>>(), [0, 1, 2, 5]);
        for bad in ["", "a", "2-1", "1,", "1--2", "-1", "99999"] {
            assert!(CpuSet::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_rate_is_filled_in_where_it_says_nothing() {
        let pool = DiskRate { bytes: Some(7), operations: Some(9) };
        let asked = DiskRate { bytes: Some(0), operations: None };
        assert_eq!(asked.or(pool), DiskRate { bytes: Some(0), operations: Some(9) });
        assert!(DiskRate::default().is_empty() && !asked.is_empty());
    }

    #[test]
    fn throttles_name_a_disk_and_a_rate() {
        let read = |text: &str| Throttle::parse(ThrottleKind::ReadBytes, text);
        assert_eq!(read("/dev/sda:10mb").unwrap().rate, 10 << 20);
        assert_eq!(read("/dev/a:b:7").unwrap().device, "/dev/a:b");
        for bad in ["", "/dev/sda", "sda:1", "/dev/sda:0", "/dev/sda:x"] {
            assert!(read(bad).is_err(), "{bad:?} was accepted");
        }
        assert!(Throttle::parse(ThrottleKind::ReadOperations, "/dev/sda:10m").is_err());
        assert!("-2".parse::<MemorySwap>().is_err() && "-1".parse::<MemorySwap>().is_ok());
    }
}
