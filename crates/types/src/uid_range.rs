use serde::{Deserialize, Serialize};

use crate::{ParseError, string_newtype};

/// User ids from a first to a last, for VMs: each of them is one user and one group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UidRange(String);

string_newtype!(UidRange);

impl UidRange {
    /// 65536 ids that no range of systemd, of containers or of people is known to overlap with.
    pub const DEFAULT: &'static str = "1900000000-1900065535";

    /// What a range looks like.
    pub const RULE: &'static str =
        "use FIRST-LAST, two numbers from 1 to 4294967294, the first not above the last";

    /// Reads `FIRST-LAST`.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let bounds = text.split_once('-').and_then(|(first, last)| Some((number(first)?, number(last)?)));
        match bounds {
            Some((first, last)) if first <= last => Ok(Self(format!("{first}-{last}"))),
            _ => Err(ParseError::new("range of user ids", text, Self::RULE)),
        }
    }

    /// The ids.
    pub fn ids(&self) -> std::ops::RangeInclusive<u32> {
        // Checked by `parse`, the only way to make one.
        let (first, last) = self.0.split_once('-').unwrap_or_default();
        number(first).unwrap_or(1)..=number(last).unwrap_or(0)
    }
}

impl Default for UidRange {
    fn default() -> Self {
        Self(Self::DEFAULT.to_owned())
    }
}

/// Root is nobody's, and the largest number means "unchanged" to the kernel.
fn number(text: &str) -> Option<u32> {
    let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| is_plain && (1..u32::MAX).contains(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_judged() {
        assert_eq!(UidRange::parse("20000-20002").unwrap().ids().collect::<Vec<_>>(), [20000, 20001, 20002]);
        assert_eq!(UidRange::parse("7-7").unwrap().ids().count(), 1);
        assert_eq!(UidRange::parse(UidRange::DEFAULT).unwrap(), UidRange::default());
        for bad in ["", "5", "0-5", "9-8", "1-4294967295", "+1-2", "a-b", "1-2-3", "-1-2"] {
            assert!(UidRange::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
