//! Mounts as they are asked for: docker's `-v` and `--mount`, each with one parser.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{MountAccess, ParseError, TmpfsMount, VolumeName};

/// A mount as a caller asks for it; what it became is a [`BindMount`](crate::BindMount).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRequest {
    /// What is mounted.
    pub origin: MountOrigin,
    /// Where, absolute in the container and other than its root.
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
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountOrigin {
    /// A file or directory of the worker's host.
    Host {
        /// Absolute, without `..`.
        path: PathBuf,
        /// What happens where it does not exist.
        missing: Missing,
    },
    /// A volume, which is made where it does not exist.
    Volume {
        /// Its name; one of its own for this container where absent.
        name: Option<VolumeName>,
        /// What a new one holds.
        content: VolumeContent,
        /// Notes on a new one.
        labels: BTreeMap<String, String>,
    },
}

/// What happens where a mount's source does not exist: docker's `--mount` refuses, its `-v` makes a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// The request is refused.
    Refuse,
    /// A directory is made.
    Create,
}

/// What an empty volume gets when a container that is made mounts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeContent {
    /// What the image has at the mount's target.
    Image,
    /// Nothing.
    Nothing,
}

/// What is not honoured in a mount. In a microVM device nodes never are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MountLimits {
    /// Set-user-id and set-group-id bits, and capabilities of files.
    pub nosuid: bool,
    /// Device nodes.
    pub nodev: bool,
    /// Programs.
    pub noexec: bool,
}

impl MountLimits {
    /// Takes a word such as `nosuid` or its opposite `suid`; `false` where it is none of these.
    fn take(&mut self, word: &str) -> bool {
        let (field, value) = match word {
            "nosuid" | "suid" => (&mut self.nosuid, word == "nosuid"),
            "nodev" | "dev" => (&mut self.nodev, word == "nodev"),
            "noexec" | "exec" => (&mut self.noexec, word == "noexec"),
            _ => return false,
        };
        *field = value;
        true
    }

    /// The options of mount(8) that say so.
    pub fn options(self) -> impl Iterator<Item = &'static str> {
        let options = [(self.nosuid, "nosuid"), (self.nodev, "nodev"), (self.noexec, "noexec")];
        options.into_iter().filter_map(|(is_set, option)| is_set.then_some(option))
    }
}

/// How soon one side of a mount sees what the other does, where they do not share a kernel: docker's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Consistency {
    /// At once.
    Consistent,
    /// The container may see what the host does a second later.
    Cached,
}

impl Consistency {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Consistent => "consistent",
            Self::Cached => "cached",
        }
    }
}

impl std::str::FromStr for Consistency {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text {
            "consistent" | "default" => Ok(Self::Consistent),
            // The container's writes are never held back, so the two mean the same here.
            "cached" | "delegated" => Ok(Self::Cached),
            _ => Err(ParseError::new("consistency", text, "use consistent, cached or delegated")),
        }
    }
}

/// Whether later mounts of one side appear on the other (mount_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Propagation {
    /// Neither way.
    #[default]
    Private,
    /// From the host to the container.
    Slave,
    /// Both ways.
    Shared,
}

impl Propagation {
    /// docker's word, for a mount with everything below it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Private => "rprivate",
            Self::Slave => "rslave",
            Self::Shared => "rshared",
        }
    }
}

impl std::str::FromStr for Propagation {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text {
            "private" | "rprivate" => Ok(Self::Private),
            "slave" | "rslave" => Ok(Self::Slave),
            "shared" | "rshared" => Ok(Self::Shared),
            _ => Err(ParseError::new("propagation", text, "use rprivate, rslave or rshared")),
        }
    }
}

/// What one `--mount` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountFlag {
    /// A host path or a volume.
    Mount(MountRequest),
    /// A memory file system.
    Tmpfs(TmpfsMount),
}

/// Longest path accepted (`PATH_MAX`).
const MAX_PATH: usize = 4096;
const VOLUME_RULE: &str = "use [SOURCE:]TARGET[:OPTIONS] with an absolute TARGET, a SOURCE that is a volume's name or an \
     absolute path without .., and OPTIONS out of ro, rw, nocopy, nosuid, nodev, noexec, cached, consistent, rslave";
