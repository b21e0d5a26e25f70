use serde::{Deserialize, Serialize};

use crate::ParseError;

/// How much of a container's output is kept: so many files of at most so many bytes, the oldest thrown away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLimits {
    /// Bytes of one file. A file is a little larger where one piece of output crosses the limit.
    pub max_size: u64,
    /// Files, the one that is being written included.
    pub max_files: u32,
}

impl LogLimits {
    /// Smaller files would be rotated at every piece of output.
    pub const MIN_SIZE: u64 = 64 << 10;
    /// Larger files are a typing error.
    pub const MAX_SIZE: u64 = 1 << 40;
    /// More files are slower to look through than larger ones.
    pub const MAX_FILES: u32 = 1000;

    /// Reads a size: a number with an optional k, m, g or t.
    pub fn parse_size(text: &str) -> Result<u64, ParseError> {
        let bad = || ParseError::new("log size", text, "use 64k to 1t, as in 10m");
        let lower = text.to_ascii_lowercase();
        let lower = lower.strip_suffix("ib").or(lower.strip_suffix('b')).unwrap_or(&lower);
        let split = lower.find(|c: char| !c.is_ascii_digit()).unwrap_or(lower.len());
        let (number, unit) = lower.split_at(split);
        let shift = match unit {
            "" => 0,
            "k" => 10,
            "m" => 20,
            "g" => 30,
            "t" => 40,
            _ => return Err(bad()),
        };
        let bytes: u64 =
            number.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift)).ok_or_else(bad)?;
        if (Self::MIN_SIZE..=Self::MAX_SIZE).contains(&bytes) { Ok(bytes) } else { Err(bad()) }
    }

    /// Checks both limits; 0 is the default's.
    pub fn new(max_size: u64, max_files: u32) -> Result<Self, ParseError> {
        let default = Self::default();
        let max_size = if max_size == 0 { default.max_size } else { max_size };
        let max_files = if max_files == 0 { default.max_files } else { max_files };
        if !(Self::MIN_SIZE..=Self::MAX_SIZE).contains(&max_size) {
            return Err(ParseError::new("log size", &max_size.to_string(), "use 64k to 1t bytes"));
        }
        if max_files > Self::MAX_FILES {
            return Err(ParseError::new("number of log files", &max_files.to_string(), "use 1 to 1000"));
        }
        Ok(Self { max_size, max_files })
    }
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { max_size: 10 << 20, max_files: 3 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_the_default_and_the_rest_has_bounds() {
        assert_eq!(LogLimits::new(0, 0).unwrap(), LogLimits::default());
        assert_eq!(LogLimits::new(64 << 10, 1).unwrap().max_files, 1);
        assert!(LogLimits::new(1, 1).is_err());
        assert!(LogLimits::new(1 << 41, 1).is_err());
        assert!(LogLimits::new(0, 1001).is_err());
        assert_eq!(LogLimits::parse_size("10m").unwrap(), 10 << 20);
        assert_eq!(LogLimits::parse_size("65536").unwrap(), 64 << 10);
        for bad in ["", "m", "1k", "2t", "10x", "-1", "99999999999999999999"] {
            assert!(LogLimits::parse_size(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
