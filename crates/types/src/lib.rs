//! The words of the project as types: identifiers, digests, image references, sizes, what a caller asks
//! for and what a container is doing.
//!
//! Nothing here performs I/O, and every type that comes from outside has exactly one parser, used by
//! `FromStr` and by serde alike, so a value that exists is a value that was checked.

mod chain;
mod digest;
mod exit;
mod id;
mod log_limits;
mod mount;
mod network;
mod operate;
mod options;
mod platform;
mod pool_name;
mod pull_policy;
mod reference;
mod registry;
mod request;
mod runtime_kind;
mod settings;
mod size;
mod state;
mod terminal;
mod uid_range;

pub use chain::chain;
pub use digest::Digest;
pub use exit::{Exit, ExitReason};
pub use id::{ContainerId, ContainerName, ExecId, VmId, VolumeName};
pub use log_limits::LogLimits;
pub use mount::{
    Consistency, Missing, MountFlag, MountLimits, MountOrigin, MountRequest, Propagation, VolumeContent,
};
pub use network::{
    Allowed, Attachment, BridgeName, ContainerPort, Gateway, HostPattern, Ipv4Subnet, Ipv6Subnet, MacAddress,
    NetworkDefault, NetworkMode, NetworkName, NetworkOptions, NetworkPlan, NetworkPolicy, NetworkSettings,
    PortChange, PortMapping, PortProtocol, PublishedPort, RateLimits, Subnet,
};
pub use operate::{CopyIn, CopyOut, LimitChange, Placement, ProcessInfo, Usage};
pub use options::{
    CapabilityName, ContainerOptions, CpuSet, DeviceRequest, DiskRate, FileOptions, HostEntry, LifeOptions,
    LimitOptions, MemorySwap, NameOptions, ProcessOptions, RestartPolicy, SeccompChoice, SignalNumber,
    StorageMedium, StorageOptions, Sysctl, Throttle, ThrottleKind, TmpfsMount, Ulimit, VolumesFrom,
};
pub use platform::Platform;
pub use pool_name::PoolName;
pub use pull_policy::PullPolicy;
pub use reference::ImageReference;
pub use registry::{RegistryHost, RegistrySettings};
pub use request::{BindMount, ContainerRequest, MountAccess, User, VolumeLife, VolumeUse};
pub use runtime_kind::{RuntimeChoice, RuntimeKind};
pub use settings::{QemuAccel, RuntimeSettings};
pub use size::{MemoryBytes, MemoryMib};
pub use state::{ContainerState, Phase, PhaseMark};
pub use terminal::TerminalSize;
pub use uid_range::UidRange;

/// A value from outside that is not what it claims to be. The message names the value and the rule it broke.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {what} {value:?}: {rule}")]
pub struct ParseError {
    what: &'static str,
    value: String,
    rule: &'static str,
}

impl ParseError {
    /// Longest part of an offending value that is repeated in a message.
    const SHOWN: usize = 160;

    pub(crate) fn new(what: &'static str, value: &str, rule: &'static str) -> Self {
        Self { what, value: value.chars().take(Self::SHOWN).collect(), rule }
    }

    /// What kind of value was being parsed, for example `container id`.
    pub fn what(&self) -> &'static str {
        self.what
    }
}

/// Gives a newtype over `String` its `Display`, `FromStr` and a serde form that goes through the same parser.
macro_rules! string_newtype {
    ($name:ident) => {
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = crate::ParseError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::parse(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = crate::ParseError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.0
            }
        }
    };
}
pub(crate) use string_newtype;