const MOUNT_RULE: &str = "use type=bind|volume|tmpfs,source=…,target=… with an absolute target, and further readonly, \
     bind-propagation=, volume-nocopy, volume-label=, tmpfs-size=, tmpfs-mode=, nosuid, nodev, noexec, consistency=";

impl MountRequest {
    /// Checks the paths of a mount.
    pub fn new(origin: MountOrigin, target: PathBuf, access: MountAccess) -> Result<Self, ParseError> {
        let request = Self {
            origin,
            target,
            access,
            limits: MountLimits::default(),
            consistency: None,
            propagation: Propagation::default(),
        };
        request.checked("mount", &request.target.to_string_lossy(), VOLUME_RULE)
    }

    /// Reads `[SOURCE:]TARGET[:OPTIONS]`, as `docker run -v` takes it.
    pub fn parse_volume(text: &str) -> Result<Self, ParseError> {
        let bad = || ParseError::new("volume", text, VOLUME_RULE);
        let parts: Vec<&str> = text.split(':').collect();
        let (source, target, options) = match parts[..] {
            [target] => (None, target, ""),
            [source, target] => (Some(source), target, ""),
            [source, target, options] => (Some(source), target, options),
            _ => return Err(bad()),
        };
        let origin = match source {
            Some(path) if path.starts_with('/') => {
                MountOrigin::Host { path: path.into(), missing: Missing::Create }
            }
            Some(name) => Self::volume(Some(VolumeName::parse(name)?)),
            None => Self::volume(None),
        };
        let mut request = Self {
            origin,
            target: target.into(),
            access: MountAccess::ReadWrite,
            limits: MountLimits::default(),
            consistency: None,
            propagation: Propagation::default(),
        };
        for option in options.split(',').filter(|option| !option.is_empty()) {
            match option {
                "ro" => request.access = MountAccess::ReadOnly,
                "rw" => request.access = MountAccess::ReadWrite,
                // Labels of SELinux, which nothing here sets.
                "z" | "Z" => {}
                "nocopy" => match &mut request.origin {
                    MountOrigin::Volume { content, .. } => *content = VolumeContent::Nothing,
                    MountOrigin::Host { .. } => return Err(bad()),
                },
                word if request.limits.take(word) => {}
                word => match (word.parse(), word.parse()) {
                    (Ok(consistency), _) => request.consistency = Some(consistency),
                    (_, Ok(propagation)) => request.propagation = propagation,
                    _ => return Err(bad()),
                },
            }
        }
        request.checked("volume", text, VOLUME_RULE)
    }

    fn volume(name: Option<VolumeName>) -> MountOrigin {
        MountOrigin::Volume { name, content: VolumeContent::Image, labels: BTreeMap::new() }
    }

    /// The same with a plain target, if everything about it is allowed.
    fn checked(&self, what: &'static str, text: &str, rule: &'static str) -> Result<Self, ParseError> {
        let host = match &self.origin {
            MountOrigin::Host { path, .. } => Some(path),
            MountOrigin::Volume { .. } => None,
        };
        let is_root = self.target.components().count() < 2;
        if !is_plain(&self.target) || is_root || host.is_some_and(|path| !is_plain(path)) {
            return Err(ParseError::new(what, text, rule));
        }
        // Without `.` and doubled or trailing slashes, so that the same target is the same path.
        Ok(Self { target: self.target.components().collect(), ..self.clone() })
    }
}

fn is_plain(path: &Path) -> bool {
    let bytes = path.as_os_str().as_encoded_bytes();
    path.is_absolute()
        && bytes.len() < MAX_PATH
        && !bytes.contains(&0)
        && !path.components().any(|part| part == Component::ParentDir)
}

impl MountFlag {
    /// Reads `KEY=VALUE,…`, as `docker run --mount` takes it.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let bad = || ParseError::new("mount", text, MOUNT_RULE);
        let mut flag = Fields::default();
        for field in fields(text).ok_or_else(bad)? {
            flag.take(&field).ok_or_else(bad)?;
        }
        flag.finish(text)
    }
}

