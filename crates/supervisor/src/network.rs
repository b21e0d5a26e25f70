//! The container's network: set up before its first start, kept over restarts by its policy, taken away at its end.
//!
//! ```text
//! start ─▶ ports reserved ─▶ connection made (written to network.json) ─▶ served ─▶ … ─▶ taken away
//!            again ─▶ renewed
//! ```

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use beta9_network::{
    Answering, Connected, Connection, Endpoint, Host, Joined, Nft, Proxies, Reserved, Source, Wanted,
};
use beta9_sys::reaper::Reaper;
use beta9_types::{
    Attachment, ContainerId, ContainerState, NetworkMode, NetworkName, PortChange, RuntimeKind,
};
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
    Bridged(Arc<Mutex<Bridged>>),
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
    proxies: Proxies,
    _names: Answering,
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
            let connection = bridged.lock().await.connection.clone();
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
                let connection = bridged.lock().await.connection.clone();
                let attachment = &connection.attachment;
                set_namespace(spec, Some(&attachment.namespace)).map_err(built)?;
                name_in_hosts(directory, record, attachment)?;
                name_the_server(directory, &connection)?;
                Ok(Some(attachment.clone()))
            }
            State::Joined { joined, .. } => {
                set_namespace(spec, Some(&joined.attachment.namespace)).map_err(built)?;
                name_in_hosts(directory, record, &joined.attachment)?;
                if let NetworkMode::Container(other) = &record.network.mode
                    && let Ok(Some(theirs)) =
                        Connection::read(&Connection::file_in(&directory.path().with_file_name(other)))
                {
                    name_the_server(directory, &theirs)?;
                }
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
                let (names, containers) = (names_of(record), directory.path().with_file_name(""));
                let place = file.clone();
                let connected = blocking(move || {
                    let _setting_up = setting_up;
                    let wanted = Wanted {
                        id: &id,
                        settings: &plan.settings,
                        policy: &options.policy,
                        rates: options.rates,
                        ports: &ports,
                        names: &names,
                        containers: &containers,
                        endpoint,
                        file: &place,
                    };
                    Connection::set_up(&host, &wanted).map_err(|e| chain(&e))
                })
                .await?;
                let Connected { connection, namespace, bound } = connected;
                let addresses: Vec<_> =
                    connection.attachment.addresses.iter().map(|(address, _)| *address).collect();
                let served = self.host().and_then(|host| {
                    let proxies = Proxies::serve(reserved, &addresses).map_err(|e| chain(&e))?;
                    let servers = record.request.options.names.dns.clone();
                    let source = Source { file, servers, host };
                    let names = Answering::serve(bound, source, &addresses).map_err(|e| chain(&e))?;
                    Ok((proxies, names))
                });
                let is_served = served.as_ref().map(drop).map_err(Clone::clone);
                let (proxies, _names) = served.unwrap_or_default();
                let bridged = Bridged { connection, _namespace: namespace, proxies, _names };
                let state = State::Bridged(Arc::new(Mutex::new(bridged)));
                if let Err(why) = is_served {
                    self.take_away(directory, state).await;
                    return Err(why);
                }
                state
            }
            NetworkMode::Namespace(path) => self.join(id, path.clone(), endpoint, file).await?,
            NetworkMode::Container(other) => {
                let path = namespace_of(directory, other)?;
                self.join(id, path, endpoint, file).await?
            }
        };
        if record.runtime == RuntimeKind::Gvisor {
            let path = match &state {
                State::Bridged(bridged) => bridged.lock().await.connection.attachment.namespace.clone(),
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

    /// Changes which ports the host serves: all of it, or nothing.
    pub(crate) fn change_ports(
        &self,
        directory: &ContainerDirectory,
        change: PortChange,
    ) -> impl Future<Output = Result<(), Failed>> + Send + use<> {
        let bridged = match &self.state {
            State::Bridged(bridged) => Ok(Arc::clone(bridged)),
            _ => Err("the container has no ports of the host: its network is not the bridge".to_owned()),
        };
        let (host, file) = (self.host(), Connection::file_in(directory.path()));
        async move {
            let (bridged, host) = (bridged?, host?);
            let mut bridged = bridged.lock().await;
            let mut ports = bridged.connection.ports.clone();
            for gone in &change.remove {
                if !ports.iter().any(|port| port.inner() == *gone) {
                    return Err(format!("port {gone} of the container is not published"));
                }
            }
            ports.retain(|port| !change.remove.contains(&port.inner()));
            let kept = ports.clone();
            // One that is taken is found out before anything is changed. One that is being given back is not free yet.
            let reserved = Reserved::take(&change.add).map_err(|e| chain(&e))?;
            ports.extend(reserved.ports());
            let written =
                blocking(move || Connection::set_ports(&host, &file, &ports).map_err(|e| chain(&e)));
            bridged.connection = written.await?;
            let attachment = &bridged.connection.attachment;
            let addresses: Vec<_> = attachment.addresses.iter().map(|(address, _)| *address).collect();
            bridged.proxies.keep(&kept).await;
            bridged.proxies.add(reserved, &addresses).map_err(|e| chain(&e))
        }
    }

    /// Takes it away, also where a start that was abandoned is still setting it up.
    pub(crate) async fn end(&mut self, directory: &ContainerDirectory, record: &Record) {
        drop(self.setting_up.lock().await);
        match std::mem::replace(&mut self.state, State::Absent) {
            State::Absent => self.clean_up(directory, record).await,
            state => self.take_away(directory, state).await,
        }
        if is_left(directory) {
            // Once more: what was in the way may be gone.
            self.clean_up(directory, record).await;
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
                // Ports stay reserved until no rule sends anything to them, and are not changed any more.
                let bridged = bridged.lock().await;
                let connection = bridged.connection.clone();
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

/// Whether something of a container's network is there that has to be taken away yet.
pub(crate) fn is_left(directory: &ContainerDirectory) -> bool {
    Connection::file_in(directory.path()).exists()
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

/// The names by which other containers find it: its own, those that were asked for, its host name if that is one word, and the
/// beginning of its id.
fn names_of(record: &Record) -> Vec<NetworkName> {
    let own = record.request.name.iter().map(ToString::to_string);
    let aliases = record.request.options.network.aliases.iter().map(ToString::to_string);
    let host_names = record.network.names.iter().map(ToString::to_string).filter(|name| !name.contains('.'));
    let mut names: Vec<NetworkName> = Vec::new();
    for name in own.chain(aliases).chain(host_names).chain([record.id.short().to_string()]) {
        match NetworkName::parse(&name.to_ascii_lowercase()) {
            Ok(name) if !names.contains(&name) => names.push(name),
            _ => {}
        }
    }
    names
}

/// Writes into the container's `/etc/resolv.conf` that its name server is the one on the gateway. What is asked there is
/// passed on to the servers that the file had.
fn name_the_server(directory: &ContainerDirectory, connection: &Connection) -> Result<(), Failed> {
    let path = directory.path().join("files").join("resolv.conf");
    let Ok(text) = std::fs::read_to_string(&path) else { return Ok(()) };
    let own = format!("nameserver {}", connection.settings.gateway4());
    let others = text.lines().filter(|line| !line.starts_with("nameserver "));
    let lines: Vec<&str> = std::iter::once(own.as_str()).chain(others).collect();
    // In place: the file may be mounted already.
    std::fs::write(&path, lines.join("\n") + "\n").map_err(|e| format!("write {}: {e}", path.display()))
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
