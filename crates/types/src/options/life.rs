use serde::{Deserialize, Serialize};

use crate::ParseError;

/// What happens when a container ends, as `docker run --restart` takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RestartPolicy {
    /// It stays ended.
    #[default]
    No,
    /// It is started again when it failed, so many times; 0 is without end.
    OnFailure(u32),
    /// It is started again until somebody stops it, and when a worker begins to serve.
    Always,
    /// The same, except that one which somebody stopped stays ended.
    UnlessStopped,
}

impl RestartPolicy {
    /// Whether a container that ended with `code` after `restarts` restarts is started again.
    pub fn restarts(self, code: u8, restarts: u32) -> bool {
        match self {
            Self::No => false,
            Self::OnFailure(most) => code != 0 && (most == 0 || restarts < most),
            Self::Always | Self::UnlessStopped => true,
        }
    }
}

impl std::str::FromStr for RestartPolicy {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let bad = || {
            ParseError::new("restart policy", text, "use no, on-failure[:TIMES], always or unless-stopped")
        };
        match text.split_once(':') {
            None => match text {
                "" | "no" => Ok(Self::No),
                "on-failure" => Ok(Self::OnFailure(0)),
                "always" => Ok(Self::Always),
                "unless-stopped" => Ok(Self::UnlessStopped),
                _ => Err(bad()),
            },
            Some(("on-failure", times)) => times.parse().map(Self::OnFailure).map_err(|_| bad()),
            Some(_) => Err(bad()),
        }
    }
}

impl std::fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::No => f.write_str("no"),
            Self::OnFailure(0) => f.write_str("on-failure"),
            Self::OnFailure(times) => write!(f, "on-failure:{times}"),
            Self::Always => f.write_str("always"),
            Self::UnlessStopped => f.write_str("unless-stopped"),
        }
    }
}

impl TryFrom<String> for RestartPolicy {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl From<RestartPolicy> for String {
    fn from(policy: RestartPolicy) -> String {
        policy.to_string()
    }
}

/// A signal by the kernel's number: `KILL`, `SIGKILL`, `sigkill`, `9` and `RTMIN+3` are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "i32", into = "i32")]
pub struct SignalNumber(i32);

impl SignalNumber {
    /// SIGKILL.
    pub const KILL: Self = Self(9);
    /// SIGTERM.
    pub const TERM: Self = Self(15);

    const NAMES: [&'static str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
        "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
        "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];

    /// The number.
    pub fn get(self) -> i32 {
        self.0
    }
}

impl std::str::FromStr for SignalNumber {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        // The C library keeps the first two real-time signals to itself.
        const RTMIN: i32 = 34;
        const RTMAX: i32 = 64;
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let offset = |rest: &str| if rest.is_empty() { Some(0) } else { rest[1..].parse::<i32>().ok() };
        let number = if let Ok(number) = name.parse::<i32>() {
            Some(number)
        } else if let Some(rest) =
            name.strip_prefix("RTMIN").filter(|rest| rest.is_empty() || rest.starts_with('+'))
        {
            offset(rest).map(|offset| RTMIN.saturating_add(offset)).filter(|number| *number >= RTMIN)
        } else if let Some(rest) =
            name.strip_prefix("RTMAX").filter(|rest| rest.is_empty() || rest.starts_with('-'))
        {
            offset(rest).map(|offset| RTMAX.saturating_sub(offset)).filter(|number| *number >= RTMIN)
        } else {
            Self::NAMES
                .iter()
                .position(|known| *known == name)
                .and_then(|index| i32::try_from(index + 1).ok())
        };
        let rule = "use a name such as TERM or KILL, or a number from 1 to 64";
        number
            .and_then(|number| Self::try_from(number).ok())
            .ok_or_else(|| ParseError::new("signal", text, rule))
    }
}

impl TryFrom<i32> for SignalNumber {
    type Error = ParseError;

    fn try_from(number: i32) -> Result<Self, ParseError> {
        if (1..=64).contains(&number) {
            Ok(Self(number))
        } else {
            Err(ParseError::new("signal", &number.to_string(), "use a number from 1 to 64"))
        }
    }
}

impl From<SignalNumber> for i32 {
    fn from(signal: SignalNumber) -> i32 {
        signal.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_and_printed_alike() {
        for text in ["no", "on-failure", "on-failure:3", "always", "unless-stopped"] {
            assert_eq!(text.parse::<RestartPolicy>().unwrap().to_string(), text);
        }
        for bad in ["never", "on-failure:", "on-failure:x", "always:3"] {
            assert!(bad.parse::<RestartPolicy>().is_err(), "{bad:?} was accepted");
        }
        assert!(RestartPolicy::OnFailure(2).restarts(1, 1) && !RestartPolicy::OnFailure(2).restarts(1, 2));
        assert!(!RestartPolicy::OnFailure(0).restarts(0, 0) && RestartPolicy::Always.restarts(0, 99));
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in
            [("KILL", 9), ("SIGTERM", 15), ("sigint", 2), ("9", 9), ("SYS", 31), ("64", 64), ("RTMIN+3", 37)]
        {
            assert_eq!(text.parse::<SignalNumber>().unwrap().get(), number);
        }
        for bad in ["", "0", "65", "NOPE", "-9", "RTMIN+99", "RTMIN3", "RTMAX-99"] {
            assert!(bad.parse::<SignalNumber>().is_err(), "{bad:?} was accepted");
        }
    }
}
