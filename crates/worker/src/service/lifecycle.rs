//! What can be done with a container.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use beta9_supervisor::{
    ContainerDirectory, Record, RootfsSource, StateFile, Supervisor, Until, forget, needs_recovery,
};
use beta9_types::{ContainerId, ContainerRequest, ContainerState, Exit, ImageReference};

use crate::error::{Error, ErrorKind, Result};
use crate::pools::Assigned;
use crate::service::follow::Follower;
use crate::service::{Worker, blocking, launch, now_us, private_directory};
use crate::spec;

/// A container and where it is in its life.
pub(super) struct Described {
    pub(super) record: Record,
    pub(super) state: StateFile,
}

impl Worker {
    /// Accepts a request: every choice is settled, and the container exists.
    pub(super) async fn create(&self, id: ContainerId, mut request: ContainerRequest) -> Result<ContainerId> {
        let assigned = self.pools.assign(request.pool.as_deref(), request.runtime).await?;
        for mount in &mut request.mounts {
            mount.source = existing(&mount.source)?;
        }
        let (rootfs, tree, image) = self.rootfs(&request.image, &assigned).await?;
        let plan = spec::plan(&id, &request, &image.config, &tree)?;

        let record = Record {
            id: id.clone(),
            pool: assigned.pool,
            runtime_asked: assigned.asked,
            runtime: assigned.runtime,
            fallback_reason: assigned.fallback_reason,
            settings: assigned.settings,
            image_digest: image.digest,
            args: plan.args,
            rootfs,
            created_us: now_us(),
            request,
        };
        let directory = ContainerDirectory::of(&self.root, &id);
        claim_directory(&directory, &id)?;
        let written = self.claim_name(&record).and_then(|()| {
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
                forget(&directory, &record);
            }
            return Err(error);
        }
        self.tell(&record, "create", &[]);
        Ok(id)
    }

    /// The image in the form that the runtime takes. Users are looked up in the unpacked tree in any case.
    async fn rootfs(
        &self,
        reference: &ImageReference,
        assigned: &Assigned,
    ) -> Result<(RootfsSource, std::path::PathBuf, beta9_image::Image)> {
        let (store, reference) = (self.store.clone(), reference.clone());
        let (is_microvm, root) = (assigned.runtime.is_microvm(), self.root.clone());
        blocking(move || {
            let image = store.get(&reference)?;
            let tree = store.tree(&image)?;
            let source = if is_microvm {
                let block = store.block(&image)?;
                RootfsSource::Block { image: block.path, format: block.format.to_string(), store: root }
            } else {
                RootfsSource::Tree(tree.clone())
            };
            Ok((source, tree, image))
        })
        .await?
        .map_err(image_error)
    }

    fn claim_name(&self, record: &Record) -> Result<()> {
        let Some(name) = &record.request.name else { return Ok(()) };
        let path = self.name_file(name);
        let claimed = fs::OpenOptions::new().create_new(true).write(true).open(&path);
        match claimed.and_then(|mut file| file.write_all(record.id.as_str().as_bytes())) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let text =
                    format!("container name {name} is taken: remove that container, or choose another name");
                Err(Error::new(ErrorKind::Taken, text))
            }
            Err(e) => Err(Error::internal(format!("claim {}", path.display()), e)),
        }
    }

    /// Starts a created container; returns when its process runs or its start failed.
    pub(super) async fn start(&self, container: &str) -> Result<Described> {
        let (directory, record) = self.find(container)?;
        if StateFile::read(&directory)?.state != ContainerState::Created {
            let text = format!("container {} was started before: create another one", record.id.short());
            return Err(Error::new(ErrorKind::Precondition, text));
        }
        launch::start(&directory).await?;
        self.observe(&directory, &record);
        let state = Follower::new(directory, Until::Started).last().await?;
        Ok(Described { record, state })
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
        Ok(Described { record, state })
    }

    /// SIGTERM, and SIGKILL after `grace`; returns when the container is gone.
    pub(super) async fn stop(&self, container: &str, grace: Duration) -> Result<()> {
        let (directory, record) = self.find(container)?;
        if self.is_over(&directory).await? {
            return Ok(());
        }
        self.tell(&record, "stop", &[]);
        let mut follower = Follower::new(directory.clone(), Until::Gone);
        // Connected before the stop, so that a record which goes away with its container is still seen.
        follower.next().await?;
        Supervisor::of(directory).stop(grace).await?;
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

    /// Removes a container's record; with `force` after killing it.
    pub(super) async fn remove(&self, container: &str, force: bool) -> Result<()> {
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
            Supervisor::of(directory.clone()).stop(Duration::ZERO).await?;
            follower.last_or_gone().await?;
        }
        let gone = record.clone();
        blocking(move || forget(&directory, &record)).await?;
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
                    blocking(move || forget(&directory, &record)).await?;
                }
            } else if StateFile::read(&directory)?.state.pid().is_some() {
                running += 1;
                self.observe(&directory, &record);
            }
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

/// A directory without a record is a create that was interrupted, unless it is so young that it may be under way.
fn remove_interrupted(directory: &Path) {
    const UNDER_WAY: Duration = Duration::from_secs(60);
    let age = fs::metadata(directory).and_then(|meta| meta.modified()).map(|time| time.elapsed());
    if matches!(age, Ok(Ok(age)) if age > UNDER_WAY) {
        let _ = fs::remove_dir_all(directory);
    }
}

/// A mount's source with its links resolved now, once: what it points to later is not what was asked for.
fn existing(source: &Path) -> Result<std::path::PathBuf> {
    source.canonicalize().map_err(|e| {
        let text = format!("mount source {} cannot be used: create it first", source.display());
        Error::caused(ErrorKind::Invalid, text, e)
    })
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
        _ => ErrorKind::Internal,
    };
    Error::new(kind, crate::error::chain(&error))
}
