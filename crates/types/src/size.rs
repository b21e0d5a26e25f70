use serde::{Deserialize, Serialize};

use crate::ParseError;

const RULE: &str = "use a number with an optional b, k, m or g, as in 512m; at least 6m";

/// A memory limit in bytes, as `docker run --memory` takes it: `64m`, `1g`, `134217728`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct MemoryBytes(u64);

impl MemoryBytes {
    /// Docker's own lower bound (6 MiB): below it a container cannot start.
    const MIN: u64 = 6 << 20;

    /// The limit in bytes.
    pub fn get(self) -> u64 {
        self.0
    }

    /// The limit in MiB, rounded up.
    pub fn mib_ceil(self) -> u64 {
        self.0.div_ceil(1 << 20)
    }
}

impl TryFrom<u64> for MemoryBytes {
    type Error = ParseError;

    fn try_from(bytes: u64) -> Result<Self, ParseError> {
        // The kernel takes signed 64-bit values.
        if (Self::MIN..=i64::MAX as u64).contains(&bytes) {
            Ok(Self(bytes))
        } else {
            Err(ParseError::new("memory limit", &bytes.to_string(), RULE))
        }
    }
}

impl From<MemoryBytes> for u64 {
    fn from(value: MemoryBytes) -> u64 {
        value.0
    }
}

impl std::str::FromStr for MemoryBytes {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let bad = || ParseError::new("memory limit", text, RULE);
        let lower = text.to_ascii_lowercase();
        let lower = lower.strip_suffix("ib").or(lower.strip_suffix('b')).unwrap_or(&lower);
        let (number, shift) = match lower.as_bytes().last() {
            Some(b'k') => (&lower[..lower.len() - 1], 10),
            Some(b'm') => (&lower[..lower.len() - 1], 20),
            Some(b'g') => (&lower[..lower.len() - 1], 30),
            Some(b't') => (&lower[..lower.len() - 1], 40),
            _ => (lower, 0),
        };
        let number: u64 = number.parse().map_err(|_| bad())?;
        let bytes = number.checked_mul(1 << shift).ok_or_else(bad)?;
        Self::try_from(bytes).map_err(|_| bad())
    }
}

/// A VM's memory in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct MemoryMib(u32);

impl MemoryMib {
    /// Below this a stock kernel does not reach its init.
    const MIN: u32 = 96;
    /// 1 TiB: above it a typing error is likelier than a machine.
    const MAX: u32 = 1 << 20;
    /// What a VM gets when nothing is configured.
    pub const DEFAULT: Self = Self(512);

    /// The size in MiB.
    pub fn get(self) -> u32 {
        self.0
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.0) << 20
    }
}

impl TryFrom<u32> for MemoryMib {
    type Error = ParseError;

    fn try_from(mib: u32) -> Result<Self, ParseError> {
        if (Self::MIN..=Self::MAX).contains(&mib) {
            Ok(Self(mib))
        } else {
            Err(ParseError::new("VM memory", &format!("{mib} MiB"), "use 96 to 1048576 MiB"))
        }
    }
}

impl From<MemoryMib> for u32 {
    fn from(value: MemoryMib) -> u32 {
        value.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_docker_reads_them() {
        for (text, bytes) in [("64m", 64 << 20), ("1g", 1 << 30), ("8388608", 8 << 20), ("16MiB", 16 << 20)] {
            assert_eq!(text.parse::<MemoryBytes>().unwrap().get(), bytes);
        }
        for bad in ["", "m", "-1", "1", "5m", "9999999999g", "64x", "6.5m"] {
            assert!(bad.parse::<MemoryBytes>().is_err(), "{bad:?} was accepted");
        }
    }
}
