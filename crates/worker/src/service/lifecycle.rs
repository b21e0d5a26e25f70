//! What can be done with a container.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use beta9_microvm::EngineCounters;
use beta9_supervisor::{
    ContainerDirectory, OwnVolumes, Record, RootfsSource, StateFile, Supervisor, Until, end_lending, forget,
    needs_recovery,
};
use beta9_types::{
    ContainerId, ContainerRequest, ContainerState, ExecId, Exit, ImageReference, LogLimits, RestartPolicy,
    SignalNumber, TerminalSize,
};

use beta9_volume::Volumes;

use crate::api;
use crate::error::{Error, ErrorKind, Result};
use crate::pools::Assigned;
use crate::service::follow::Follower;
use crate::service::images::{Wish, check_runs_here};
use crate::service::mounts::ImageSide;
use crate::service::volumes::in_use;
use crate::service::{Worker, blocking, launch, network, now_us, private_directory};
use crate::spec;

/// A container and where it is in its life.
pub(super) struct Described {
    pub(super) record: Record,
    pub(super) state: StateFile,
    /// Its end of its network, while it has one.
    pub(super) network: Option<api::NetworkEnd>,
}

impl Described {
    fn new(directory: &ContainerDirectory, record: Record, state: StateFile) -> Self {
        let network = network::end(directory, &record);
        Self { record, state, network }
    }
}

impl Worker {
    /// Accepts a request: every choice is settled, and the container exists.
    pub(super) async fn create(
        &self,
        id: ContainerId,
        mut request: ContainerRequest,
        wish: Wish,
    ) -> Result<(ContainerId, Vec<String>)> {
        let assigned = self.pools.assign(request.pool.as_deref(), request.runtime).await?;
        // Nobody watches: who wants to see the progress pulls first.
        self.fulfil(wish, Arc::new(|_| {})).await?;
        // The lease keeps the image until the record does.
        let (rootfs, tree, image, _lease) = self.rootfs(&request.image, &assigned).await?;
        let side = image_side(&image, Arc::clone(&self.store), tree.clone(), assigned.runtime.is_microvm());
        let mounted = self.mount(&id, &mut request, side).await?;
        let image = (image, rootfs, tree);
        match self.record(id, request, assigned, image).await {
            Ok(created) => {
                mounted.keep().await?;
                Ok(created)
            }
            Err(error) => {
                mounted.give_up().await;
                Err(error)
            }
        }
    }

    /// Puts a container on record whose image and mounts are there.
    async fn record(
        &self,
        id: ContainerId,
        request: ContainerRequest,
        assigned: Assigned,
        (image, rootfs, tree): (beta9_image::Image, RootfsSource, std::path::PathBuf),
    ) -> Result<(ContainerId, Vec<String>)> {
        let directory = ContainerDirectory::of(&self.root, &id);
        let place = spec::Place {
            id: &id,
            root: &self.root,
            directory: directory.path(),
            tree: &tree,
            runtime: assigned.runtime,
            settings: &assigned.settings,
            host: &spec::HostLimits::of_host(),
        };
        let mut plan = spec::plan(&place, &request, &image.config)?;
        let hostname = plan.spec.hostname().clone().unwrap_or_default();
        let (network, warning) = self.network(&request, assigned.runtime, &hostname)?;
        plan.warnings.extend(warning);
        let log = self.log_limits(&request)?;

        let record = Record {
            id: id.clone(),
            pool: assigned.pool,
            runtime_asked: assigned.asked,
            runtime: assigned.runtime,
            fallback_reason: assigned.fallback_reason,
            settings: assigned.settings,
            image_digest: image.digest.clone(),
            args: plan.args,
            rootfs,
            created_us: now_us(),
            log,
            tree,
            labels: plan.labels,
            stop_signal: plan.stop_signal,
            stop_timeout: plan.stop_timeout,
            network,
            request,
        };
        claim_directory(&directory, &id)?;
        let written = self.claim_name(&record.request.name, &id).and_then(|()| {
            write_files(directory.path(), &plan.files)?;
            plan.spec
                .save(directory.spec())
                .map_err(|e| Error::internal(format!("write {}", directory.spec().display()), e))?;
            Ok(record.write(&directory)?)
        });
        if let Err(error) = written {
            if error.kind() == ErrorKind::Taken {
                // The name is somebody else's: only our directory goes.
                let _ = fs::remove_dir_all(directory.path());
            } else {
                forget(&directory, &record, OwnVolumes::Keep);
            }
            return Err(error);
        }
        self.tell(&record, "create", &[]);
        self.keep_image_limit(image.digest).await;
        Ok((id, plan.warnings))
    }

