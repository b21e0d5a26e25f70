//! The container's network: set up before its first start, kept over restarts by its policy, taken away at its end.
//!
//! ```text
//! start ─▶ ports reserved ─▶ connection made (written to network.json) ─▶ served ─▶ … ─▶ taken away
//!            again ─▶ renewed
//! ```

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use beta9_network::{Connection, Endpoint, Host, Joined, Nft, Proxies, Reserved};
use beta9_sys::reaper::Reaper;
use beta9_types::{Attachment, ContainerId, ContainerState, NetworkMode, RuntimeKind};
use oci_spec::OciSpecError;
use oci_spec::runtime::{LinuxNamespaceBuilder, LinuxNamespaceType, Spec};
use rustix::mount::{MountFlags, mount};
use tokio::sync::Mutex;

use crate::directory::ContainerDirectory;
use crate::error::chain;
use crate::record::{Record, StateFile};

/// What gVisor looks at to tell whether it is in the host's own network.
const HOST_SETTINGS: &str = "/proc/sys/net";

/// The network of one container.
pub(crate) struct Network {
    mounts: Option<OwnedFd>,
    reaper: Reaper,
    state: State,
    /// Held while it is set up, which goes on though the start is abandoned.
    setting_up: Arc<Mutex<()>>,
}

enum State {
    /// Not yet, or not any more.
    Absent,
    /// Nothing was made: loopback, or the host's own.
    Plain,
    Bridged(Box<Bridged>),
    /// A namespace of somebody else's, kept there by a descriptor.
    Joined {
        joined: Box<Joined>,
        _namespace: Option<OwnedFd>,
    },
}

struct Bridged {
    connection: Connection,
    /// Keeps it there whatever becomes of its name.
    _namespace: OwnedFd,
    _proxies: Proxies,
}

/// Why it failed: one sentence.
pub(crate) type Failed = String;

impl Network {
    /// `mounts` is the host's mount namespace, which this process has left.
    pub(crate) fn new(mounts: OwnedFd, reaper: &Reaper) -> Self {
        Self {
            mounts: Some(mounts),
            reaper: reaper.clone(),
            state: State::Absent,
            setting_up: Arc::default(),
        }
    }

    fn host(&self) -> Result<Host, Failed> {
        let mounts = self.mounts.as_ref().and_then(|mounts| mounts.try_clone().ok());
        let mounts = mounts.ok_or("remember the host's mounts")?;
        Ok(Host::with_mounts(mounts, Nft::new(Some(self.reaper.clone()))))
    }

    /// Sets it up, or makes it good for another start, and says in `spec` where it is. Returns the container's end, if it
    /// has one.
    pub(crate) async fn ready(
        &mut self,
        directory: &ContainerDirectory,
        record: &Record,
        spec: &mut Spec,
    ) -> Result<Option<Attachment>, Failed> {
        if matches!(self.state, State::Absent) {
            self.state = self.set_up(directory, record).await?;
        } else if let State::Bridged(bridged) = &self.state {
            let connection = bridged.connection.clone();
            blocking(move || connection.renew().map_err(|e| chain(&e))).await?;
        }
        let built = |e: OciSpecError| format!("name the network namespace in the spec: {e}");
        match &self.state {
            State::Absent => Ok(None),
            State::Plain => {
                if record.network.mode == NetworkMode::Host {
                    set_namespace(spec, None).map_err(built)?;
                }
                Ok(None)
            }
            State::Bridged(bridged) => {
                let attachment = &bridged.connection.attachment;
                set_namespace(spec, Some(&attachment.namespace)).map_err(built)?;
                name_in_hosts(directory, record, attachment)?;
                Ok(Some(attachment.clone()))
            }
            State::Joined { joined, .. } => {
                set_namespace(spec, Some(&joined.attachment.namespace)).map_err(built)?;
                name_in_hosts(directory, record, &joined.attachment)?;
                Ok(Some(joined.attachment.clone()))
            }
        }
    }

