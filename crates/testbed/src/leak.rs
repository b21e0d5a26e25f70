//! The leak counter: what is on the machine after a container that was not there before.
//!
//! ```text
//! Scope ──watch()──▶ Watch (a snapshot is taken) ──settle()──▶ what is still there at the deadline
//! ```
//!
//! It looks at processes, mounts of this mount namespace, loop devices, cgroups of both versions, named network
//! namespaces, links, queueing disciplines and nft rules in this namespace and in the named ones, and below given
//! directories at files and at bound Unix sockets. It sees additions only. Nothing of it needs the cooperation of what is
//! tested, and nothing is removed.
//!
//! Other work on the machine would be seen as well. On a machine that is not the test's own,
//! [`Scope::mentioning`] limits the count to things that carry a name of the test.

mod network;
mod observe;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::Result;

/// How often the machine is looked at while things settle. There is no event for "a mount, a cgroup or a link went".
const INTERVAL: Duration = Duration::from_millis(50);

/// Kinds of things that can be left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A process, or what is left of one that nobody waited for. Kernel threads and this process do not count.
    Process,
    /// A mount in this mount namespace.
    Mount,
    /// A loop device with a file behind it.
    LoopDevice,
    /// A cgroup in any hierarchy below `/sys/fs/cgroup`.
    Cgroup,
    /// A name in `/run/netns`.
    NetworkNamespace,
    /// A network interface.
    Link,
    /// A queueing discipline, such as the ingress hook that redirects packets.
    QueueingDiscipline,
    /// A table, chain, set or rule of nft.
    NftRule,
    /// A Unix socket that is bound below one of the directories, whether or not its file still exists.
    UnixSocket,
    /// A file or directory below one of the directories.
    Path,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Process => "process",
            Self::Mount => "mount",
            Self::LoopDevice => "loop device",
            Self::Cgroup => "cgroup",
            Self::NetworkNamespace => "network namespace",
            Self::Link => "link",
            Self::QueueingDiscipline => "queueing discipline",
            Self::NftRule => "nft rule",
            Self::UnixSocket => "unix socket",
            Self::Path => "path",
        })
    }
}

/// One thing that was left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leak {
    /// What it is.
    pub kind: Kind,
    /// Which one, as a person would look for it.
    pub what: String,
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.what)
    }
}

/// What was left behind; prints one line for each thing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leaks(Vec<Leak>);

impl Leaks {
    /// Whether nothing was.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each thing.
    pub fn iter(&self) -> impl Iterator<Item = &Leak> {
        self.0.iter()
    }
}

impl fmt::Display for Leaks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|leak| writeln!(f, "{leak}"))
    }
}

/// What is looked at.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    roots: Vec<PathBuf>,
    exceptions: Vec<PathBuf>,
    names: Vec<String>,
}

impl Scope {
    /// The whole machine, without files and sockets.
    pub fn new() -> Self {
        Self::default()
    }

    /// Files and sockets below `root` as well. It need not exist yet.
    pub fn below(mut self, root: impl AsRef<Path>) -> Self {
        self.roots.push(root.as_ref().to_owned());
        self
    }

    /// Files and sockets at and below `path` are meant to stay.
    pub fn except(mut self, path: impl AsRef<Path>) -> Self {
        self.exceptions.push(path.as_ref().to_owned());
        self
    }

    /// Of the rest, count only what mentions one of the names given by this: in a process's command line, program or
    /// cgroup, in a mount's place or source, in the name of a link, and so on. Said several times, any of them counts.
    /// A process that ended and was not waited for has only its short name and its cgroup left.
    pub fn mentioning(mut self, name: impl Into<String>) -> Self {
        self.names.push(name.into());
        self
    }

    /// Remembers what is there now.
    pub fn watch(self) -> Result<Watch> {
        let before = self.snapshot()?;
        Ok(Watch { scope: self, before })
    }

    fn snapshot(&self) -> Result<Snapshot> {
        let mut snapshot = Snapshot::default();
        observe::processes(&mut snapshot)?;
        observe::mounts(&mut snapshot)?;
        observe::loop_devices(&mut snapshot)?;
        observe::cgroups(Path::new("/sys/fs/cgroup"), &mut snapshot)?;
        network::everything(&mut snapshot)?;
        if !self.names.is_empty() {
            snapshot.things.retain(|(_, key), what| {
                self.names.iter().any(|name| key.contains(name) || what.contains(name))
            });
        }
        observe::unix_sockets(self, &mut snapshot)?;
        for root in &self.roots {
            observe::paths(self, root, &mut snapshot)?;
        }
        Ok(snapshot)
    }

    fn is_exception(&self, path: &Path) -> bool {
        self.exceptions.iter().any(|exception| path.starts_with(exception))
    }

    fn holds(&self, path: &Path) -> bool {
        self.roots.iter().any(|root| path.starts_with(root)) && !self.is_exception(path)
    }
}

/// A machine whose state was remembered.
#[derive(Debug)]
pub struct Watch {
    scope: Scope,
    before: Snapshot,
}

impl Watch {
    /// [`Scope::mentioning`] for a name that was not known at first, of something that did not exist then.
    pub fn mentioning(mut self, name: impl Into<String>) -> Self {
        self.scope.names.push(name.into());
        self
    }

    /// What is there now and was not before.
    pub fn leaks(&self) -> Result<Leaks> {
        Ok(self.before.leaks_in(&self.scope.snapshot()?))
    }

    /// The same, after it got `within` to become nothing: the kernel lets go of some things with a delay.
    pub fn settle(&self, within: Duration) -> Result<Leaks> {
        let deadline = Instant::now() + within;
        loop {
            let leaks = self.leaks()?;
            if leaks.is_empty() || Instant::now() >= deadline {
                return Ok(leaks);
            }
            std::thread::sleep(INTERVAL);
        }
    }
}

/// Things on the machine, by what makes them the same thing in two snapshots, with words for a person.
#[derive(Debug, Default)]
struct Snapshot {
    things: BTreeMap<(Kind, String), String>,
}

impl Snapshot {
    /// Adds a thing that is known by the words for it.
    fn add(&mut self, kind: Kind, what: String) {
        self.add_as(kind, what.clone(), what);
    }

    /// Adds a thing whose words may change while it stays the same.
    fn add_as(&mut self, kind: Kind, key: String, what: String) {
        let mut entry = (kind, key);
        // Two that look the same, such as one rule added twice, are two.
        while self.things.contains_key(&entry) {
            entry.1.push_str(" (again)");
        }
        self.things.insert(entry, what);
    }

    fn leaks_in(&self, after: &Self) -> Leaks {
        let new = after.things.iter().filter(|(thing, _)| !self.things.contains_key(*thing));
        Leaks(new.map(|((kind, _), what)| Leak { kind: *kind, what: what.clone() }).collect())
    }
}

#[cfg(test)]
mod tests;