    /// What the request says, over what the worker says.
    fn log_limits(&self, request: &ContainerRequest) -> Result<LogLimits> {
        let defaults = self.pools.log_limits();
        let max_size = request.log_max_size.unwrap_or(defaults.max_size);
        Ok(LogLimits::new(max_size, request.log_max_files.unwrap_or(defaults.max_files))?)
    }

    /// The image in the form that the runtime takes, and where its users are looked up.
    async fn rootfs(
        &self,
        reference: &ImageReference,
        assigned: &Assigned,
    ) -> Result<(RootfsSource, std::path::PathBuf, beta9_image::Image, beta9_image::Lease)> {
        let (store, reference) = (self.store.clone(), reference.clone());
        let (is_microvm, root) = (assigned.runtime.is_microvm(), self.root.clone());
        blocking(move || {
            let (image, lease) = store.claim(&reference).map_err(image_error)?;
            check_runs_here(&image)?;
            if is_microvm {
                let block = store.block(&image).map_err(image_error)?;
                let format = block.format.to_string();
                let source = RootfsSource::Block { image: block.path, format, store: root };
                let accounts = store.accounts(&image).map_err(image_error)?;
                return Ok((source, accounts, image, lease));
            }
            let tree = store.tree(&image).map_err(image_error)?;
            Ok((RootfsSource::Tree(tree.clone()), tree, image, lease))
        })
        .await?
    }

    /// Starts a container that was created or is over; returns when its process runs or its start failed.
    pub(super) async fn start(&self, container: &str) -> Result<Described> {
        let (directory, record) = self.find(container)?;
        if !self.is_over(&directory).await? {
            // What was wanted is so already.
            return self.described(directory, record).await;
        }
        launch::start(&directory).await?;
        self.observe(&directory, &record);
        let state = Follower::new(directory.clone(), Until::Started).last().await?;
        Ok(Described::new(&directory, record, state))
    }

    /// Stops a container if it runs, and starts it again.
    pub(super) async fn restart(
        &self,
        container: &str,
        grace: Option<Duration>,
        signal: Option<SignalNumber>,
    ) -> Result<Described> {
        self.stop(container, grace, signal).await?;
        self.start(container).await
    }

    /// Waits for a container's end.
    pub(super) async fn wait(&self, container: &str) -> Result<Exit> {
        let (directory, _) = self.find(container)?;
        let state = Follower::new(directory, Until::Gone).last().await?;
        state.state.exit().cloned().ok_or_else(|| Error::new(ErrorKind::Internal, "the container has no end"))
    }

