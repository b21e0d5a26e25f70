//! What is known of a container: the record that the worker writes once, and the state that the supervisor keeps.

use std::collections::BTreeMap;
use std::path::PathBuf;

use beta9_types::{
    ContainerId, ContainerRequest, ContainerState, Digest, LogLimits, NetworkPlan, Phase, PhaseMark,
};
use beta9_types::{RuntimeChoice, RuntimeKind, RuntimeSettings, SignalNumber};
use serde::{Deserialize, Serialize};

use crate::directory::{ContainerDirectory, read_json, write_json};
use crate::error::{Error, ErrorKind, Result};

/// What was asked for and what it became.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The container.
    pub id: ContainerId,
    /// The request as it was accepted.
    pub request: ContainerRequest,
    /// The pool that runs it.
    pub pool: String,
    /// The runtime that the request or the pool asks for.
    pub runtime_asked: RuntimeChoice,
    /// The runtime that runs it.
    pub runtime: RuntimeKind,
    /// Why it is another one than asked for, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback_reason: Option<String>,
    /// The settings of that runtime, with programs found and platform chosen.
    pub settings: RuntimeSettings,
    /// The image's manifest.
    pub image_digest: Digest,
    /// Program and arguments after the image's defaults were applied.
    pub args: Vec<String>,
    /// Where the image's content is on this host.
    pub rootfs: RootfsSource,
    /// The image's content as a tree, in which users are looked up.
    #[serde(default)]
    pub tree: PathBuf,
    /// When the request was accepted, microseconds since the Unix epoch.
    pub created_us: u64,
    /// How much of its output is kept.
    #[serde(default)]
    pub log: LogLimits,
    /// The image's and the caller's labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What asks the container to end.
    #[serde(default = "default_stop_signal")]
    pub stop_signal: SignalNumber,
    /// Seconds between that signal and SIGKILL.
    #[serde(default = "default_stop_timeout")]
    pub stop_timeout: u32,
    /// Its network.
    #[serde(default)]
    pub network: NetworkPlan,
}

fn default_stop_signal() -> SignalNumber {
    SignalNumber::TERM
}

fn default_stop_timeout() -> u32 {
    10
}

/// An image's content in the form that the runtime takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RootfsSource {
    /// An unpacked tree, the lower layer of an overlay.
    Tree(PathBuf),
    /// A read-only block image.
    Block {
        /// The image.
        image: PathBuf,
        /// Its file system.
        format: String,
        /// The image store, which keeps the empty writable layers that are copied.
        store: PathBuf,
    },
}

impl Record {
    /// Writes the record into its directory.
    pub fn write(&self, directory: &ContainerDirectory) -> Result<()> {
        write_json(&directory.record(), self)
    }

    /// Reads a container's record; absent is `None`.
    pub fn read(directory: &ContainerDirectory) -> Result<Option<Self>> {
        read_json(&directory.record())
    }

    pub(crate) fn require(directory: &ContainerDirectory) -> Result<Self> {
        Self::read(directory)?.ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, format!("{} does not exist", directory.record().display()))
        })
    }
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StateFile {
    /// The state.
    pub state: ContainerState,
    /// Whether everything it held has been given back. Meaningful once it exited.
    pub cleaned: bool,
    /// The timeline so far, of the latest start.
    pub marks: Vec<PhaseMark>,
    /// How often its policy has started it again.
    #[serde(default)]
    pub restarts: u32,
    /// Whether somebody asked for its end, after which no policy starts it again.
    #[serde(default)]
    pub stopped: bool,
}

impl StateFile {
    /// The state of a container for which nothing has been started.
    pub fn created() -> Self {
        Self { state: ContainerState::Created, cleaned: true, marks: Vec::new(), restarts: 0, stopped: false }
    }

    /// Reads a container's state; absent means that it was only created.
    pub fn read(directory: &ContainerDirectory) -> Result<Self> {
        Ok(read_json(&directory.state())?.unwrap_or_else(Self::created))
    }

    pub(crate) fn write(&self, directory: &ContainerDirectory) -> Result<()> {
        write_json(&directory.state(), self)
    }

    /// When a phase was reached, microseconds since the Unix epoch.
    pub fn reached(&self, phase: Phase) -> Option<u64> {
        self.marks.iter().find(|mark| mark.phase == phase).map(|mark| mark.at_us)
    }
}