    async fn set_up(&self, directory: &ContainerDirectory, record: &Record) -> Result<State, Failed> {
        let file = Connection::file_in(directory.path());
        let endpoint = if record.runtime.is_microvm() { Endpoint::Vm } else { Endpoint::Namespace };
        let id = record.id.clone();
        let state = match &record.network.mode {
            NetworkMode::None | NetworkMode::Host => return Ok(State::Plain),
            NetworkMode::Bridge => {
                let options = record.request.options.network.clone();
                let reserved = Reserved::take(&options.ports).map_err(|e| chain(&e))?;
                let (host, plan, ports) = (self.host()?, record.network.clone(), reserved.ports());
                let setting_up = Arc::clone(&self.setting_up).lock_owned().await;
                let (connection, namespace) = blocking(move || {
                    let _setting_up = setting_up;
                    let wanted = beta9_network::Wanted {
                        id: &id,
                        settings: &plan.settings,
                        policy: &options.policy,
                        rates: options.rates,
                        ports: &ports,
                        endpoint,
                        file: &file,
                    };
                    Connection::set_up(&host, &wanted).map_err(|e| chain(&e))
                })
                .await?;
                let addresses: Vec<_> =
                    connection.attachment.addresses.iter().map(|(address, _)| *address).collect();
                match Proxies::serve(reserved, &addresses) {
                    Ok(proxies) => State::Bridged(Box::new(Bridged {
                        connection,
                        _namespace: namespace,
                        _proxies: proxies,
                    })),
                    Err(error) => {
                        self.take_away(
                            directory,
                            State::Bridged(Box::new(Bridged {
                                connection,
                                _namespace: namespace,
                                _proxies: Proxies::default(),
                            })),
                        )
                        .await;
                        return Err(chain(&error));
                    }
                }
            }
            NetworkMode::Namespace(path) => self.join(id, path.clone(), endpoint, file).await?,
            NetworkMode::Container(other) => {
                let path = namespace_of(directory, other)?;
                self.join(id, path, endpoint, file).await?
            }
        };
        if record.runtime == RuntimeKind::Gvisor {
            let path = match &state {
                State::Bridged(bridged) => bridged.connection.attachment.namespace.clone(),
                State::Joined { joined, .. } => joined.attachment.namespace.clone(),
                State::Absent | State::Plain => return Ok(state),
            };
            if let Err(why) = blocking(move || hide_host_settings(&path)).await {
                self.take_away(directory, state).await;
                return Err(why);
            }
        }
        Ok(state)
    }

    async fn join(
        &self,
        id: ContainerId,
        path: PathBuf,
        endpoint: Endpoint,
        file: PathBuf,
    ) -> Result<State, Failed> {
        let setting_up = Arc::clone(&self.setting_up).lock_owned().await;
        let (joined, namespace) = blocking(move || {
            let _setting_up = setting_up;
            Joined::set_up(&id, &path, endpoint, &file).map_err(|e| chain(&e))
        })
        .await?;
        Ok(State::Joined { joined: Box::new(joined), _namespace: Some(namespace) })
    }

    /// Takes it away, also where a start that was abandoned is still setting it up.
    pub(crate) async fn end(&mut self, directory: &ContainerDirectory, record: &Record) {
        drop(self.setting_up.lock().await);
        match std::mem::replace(&mut self.state, State::Absent) {
            State::Absent => self.clean_up(directory, record).await,
            state => self.take_away(directory, state).await,
        }
    }

    async fn take_away(&self, directory: &ContainerDirectory, state: State) {
        let file = Connection::file_in(directory.path());
        match state {
            State::Absent | State::Plain => {}
            State::Bridged(bridged) => {
                let host = match self.host() {
                    Ok(host) => host,
                    Err(why) => return tracing::error!(why, "a container's network could not be taken away"),
                };
                // Ports stay reserved until no rule sends anything to them.
                let Bridged { connection, _namespace, _proxies } = *bridged;
                let done = blocking(move || {
                    connection.take_away(&host, &file);
                    Ok(())
                });
                let _ = done.await;
            }
            State::Joined { joined, .. } => {
                let done = blocking(move || {
                    joined.take_away();
                    let _ = std::fs::remove_file(&file);
                    Ok(())
                });
                let _ = done.await;
            }
        }
    }

