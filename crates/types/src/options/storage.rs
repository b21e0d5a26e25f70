use serde::{Deserialize, Serialize};

use crate::{MountAccess, ParseError};

/// The writable layer of a container: what it writes outside its mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StorageOptions {
    /// The most that it holds, in bytes; the pool's where absent.
    pub bytes: Option<u64>,
    /// What it is kept in.
    pub medium: StorageMedium,
}

/// What a writable layer is kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StorageMedium {
    /// Below the worker's root, where it stays until the container is removed.
    #[default]
    Disk,
    /// The container's memory, where it is gone when the container ends.
    Memory,
}

impl StorageOptions {
    /// Below this an ext4 file system with a journal has little room left.
    pub const MIN_BYTES: u64 = 16 << 20;
    /// The most that ext4 takes with blocks of 4096 bytes.
    pub const MAX_BYTES: u64 = 16 << 40;

    /// Takes one `NAME=VALUE` of `--storage-opt`: docker's `size=`, and `medium=disk|memory`.
    pub fn take(&mut self, option: &str) -> Result<(), ParseError> {
        let bad =
            || ParseError::new("storage option", option, "use size=SIZE of 16m to 16t, or medium=memory");
        match option.split_once('=') {
            Some(("size", size)) => self.bytes = Some(size_of(size).ok_or_else(bad)?),
            Some(("medium", "disk")) => self.medium = StorageMedium::Disk,
            Some(("medium", "memory")) => self.medium = StorageMedium::Memory,
            _ => return Err(bad()),
        }
        Ok(())
    }
}

fn size_of(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let lower = lower.strip_suffix("ib").or(lower.strip_suffix('b')).unwrap_or(&lower);
    let (number, shift) = match lower.as_bytes().last()? {
        b'k' => (&lower[..lower.len() - 1], 10),
        b'm' => (&lower[..lower.len() - 1], 20),
        b'g' => (&lower[..lower.len() - 1], 30),
        b't' => (&lower[..lower.len() - 1], 40),
        _ => (lower, 0),
    };
    let bytes = number.parse::<u64>().ok()?.checked_mul(1 << shift)?;
    (StorageOptions::MIN_BYTES..=StorageOptions::MAX_BYTES).contains(&bytes).then_some(bytes)
}

/// `CONTAINER[:ro|rw]`: a container whose mounts another gets, as `docker run --volumes-from` takes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumesFrom {
    /// Id, beginning of an id, or name.
    pub container: String,
    /// What the mounts become; as they are there where absent.
    pub access: Option<MountAccess>,
}

impl std::str::FromStr for VolumesFrom {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (container, access) = match text.split_once(':') {
            None => (text, None),
            Some((container, "ro")) => (container, Some(MountAccess::ReadOnly)),
            Some((container, "rw" | "z" | "Z")) => (container, None),
            Some(_) => ("", None),
        };
        if container.is_empty() {
            return Err(ParseError::new("source of volumes", text, "use CONTAINER or CONTAINER:ro"));
        }
        Ok(Self { container: container.to_owned(), access })
    }
}

impl std::fmt::Display for VolumesFrom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let suffix = if self.access == Some(MountAccess::ReadOnly) { ":ro" } else { "" };
        write!(f, "{}{suffix}", self.container)
    }
}

impl TryFrom<String> for VolumesFrom {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl From<VolumesFrom> for String {
    fn from(from: VolumesFrom) -> String {
        from.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_options_are_read() {
        let mut storage = StorageOptions::default();
        storage.take("size=1G").unwrap();
        storage.take("medium=memory").unwrap();
        assert_eq!(storage, StorageOptions { bytes: Some(1 << 30), medium: StorageMedium::Memory });
        for bad in ["", "size", "size=", "size=1m", "size=17t", "size=x", "medium=tape", "quota=1g"] {
            assert!(storage.take(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn sources_of_volumes_have_a_mode() {
        let from = |text: &str| text.parse::<VolumesFrom>().map(|from| from.to_string());
        assert_eq!(from("web").unwrap(), "web");
        assert_eq!(from("web:ro").unwrap(), "web:ro");
        assert_eq!(from("web:rw").unwrap(), "web");
        for bad in ["", ":ro", "web:xx", "web:ro:x"] {
            assert!(from(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
