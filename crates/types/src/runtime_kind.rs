use serde::{Deserialize, Serialize};

use crate::ParseError;

/// How a container is isolated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeKind {
    /// Namespaces and cgroups on the host's kernel.
    Runc,
    /// gVisor: the container's system calls are served by a kernel in user space.
    Gvisor,
    /// A microVM of its own, by Firecracker.
    Firecracker,
    /// A microVM of its own, by QEMU.
    Qemu,
}

impl RuntimeKind {
    /// Every runtime, in the order in which they are shown.
    pub const ALL: [Self; 4] = [Self::Runc, Self::Gvisor, Self::Firecracker, Self::Qemu];

    /// The word used in configuration, logs and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Gvisor => "gvisor",
            Self::Firecracker => "firecracker",
            Self::Qemu => "qemu",
        }
    }

    /// The name as a sentence starts with it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Gvisor => "gVisor",
            Self::Firecracker => "Firecracker",
            Self::Qemu => "QEMU",
        }
    }

    /// Whether a container gets a kernel of its own.
    pub fn is_microvm(self) -> bool {
        matches!(self, Self::Firecracker | Self::Qemu)
    }
}

impl std::fmt::Display for RuntimeKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for RuntimeKind {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| ParseError::new("runtime", text, "use runc, gvisor, firecracker or qemu"))
    }
}

/// What a request or a flag may ask for: a runtime, or "a microVM, whichever engine works here".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RuntimeChoice {
    /// Exactly this runtime; never another.
    Exactly(RuntimeKind),
    /// Firecracker if its probe passes, else QEMU.
    Microvm,
}

impl RuntimeChoice {
    /// The runtimes that satisfy the choice, best first.
    pub fn candidates(self) -> &'static [RuntimeKind] {
        match self {
            Self::Exactly(RuntimeKind::Runc) => &[RuntimeKind::Runc],
            Self::Exactly(RuntimeKind::Gvisor) => &[RuntimeKind::Gvisor],
            Self::Exactly(RuntimeKind::Firecracker) => &[RuntimeKind::Firecracker],
            Self::Exactly(RuntimeKind::Qemu) => &[RuntimeKind::Qemu],
            Self::Microvm => &[RuntimeKind::Firecracker, RuntimeKind::Qemu],
        }
    }
}

impl std::fmt::Display for RuntimeChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exactly(kind) => kind.fmt(f),
            Self::Microvm => f.pad("microvm"),
        }
    }
}

impl std::str::FromStr for RuntimeChoice {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text == "microvm" {
            return Ok(Self::Microvm);
        }
        text.parse().map(Self::Exactly).map_err(|_: ParseError| {
            ParseError::new("runtime", text, "use runc, gvisor, firecracker, qemu or microvm")
        })
    }
}

impl TryFrom<String> for RuntimeChoice {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl From<RuntimeChoice> for String {
    fn from(value: RuntimeChoice) -> String {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_a_round_trip() {
        for kind in RuntimeKind::ALL {
            assert_eq!(kind.as_str().parse::<RuntimeKind>().unwrap(), kind);
            assert_eq!(RuntimeChoice::Exactly(kind).candidates(), [kind]);
        }
        assert_eq!("microvm".parse::<RuntimeChoice>().unwrap(), RuntimeChoice::Microvm);
        assert!("Firecracker".parse::<RuntimeKind>().is_err());
    }
}