    /// Every container, the newest first. Those whose supervisor died are cleaned up first.
    pub(super) async fn list(&self) -> Result<Vec<Described>> {
        let mut found = Vec::new();
        for id in self.ids()? {
            match self.describe_id(&id).await {
                Ok(Some(described)) => found.push(described),
                // Removed since it was listed.
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(container = %id, error = crate::error::chain(&error), "container cannot be read");
                }
            }
        }
        found.sort_by_key(|described| std::cmp::Reverse(described.record.created_us));
        Ok(found)
    }

    /// Runtime and state of every container.
    pub(crate) async fn tally(&self) -> Result<Vec<(String, String)>> {
        let one = |c: Described| (c.record.runtime.to_string(), c.state.state.status().to_owned());
        Ok(self.list().await?.into_iter().map(one).collect())
    }

    /// What engines have counted, by container, where they count.
    pub(crate) async fn engine_counters(&self) -> Result<Vec<(String, EngineCounters)>> {
        let mut counted = Vec::new();
        for Described { record, state, .. } in self.list().await? {
            if state.state.pid().is_some()
                && let Some(counters) =
                    beta9_microvm::engine_counters(record.runtime, &record.settings, &record.id)
            {
                counted.push((record.id.to_string(), counters));
            }
        }
        Ok(counted)
    }

    async fn describe_id(&self, id: &ContainerId) -> Result<Option<Described>> {
        match self.by_id(id)? {
            Some((directory, record)) => self.described(directory, record).await.map(Some),
            None => Ok(None),
        }
    }

    /// One container.
    pub(super) async fn inspect(&self, container: &str) -> Result<Described> {
        let (directory, record) = self.find(container)?;
        self.described(directory, record).await
    }

    async fn described(&self, directory: ContainerDirectory, record: Record) -> Result<Described> {
        if needs_recovery(&directory)? {
            launch::recover(&directory).await?;
        }
        let state = StateFile::read(&directory)?;
        Ok(Described::new(&directory, record, state))
    }

    /// Its stop signal or the one given, and SIGKILL after `grace` or its own stop timeout; returns when the container is gone.
    pub(super) async fn stop(
        &self,
        container: &str,
        grace: Option<Duration>,
        signal: Option<SignalNumber>,
    ) -> Result<()> {
        let (directory, record) = self.find(container)?;
        let grace = grace.unwrap_or_else(|| Duration::from_secs(record.stop_timeout.into()));
        if self.is_over(&directory).await? {
            return Ok(());
        }
        self.tell(&record, "stop", &[]);
        let mut follower = Follower::new(directory.clone(), Until::Gone);
        // Connected before the stop, so that a record which goes away with its container is still seen.
        follower.next().await?;
        Supervisor::of(directory).stop(grace, signal).await?;
        follower.last_or_gone().await
    }

    /// Sends a signal.
    pub(super) async fn kill(&self, container: &str, signal: i32, all: bool) -> Result<()> {
        let (directory, record) = self.find(container)?;
        if self.is_over(&directory).await? {
            let text = format!("container {} is not running", record.id.short());
            return Err(Error::new(ErrorKind::Precondition, text));
        }
        Supervisor::of(directory).signal(signal, all).await?;
        self.tell(&record, "kill", &[("signal", signal.to_string())]);
        Ok(())
    }

    /// Sends a signal to a process that was executed in a container.
    pub(super) async fn kill_exec(&self, container: &str, exec: ExecId, signal: i32) -> Result<()> {
        let (directory, _) = self.find(container)?;
        Ok(Supervisor::of(directory).signal_exec(exec, signal).await?)
    }

    /// Changes the size of a terminal.
    pub(super) async fn resize(
        &self,
        container: &str,
        exec: Option<ExecId>,
        size: TerminalSize,
    ) -> Result<()> {
        let (directory, _) = self.find(container)?;
        Ok(Supervisor::of(directory).resize(exec, size).await?)
    }

    /// Removes a container's record; with `force` after killing it.
    pub(super) async fn remove(&self, container: &str, force: bool, volumes: OwnVolumes) -> Result<()> {
        let (directory, record) = self.find(container)?;
        if !self.is_over(&directory).await? {
            if !force {
                let text = format!(
                    "container {} is running: stop it first, or remove it with --force",
                    record.id.short()
                );
                return Err(Error::new(ErrorKind::Precondition, text));
            }
            let mut follower = Follower::new(directory.clone(), Until::Gone);
            follower.next().await?;
            // Not a signal: a stop also ends what SIGKILL cannot reach, such as a stuck VM.
            Supervisor::of(directory.clone()).stop(Duration::ZERO, None).await?;
            follower.last_or_gone().await?;
        }
        end_lending(&directory).await?;
        let gone = record.clone();
        blocking(move || forget(&directory, &record, volumes)).await?;
        self.tell(&gone, "destroy", &[]);
        Ok(())
    }

    /// Whether nothing of the container runs: it was never started, or it is over and cleaned up.
    pub(super) async fn is_over(&self, directory: &ContainerDirectory) -> Result<bool> {
        if needs_recovery(directory)? {
            launch::recover(directory).await?;
        }
        let state = StateFile::read(directory)?;
        Ok(state.state == ContainerState::Created || (state.cleaned && state.state.exit().is_some()))
    }

    /// Takes over what an earlier worker left: running containers go on, lost ones are cleaned up.
    pub(crate) async fn adopt(&self) -> Result<()> {
        let (mut running, mut lost) = (0u32, 0u32);
        for id in self.ids()? {
            let Some((directory, record)) = self.by_id(&id).unwrap_or_default() else {
                remove_interrupted(ContainerDirectory::of(&self.root, &id).path());
                continue;
            };
            if needs_recovery(&directory)? {
                lost += 1;
                launch::recover(&directory).await?;
                if record.request.auto_remove {
                    blocking(move || forget(&directory, &record, OwnVolumes::Remove)).await?;
                    continue;
                }
            } else if StateFile::read(&directory)?.state.pid().is_some() {
                running += 1;
                self.observe(&directory, &record);
            }
            if by_policy(&record, &StateFile::read(&directory)?)
                && let Err(error) = self.start(record.id.as_str()).await
            {
                tracing::warn!(container = %record.id, error = crate::error::chain(&error), "container is not restarted");
            }
        }
        let (volumes, root) = (Volumes::of(&self.root), self.root.clone());
        if let Err(error) = blocking(move || volumes.tidy(&|| in_use(&root))).await? {
            tracing::warn!(
                error = crate::error::chain(&error),
                "volumes of containers that never came to be are left"
            );
        }
        if running + lost > 0 {
            tracing::info!(running, lost, "containers of an earlier worker adopted");
        }
        Ok(())
    }
}

