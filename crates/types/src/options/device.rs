use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{ParseError, string_newtype};

/// `SOURCE[:TARGET][:PERMISSIONS]`: a device of the host, as `docker run --device` takes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceRequest {
    /// The device's node on the host.
    pub source: PathBuf,
    /// Its node in the container.
    pub target: String,
    /// Some of `r`, `w` and `m`.
    pub permissions: String,
}

impl DeviceRequest {
    /// Checks the shape; whether there is such a device is known only on the worker's host.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let bad = || ParseError::new("device", text, "use /dev/NAME[:/dev/NAME][:rwm]");
        let is_path =
            |path: &str| path.starts_with('/') && path.len() > 1 && !path.split('/').any(|part| part == "..");
        let is_permissions = |text: &str| {
            (1..=3).contains(&text.len())
                && text.bytes().all(|byte| b"rwm".contains(&byte))
                && text.bytes().enumerate().all(|(index, byte)| !text.as_bytes()[..index].contains(&byte))
        };
        let parts: Vec<&str> = text.split(':').collect();
        let (source, target, permissions) = match parts[..] {
            [source] => (source, source, "rwm"),
            [source, last] if is_permissions(last) => (source, source, last),
            [source, target] => (source, target, "rwm"),
            [source, target, permissions] => (source, target, permissions),
            _ => return Err(bad()),
        };
        let fine = is_path(source) && is_path(target) && is_permissions(permissions) && !text.contains('\0');
        if !fine {
            return Err(bad());
        }
        Ok(Self { source: source.into(), target: target.to_owned(), permissions: permissions.to_owned() })
    }
}

impl std::fmt::Display for DeviceRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.source.display(), self.target, self.permissions)
    }
}

impl std::str::FromStr for DeviceRequest {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for DeviceRequest {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        Self::parse(&text)
    }
}

impl From<DeviceRequest> for String {
    fn from(device: DeviceRequest) -> String {
        device.to_string()
    }
}

/// `TARGET[:OPTIONS]`: a memory file system, as `docker run --tmpfs` takes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TmpfsMount(String);

string_newtype!(TmpfsMount);

impl TmpfsMount {
    const RULE: &'static str = "use /TARGET[:OPTIONS] with options out of ro, rw, exec, noexec, suid, nosuid, dev, nodev, size=, mode=, uid=, \
         gid=, nr_inodes=";

    /// Checks target and options.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let (target, options) = text.split_once(':').unwrap_or((text, ""));
        let is_target = target.starts_with('/')
            && target.len() < 4096
            && target.split('/').any(|part| !part.is_empty() && part != ".")
            && !target.split('/').any(|part| part == "..");
        let is_option = |option: &str| match option.split_once('=') {
            None => ["ro", "rw", "exec", "noexec", "suid", "nosuid", "dev", "nodev"].contains(&option),
            Some(("size", size)) => {
                let number = size.trim_end_matches(['k', 'm', 'g', 'K', 'M', 'G', '%']);
                number.parse::<u64>().is_ok() && size.len() <= number.len() + 1
            }
            Some(("mode", mode)) => u32::from_str_radix(mode, 8).is_ok_and(|mode| mode <= 0o7777),
            Some(("uid" | "gid" | "nr_inodes", number)) => number.parse::<u32>().is_ok(),
            Some(_) => false,
        };
        let fine = is_target
            && !text.contains('\0')
            && options.split(',').filter(|option| !option.is_empty()).all(is_option);
        if fine { Ok(Self(text.to_owned())) } else { Err(ParseError::new("tmpfs", text, Self::RULE)) }
    }

    /// Where it is mounted.
    pub fn target(&self) -> &str {
        self.0.split_once(':').map_or(&self.0, |(target, _)| target)
    }

    /// Its options, as given.
    pub fn options(&self) -> impl Iterator<Item = &str> {
        let options = self.0.split_once(':').map_or("", |(_, options)| options);
        options.split(',').filter(|option| !option.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_docker_reads_them() {
        let read = |text: &str| DeviceRequest::parse(text).unwrap().to_string();
        assert_eq!(read("/dev/fuse"), "/dev/fuse:/dev/fuse:rwm");
        assert_eq!(read("/dev/fuse:r"), "/dev/fuse:/dev/fuse:r");
        assert_eq!(read("/dev/fuse:/dev/x"), "/dev/fuse:/dev/x:rwm");
        assert_eq!(read("/dev/fuse:/dev/x:rw"), "/dev/fuse:/dev/x:rw");
        for bad in ["", "fuse", "/dev/x:y", "/dev/x:/dev/y:q", "/dev/x:/dev/y:rr", "/dev/../x", "/a:/b:r:w"] {
            assert!(DeviceRequest::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn memory_file_systems_have_known_options() {
        let mount = TmpfsMount::parse("/run:size=64m,mode=1770,noexec").unwrap();
        assert_eq!(mount.target(), "/run");
        assert_eq!(mount.options().collect::<Vec<_>>(), ["size=64m", "mode=1770", "noexec"]);
        assert_eq!(TmpfsMount::parse("/run").unwrap().options().count(), 0);
        for bad in ["", "run", "/", "/a/..", "/a:size=x", "/a:mode=9", "/a:context=x", "/a:size=1mm"] {
            assert!(TmpfsMount::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
