use serde::{Deserialize, Serialize};

use crate::{ParseError, string_newtype};

/// A capability's name without `CAP_`, in capitals, or `ALL`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CapabilityName(String);

string_newtype!(CapabilityName);

impl CapabilityName {
    /// Every capability of `capabilities(7)`, in the order of their numbers.
    pub const KNOWN: [&'static str; 41] = [
        "CHOWN",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "FOWNER",
        "FSETID",
        "KILL",
        "SETGID",
        "SETUID",
        "SETPCAP",
        "LINUX_IMMUTABLE",
        "NET_BIND_SERVICE",
        "NET_BROADCAST",
        "NET_ADMIN",
        "NET_RAW",
        "IPC_LOCK",
        "IPC_OWNER",
        "SYS_MODULE",
        "SYS_RAWIO",
        "SYS_CHROOT",
        "SYS_PTRACE",
        "SYS_PACCT",
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_NICE",
        "SYS_RESOURCE",
        "SYS_TIME",
        "SYS_TTY_CONFIG",
        "MKNOD",
        "LEASE",
        "AUDIT_WRITE",
        "AUDIT_CONTROL",
        "SETFCAP",
        "MAC_OVERRIDE",
        "MAC_ADMIN",
        "SYSLOG",
        "WAKE_ALARM",
        "BLOCK_SUSPEND",
        "AUDIT_READ",
        "PERFMON",
        "BPF",
        "CHECKPOINT_RESTORE",
    ];

    /// Reads a name in any case, with or without `CAP_`.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if name == "ALL" || Self::KNOWN.contains(&name) {
            Ok(Self(name.to_owned()))
        } else {
            Err(ParseError::new("capability", text, "use a name such as NET_ADMIN (capabilities(7)), or ALL"))
        }
    }

    /// Whether it stands for every capability.
    pub fn is_all(&self) -> bool {
        self.0 == "ALL"
    }
}

/// Which system calls a container may make.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SeccompChoice {
    /// Those of docker's default profile.
    #[default]
    Default,
    /// All.
    Unconfined,
    /// Those of a profile in docker's or OCI's JSON.
    Profile(String),
}

impl From<String> for SeccompChoice {
    /// Empty is the default and `unconfined` is none; everything else is a profile, which is read where it is used.
    fn from(text: String) -> Self {
        match text.as_str() {
            "" => Self::Default,
            "unconfined" => Self::Unconfined,
            _ => Self::Profile(text),
        }
    }
}

/// `NAME=VALUE`: a kernel setting of the container's own namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sysctl(String);

string_newtype!(Sysctl);

impl Sysctl {
    /// Checks that the setting belongs to a namespace, so that nothing of the host is changed.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let rule = "use NAME=VALUE with a setting of a namespace: net.*, fs.mqueue.*, kernel.shm*, kernel.msg* or \
                    kernel.sem";
        let fine = text.split_once('=').is_some_and(|(name, value)| {
            let namespaced = name.starts_with("net.") || name.starts_with("fs.mqueue.");
            let ipc =
                name.starts_with("kernel.shm") || name.starts_with("kernel.msg") || name == "kernel.sem";
            let plain = name.split('.').all(|part| {
                !part.is_empty()
                    && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
            });
            (namespaced || ipc) && plain && !value.is_empty() && !value.contains(['\0', '\n'])
        });
        if fine { Ok(Self(text.to_owned())) } else { Err(ParseError::new("sysctl", text, rule)) }
    }

    /// Name and value.
    pub fn parts(&self) -> (&str, &str) {
        // It was checked when it was made.
        self.0.split_once('=').unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_have_names_in_any_case() {
        for text in ["net_admin", "CAP_NET_ADMIN", "Net_Admin"] {
            assert_eq!(CapabilityName::parse(text).unwrap().to_string(), "NET_ADMIN");
        }
        assert!(CapabilityName::parse("all").unwrap().is_all());
        for bad in ["", "CAP_", "CAP_CAP_KILL", "ROOT"] {
            assert!(CapabilityName::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn settings_of_the_whole_kernel_are_refused() {
        assert_eq!(Sysctl::parse("net.ipv4.ip_forward=1").unwrap().parts(), ("net.ipv4.ip_forward", "1"));
        for bad in ["net.x", "kernel.panic=1", "vm.swappiness=1", "net..x=1", "net.a/b=1", "net.a=", "=1"] {
            assert!(Sysctl::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
