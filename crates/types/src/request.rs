use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    Consistency, ContainerName, ContainerOptions, ImageReference, MemoryBytes, MountLimits, ParseError,
    Propagation, RuntimeChoice, TerminalSize, VolumeName, string_newtype,
};

/// What a caller asks for. Every field is what the user said; what it became is in the container's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRequest {
    /// The image to run.
    pub image: ImageReference,
    /// The command and its arguments; empty means the image's own.
    #[serde(default)]
    pub command: Vec<String>,
    /// `NAME=value`, added to and winning over the image's.
    #[serde(default)]
    pub env: Vec<String>,
    /// Working directory, absolute inside the container.
    #[serde(default)]
    pub cwd: Option<String>,
    /// The user to run as; the image's where absent.
    #[serde(default)]
    pub user: Option<User>,
    /// Host name; the first 12 characters of the id where absent.
    #[serde(default)]
    pub hostname: Option<String>,
    /// Host paths that appear in the container.
    #[serde(default)]
    pub mounts: Vec<BindMount>,
    /// Memory limit of the container.
    #[serde(default)]
    pub memory: Option<MemoryBytes>,
    /// The user's own name for the container.
    #[serde(default)]
    pub name: Option<ContainerName>,
    /// A runtime in the request is exact: it never falls back.
    #[serde(default)]
    pub runtime: Option<RuntimeChoice>,
    /// The pool; `default` where absent.
    #[serde(default)]
    pub pool: Option<String>,
    /// Whether the container's stdin stays open for a client. Otherwise it reads end-of-file at once.
    #[serde(default)]
    pub stdin: bool,
    /// Whether the record goes away with the container.
    #[serde(default)]
    pub auto_remove: bool,
    /// docker's further options.
    #[serde(default)]
    pub options: ContainerOptions,
    /// Whether the container's main process has a terminal, and of which size.
    #[serde(default)]
    pub terminal: Option<TerminalSize>,
    /// Whether the caller attaches at once: then no byte of output is thrown away before it has.
    #[serde(default)]
    pub attach: bool,
    /// Bytes of one file of the log; the worker's setting where absent.
    #[serde(default)]
    pub log_max_size: Option<u64>,
    /// Files of the log; the worker's setting where absent.
    #[serde(default)]
    pub log_max_files: Option<u32>,
}

/// `user[:group]`, by name or number, resolved against the image's own files at start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct User(String);

string_newtype!(User);

impl User {
    /// Checks the shape; whether the user exists is known only inside the image.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let part =
            |p: &str| !p.is_empty() && p.len() <= 64 && !p.contains(|c: char| c.is_control() || c == ' ');
        let valid = match text.split_once(':') {
            Some((user, group)) => part(user) && part(group) && !group.contains(':'),
            None => part(text),
        };
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseError::new("user", text, "use user or user:group, by name or number"))
        }
    }

    /// User and group as given.
    pub fn parts(&self) -> (&str, Option<&str>) {
        match self.0.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (&self.0, None),
        }
    }
}

/// Whether a container may write to a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MountAccess {
    /// Writes fail with EROFS, enforced on the host.
    ReadOnly,
    /// Writes reach the host.
    ReadWrite,
}

/// A host file or directory that appears in the container, `SOURCE:TARGET[:ro|rw]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindMount {
    /// Absolute path on the host.
    pub source: PathBuf,
    /// Absolute path in the container.
    pub target: PathBuf,
    /// Whether it can be written.
    pub access: MountAccess,
    /// What is not honoured in it.
    #[serde(default)]
    pub limits: MountLimits,
    /// How soon the container sees what the host does to it, where the two do not share a kernel.
    #[serde(default)]
    pub consistency: Option<Consistency>,
    /// Whether later mounts of the host appear in it.
    #[serde(default)]
    pub propagation: Propagation,
    /// The volume that it is, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeUse>,
}

/// A volume that a container has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeUse {
    /// Its name.
    pub name: VolumeName,
    /// Whether it is the container's own.
    pub life: VolumeLife,
}

/// Whether a volume may go with its container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeLife {
    /// Somebody named it: it stays.
    Named,
    /// It was made for a container, and goes with it where that is asked for.
    Anonymous,
}

impl BindMount {
    /// Longest path accepted (`PATH_MAX`).
    const MAX_PATH: usize = 4096;
    const RULE: &'static str = "use SOURCE:TARGET or SOURCE:TARGET:ro, both absolute and without ..";

    /// Checks both paths.
    pub fn new(source: PathBuf, target: PathBuf, access: MountAccess) -> Result<Self, ParseError> {
        let fine = |path: &Path| {
            let text = path.as_os_str().as_encoded_bytes();
            path.is_absolute()
                && text.len() < Self::MAX_PATH
                && !text.contains(&0)
                && !path.components().any(|part| part == Component::ParentDir)
        };
        let mount = Self {
            source,
            target,
            access,
            limits: MountLimits::default(),
            consistency: None,
            propagation: Propagation::default(),
            volume: None,
        };
        if fine(&mount.source) && fine(&mount.target) && mount.target.components().count() > 1 {
            Ok(mount)
        } else {
            Err(ParseError::new("mount", &mount.to_string(), Self::RULE))
        }
    }
}

impl std::str::FromStr for BindMount {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let bad = || ParseError::new("mount", text, Self::RULE);
        let mut parts = text.split(':');
        let (source, target) = (parts.next().ok_or_else(bad)?, parts.next().ok_or_else(bad)?);
        let access = match parts.next() {
            None | Some("rw") => MountAccess::ReadWrite,
            Some("ro") => MountAccess::ReadOnly,
            Some(_) => return Err(bad()),
        };
        if parts.next().is_some() {
            return Err(bad());
        }
        Self::new(source.into(), target.into(), access)
    }
}

impl std::fmt::Display for BindMount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let suffix = match self.access {
            MountAccess::ReadOnly => ":ro",
            MountAccess::ReadWrite => "",
        };
        write!(f, "{}:{}{suffix}", self.source.display(), self.target.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_as_docker_reads_them() {
        let mount: BindMount = "/src:/work:ro".parse().unwrap();
        assert_eq!(mount.access, MountAccess::ReadOnly);
        assert_eq!(mount.to_string(), "/src:/work:ro");
        assert_eq!("/a:/b".parse::<BindMount>().unwrap().access, MountAccess::ReadWrite);
        for bad in ["", "/a", "a:/b", "/a:b", "/a:/b:xx", "/a:/b:ro:x", "/a:/", "/a/../b:/c", "/a:/b/.."] {
            assert!(bad.parse::<BindMount>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn users_have_one_optional_group() {
        assert_eq!(User::parse("app:1000").unwrap().parts(), ("app", Some("1000")));
        for bad in ["", ":", "a:", ":b", "a:b:c", "a b"] {
            assert!(User::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