    /// The same for what was written down and nothing else is known of: by another supervisor, for example.
    pub(crate) async fn clean_up(&self, directory: &ContainerDirectory, record: &Record) {
        let file = Connection::file_in(directory.path());
        match &record.network.mode {
            NetworkMode::None | NetworkMode::Host => {}
            NetworkMode::Bridge => match (Connection::read(&file), self.host()) {
                (Ok(Some(connection)), Ok(host)) => {
                    let done = blocking(move || {
                        connection.take_away(&host, &file);
                        Ok(())
                    });
                    let _ = done.await;
                }
                (Ok(None), _) => {
                    if let Err(error) = Connection::forget_unwritten(&record.network.settings, &record.id) {
                        tracing::error!(
                            error = chain(&error),
                            "a container's address could not be given back"
                        );
                    }
                }
                (Err(error), _) => {
                    tracing::error!(error = chain(&error), "a container's network cannot be taken away");
                }
                (_, Err(why)) => tracing::error!(why, "a container's network cannot be taken away"),
            },
            NetworkMode::Container(_) | NetworkMode::Namespace(_) => {
                if let Ok(Some(joined)) = Joined::read(&file) {
                    self.take_away(directory, State::Joined { joined: Box::new(joined), _namespace: None })
                        .await;
                }
            }
        }
    }
}

/// Where the network of another container of this worker is. It has to run.
fn namespace_of(directory: &ContainerDirectory, other: &str) -> Result<PathBuf, Failed> {
    let other = ContainerId::parse(other).map_err(|e| e.to_string())?;
    let place = directory.path().with_file_name(other.as_str());
    let state = StateFile::read(&ContainerDirectory::at(place)).map_err(|e| chain(&e))?;
    match state.state {
        ContainerState::Running { pid } | ContainerState::Paused { pid } => {
            Ok(PathBuf::from(format!("/proc/{pid}/ns/net")))
        }
        _ => Err(format!(
            "container {} does not run, so there is no network of it to join: start it first",
            other.short()
        )),
    }
}

/// gVisor refuses to work in a namespace that shows settings of the host, which some kernels' namespaces all do. It is
/// shown an empty directory instead: it has a network stack of its own, with settings of its own.
fn hide_host_settings(namespace: &Path) -> Result<(), Failed> {
    if !beta9_network::shows_host_settings(namespace) || !Path::new(HOST_SETTINGS).join("core").exists() {
        return Ok(());
    }
    // In this process's own mount namespace, with which it ends.
    mount("tmpfs", HOST_SETTINGS, "tmpfs", MountFlags::empty(), None)
        .map_err(|e| format!("hide the host's network settings from gVisor: {}", std::io::Error::from(e)))
}

/// Puts the container into a namespace by its path, or, without one, into none of its own.
fn set_namespace(spec: &mut Spec, path: Option<&Path>) -> Result<(), OciSpecError> {
    let Some(linux) = spec.linux_mut() else { return Ok(()) };
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Network);
    if let Some(path) = path {
        namespaces
            .push(LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Network).path(path).build()?);
    }
    linux.set_namespaces(Some(namespaces));
    Ok(())
}

/// Writes the container's own names with its addresses into its `/etc/hosts`, in the place of those that were there.
fn name_in_hosts(
    directory: &ContainerDirectory,
    record: &Record,
    attachment: &Attachment,
) -> Result<(), Failed> {
    let path = directory.path().join("files").join("hosts");
    let Ok(text) = std::fs::read_to_string(&path) else { return Ok(()) };
    let names: Vec<&str> = record.network.names.iter().map(AsRef::as_ref).collect();
    let Some(first) = names.first() else { return Ok(()) };
    let is_own = |line: &str| line.split_ascii_whitespace().nth(1) == Some(first);
    let mut lines: Vec<String> = text.lines().filter(|line| !is_own(line)).map(str::to_owned).collect();
    let own = attachment.addresses.iter().map(|(address, _)| format!("{address}\t{}", names.join(" ")));
    // Behind the two of loopback, as docker has it.
    let at = lines.iter().rposition(|line| line.contains("localhost")).map_or(0, |at| at + 1);
    lines.splice(at..at, own);
    // In place: the file may be mounted already.
    std::fs::write(&path, lines.join("\n") + "\n").map_err(|e| format!("write {}: {e}", path.display()))
}

/// Namespaces, netlink and nft block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failed> + Send + 'static,
) -> Result<T, Failed> {
    tokio::task::spawn_blocking(work).await.map_err(|e| format!("set up the network: {e}"))?
}