impl Follower {
    /// Waits for the end; that the record went away with the container is an end, too.
    async fn last_or_gone(&mut self) -> Result<()> {
        match self.last().await {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Whether a worker that begins to serve starts the container: docker's rule, which a lost supervisor falls under, too.
fn by_policy(record: &Record, state: &StateFile) -> bool {
    let is_over = state.cleaned && state.state.exit().is_some();
    is_over
        && match record.request.options.life.restart {
            RestartPolicy::Always => true,
            RestartPolicy::UnlessStopped => !state.stopped,
            RestartPolicy::No | RestartPolicy::OnFailure(_) => false,
        }
}

fn write_files(directory: &Path, files: &[spec::GeneratedFile]) -> Result<()> {
    for file in files {
        let path = file.path(directory);
        let made =
            path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, &file.content));
        made.map_err(|e| Error::internal(format!("write {}", path.display()), e))?;
    }
    Ok(())
}

/// A directory without a record is a create that was interrupted, unless it is so young that it may be under way.
fn remove_interrupted(directory: &Path) {
    const UNDER_WAY: Duration = Duration::from_secs(60);
    let age = fs::metadata(directory).and_then(|meta| meta.modified()).map(|time| time.elapsed());
    if matches!(age, Ok(Ok(age)) if age > UNDER_WAY) {
        let _ = fs::remove_dir_all(directory);
    }
}

/// What an image says of volumes, and how its files are reached: for a microVM they are unpacked only for this.
fn image_side(
    image: &beta9_image::Image,
    store: Arc<beta9_image::Store>,
    tree: std::path::PathBuf,
    is_microvm: bool,
) -> ImageSide {
    let volumes = image.config.config().as_ref().and_then(|config| config.volumes().clone());
    let image = image.clone();
    let tree = move || if is_microvm { store.tree(&image).map_err(image_error) } else { Ok(tree.clone()) };
    ImageSide { volumes: volumes.unwrap_or_default(), tree: Box::new(tree) }
}

fn claim_directory(directory: &ContainerDirectory, id: &ContainerId) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if let Some(parent) = directory.path().parent() {
        private_directory(parent).map_err(|e| Error::internal(format!("create {}", parent.display()), e))?;
    }
    match fs::DirBuilder::new().mode(0o700).create(directory.path()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            Err(Error::new(ErrorKind::Taken, format!("container id {id} is taken: choose another")))
        }
        Err(e) => Err(Error::internal(format!("create {}", directory.path().display()), e)),
    }
}

/// The store says what is wrong with an image; the kind decides the code.
pub(super) fn image_error(error: beta9_image::Error) -> Error {
    let kind = match error.kind() {
        beta9_image::ErrorKind::NotFound => ErrorKind::NotFound,
        beta9_image::ErrorKind::Invalid => ErrorKind::Invalid,
        beta9_image::ErrorKind::Ambiguous => ErrorKind::Invalid,
        beta9_image::ErrorKind::Full => ErrorKind::Precondition,
        beta9_image::ErrorKind::Busy => ErrorKind::Precondition,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, crate::error::chain(&error))
}