/// The fields of a line of comma-separated values: one that holds a comma is in quotation marks.
fn fields(text: &str) -> Option<Vec<String>> {
    let (mut fields, mut field, mut is_quoted) = (Vec::new(), String::new(), false);
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if is_quoted && characters.peek() == Some(&'"') => {
                characters.next();
                field.push('"');
            }
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => fields.push(std::mem::take(&mut field)),
            other => field.push(other),
        }
    }
    fields.push(field);
    (!is_quoted).then_some(fields)
}

#[derive(Default)]
struct Fields {
    kind: Option<String>,
    source: Option<String>,
    target: Option<String>,
    is_read_only: bool,
    limits: MountLimits,
    consistency: Option<Consistency>,
    propagation: Option<Propagation>,
    is_empty: bool,
    labels: BTreeMap<String, String>,
    tmpfs: Vec<String>,
}

impl Fields {
    /// Takes one field; `None` where it means nothing.
    fn take(&mut self, field: &str) -> Option<()> {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (field, None),
        };
        let flag = || match value {
            None => Some(true),
            Some(text) => match text.to_ascii_lowercase().as_str() {
                "1" | "t" | "true" => Some(true),
                "0" | "f" | "false" => Some(false),
                _ => None,
            },
        };
        match key.to_ascii_lowercase().as_str() {
            "type" => self.kind = Some(value?.to_ascii_lowercase()),
            "source" | "src" => self.source = Some(value?.to_owned()),
            "target" | "dst" | "destination" => self.target = Some(value?.to_owned()),
            "readonly" | "ro" => self.is_read_only = flag()?,
            "rw" => self.is_read_only = !flag()?,
            "bind-propagation" => self.propagation = Some(value?.parse().ok()?),
            "consistency" => self.consistency = Some(value?.parse().ok()?),
            "volume-nocopy" => self.is_empty = flag()?,
            "volume-driver" if value == Some("local") => {}
            "volume-label" => {
                let (name, value) = value?.split_once('=').unwrap_or((value?, ""));
                self.labels.insert(name.to_owned(), value.to_owned());
            }
            "tmpfs-size" => {
                let size = value?.to_ascii_lowercase();
                self.tmpfs.push(format!("size={}", size.strip_suffix('b').unwrap_or(&size)));
            }
            "tmpfs-mode" => self.tmpfs.push(format!("mode={}", value?)),
            word if value.is_none() && self.limits.take(word) => {}
            _ => return None,
        }
        Some(())
    }

    fn finish(self, text: &str) -> Result<MountFlag, ParseError> {
        let bad = || ParseError::new("mount", text, MOUNT_RULE);
        let target = self.target.as_deref().filter(|target| !target.is_empty()).ok_or_else(bad)?;
        let kind = self.kind.as_deref().unwrap_or("volume");
        let is_of_volumes = self.is_empty || !self.labels.is_empty();
        let is_of_binds = self.propagation.is_some();
        let is_of_tmpfs = !self.tmpfs.is_empty();
        let origin = match (kind, self.source.as_deref()) {
            ("bind", Some(path)) if !is_of_volumes && !is_of_tmpfs => {
                MountOrigin::Host { path: path.into(), missing: Missing::Refuse }
            }
            ("volume", source) if !is_of_binds && !is_of_tmpfs => MountOrigin::Volume {
                name: source.filter(|name| !name.is_empty()).map(VolumeName::parse).transpose()?,
                content: if self.is_empty { VolumeContent::Nothing } else { VolumeContent::Image },
                labels: self.labels,
            },
            ("tmpfs", None) if !is_of_volumes && !is_of_binds => {
                let access = self.is_read_only.then(|| "ro".to_owned());
                let options: Vec<_> = self.tmpfs.into_iter().chain(access).collect();
                let tmpfs = TmpfsMount::parse(&format!("{target}:{}", options.join(",")))?;
                return Ok(MountFlag::Tmpfs(tmpfs));
            }
            _ => return Err(bad()),
        };
        let request = MountRequest {
            origin,
            target: target.into(),
            access: if self.is_read_only { MountAccess::ReadOnly } else { MountAccess::ReadWrite },
            limits: self.limits,
            consistency: self.consistency,
            propagation: self.propagation.unwrap_or_default(),
        };
        Ok(MountFlag::Mount(request.checked("mount", text, MOUNT_RULE)?))
    }
}

#[cfg(test)]
mod tests;
