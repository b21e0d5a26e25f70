use std::fmt;
use std::str::FromStr;

use crate::ParseError;

/// When an image is pulled before it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PullPolicy {
    /// Every time, so that a tag that was moved is noticed.
    Always,
    /// When the image is not here.
    #[default]
    Missing,
    /// Not at all.
    Never,
}

impl PullPolicy {
    /// Every policy.
    pub const ALL: [Self; 3] = [Self::Always, Self::Missing, Self::Never];

    /// The policy as a word: `always`, `missing`, `never`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Missing => "missing",
            Self::Never => "never",
        }
    }
}

impl fmt::Display for PullPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for PullPolicy {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let found = Self::ALL.into_iter().find(|policy| policy.as_str() == text);
        found.ok_or_else(|| ParseError::new("pull policy", text, "use always, missing or never"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_policies() {
        for policy in PullPolicy::ALL {
            assert_eq!(policy.as_str().parse(), Ok(policy));
        }
        assert!("sometimes".parse::<PullPolicy>().is_err());
    }
}
