use serde::{Deserialize, Serialize};

use crate::{ParseError, string_newtype};

/// Longest id or name accepted. Ids become file and cgroup names, so this stays well under `NAME_MAX` (255).
const MAX_LEN: usize = 128;

const ID_RULE: &str = "use 1 to 128 of a-z A-Z 0-9 _ . - and start with a letter or digit";

fn check(what: &'static str, text: &str) -> Result<(), ParseError> {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.' | b'-');
    let bytes = text.as_bytes();
    let starts_well = bytes.first().is_some_and(u8::is_ascii_alphanumeric);
    if starts_well && bytes.len() <= MAX_LEN && bytes.iter().copied().all(allowed) {
        Ok(())
    } else {
        Err(ParseError::new(what, text, ID_RULE))
    }
}

/// The identity of a container, everywhere: API, state directory, guest protocol, cgroup.
///
/// It is safe as a single path component: never empty, never `.` or `..`, no separator.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(String);

string_newtype!(ContainerId);

impl ContainerId {
    /// Checks an id given by a caller.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        check("container id", text)?;
        Ok(Self(text.to_owned()))
    }

    /// A new random id of 32 hex digits.
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4().simple().to_string())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 12 characters: what tables show.
    pub fn short(&self) -> &str {
        // Ids are ASCII by construction, so any byte index is a character boundary.
        &self.0[..self.0.len().min(12)]
    }

    /// The last 8 characters: what TAP devices are named after.
    pub fn last8(&self) -> &str {
        &self.0[self.0.len().saturating_sub(8)..]
    }

    /// The id that the engine and the jailer see.
    ///
    /// Firecracker takes at most 64 letters, digits and `-`, so a container id cannot be passed through as it is.
    pub fn vm_id(&self) -> VmId {
        // FNV-1a, 64 bit: stable across releases, which a `Hasher` of the standard library is not.
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        for byte in self.0.bytes() {
            hash ^= u64::from(byte);
            hash = hash.wrapping_mul(0x0000_0100_0000_01b3);
        }
        VmId(format!("{hash:016x}"))
    }
}

/// The name of a VM towards its engine: 16 hex digits derived from the container's id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmId(String);

impl std::fmt::Display for VmId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name a user gave to a container. Unique on a worker while the container's record exists.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerName(String);

string_newtype!(ContainerName);

impl ContainerName {
    /// Checks a name given by a caller.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        check("container name", text)?;
        Ok(Self(text.to_owned()))
    }
}

/// The name of a volume. Like an id it is safe as a single path component.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName(String);

string_newtype!(VolumeName);

impl VolumeName {
    /// Checks a name given by a caller.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        check("volume name", text)?;
        Ok(Self(text.to_owned()))
    }

    /// A fresh name: 32 hex digits.
    pub fn random() -> Self {
        Self(ContainerId::random().0)
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The identity of one process in a container, other than its main one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ExecId(String);

string_newtype!(ExecId);

impl ExecId {
    /// A fresh id: 32 hex digits.
    pub fn random() -> Self {
        Self(ContainerId::random().0)
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Checks an id given by a caller or by a guest.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        check("exec id", text)?;
        Ok(Self(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_that_could_leave_a_directory_are_refused() {
        for bad in ["", ".", "..", "a/b", "../x", "a\0b", "-x", ".hidden", "a b", "ä"] {
            assert!(ContainerId::parse(bad).is_err(), "{bad:?} was accepted");
        }
        assert!(ContainerId::parse(&"a".repeat(128)).is_ok());
        assert!(ContainerId::parse(&"a".repeat(129)).is_err());
    }

    #[test]
    fn short_forms_never_panic_on_short_ids() {
        let id = ContainerId::parse("pod-1").unwrap();
        assert_eq!((id.short(), id.last8()), ("pod-1", "pod-1"));
        assert_eq!(id.vm_id().to_string().len(), 16);
    }

    proptest! {
        #[test]
        fn a_parsed_id_is_one_path_component(text in "\\PC{0,140}") {
            if let Ok(id) = ContainerId::parse(&text) {
                let path = std::path::Path::new(id.as_str());
                prop_assert_eq!(path.components().count(), 1);
                prop_assert!(matches!(path.components().next(), Some(std::path::Component::Normal(_))));
            }
        }
    }
}
