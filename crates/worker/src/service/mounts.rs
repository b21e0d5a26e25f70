//! What a container mounts: from what was asked for, and the image's own wishes, to paths of this host.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use beta9_types::{
    BindMount, ContainerId, ContainerRequest, Missing, MountOrigin, MountRequest, VolumeContent, VolumeLife,
    VolumeName, VolumeUse,
};
use beta9_volume::{Hold, ImageContent, NewVolume, Volumes};

use crate::error::{Error, ErrorKind, Result};
use crate::service::volumes::{in_use, volume_error};
use crate::service::{Worker, blocking};

/// How long a host path may take to be looked at: it may be on a file system that does not answer.
const LOOK_DEADLINE: Duration = Duration::from_secs(10);

/// The mounts of a container in the making. What was made for it stays once it is [kept](Self::keep).
pub(super) struct Mounted {
    volumes: Volumes,
    own: Vec<VolumeName>,
    root: PathBuf,
    hold: Hold,
}

impl Mounted {
    /// The container is on record.
    pub(super) async fn keep(self) -> Result<()> {
        blocking(move || self.own.iter().try_for_each(|name| self.volumes.settle(name)))
            .await?
            .map_err(volume_error)
    }

    /// The container does not come to be.
    pub(super) async fn give_up(self) {
        let Self { volumes, own, root, hold } = self;
        let removed = blocking(move || {
            drop(hold);
            if own.is_empty() { Ok(Vec::new()) } else { volumes.remove(&own, &|| in_use(&root)) }
        });
        if let Ok(Err(error)) = removed.await {
            tracing::warn!(error = crate::error::chain(&error), "volumes of a failed create are left");
        }
    }
}

/// The image's side of mounts.
pub(super) struct ImageSide {
    /// The paths of its `VOLUME`s.
    pub(super) volumes: Vec<String>,
    /// Unpacks it where that has not happened, and says where.
    pub(super) tree: Box<dyn Fn() -> Result<PathBuf> + Send>,
}

impl Worker {
    /// Fills in `request.mounts`, and makes the volumes among them.
    pub(super) async fn mount(
        &self,
        id: &ContainerId,
        request: &mut ContainerRequest,
        image: ImageSide,
    ) -> Result<Mounted> {
        let files = &request.options.files;
        let mut taken: HashSet<PathBuf> = HashSet::new();
        let asked = files.mounts.iter().map(|mount| mount.target.clone());
        let tmpfs = files.tmpfs.iter().map(|mount| Path::new(mount.target()).components().collect());
        for target in asked.chain(tmpfs) {
            if !taken.insert(target.clone()) {
                let text = format!("two mounts at {}: leave one out", target.display());
                return Err(Error::new(ErrorKind::Invalid, text));
            }
        }
        let mut wanted = Vec::new();
        for mount in files.mounts.clone() {
            wanted.push(self.wanted(mount).await?);
        }
        for from in &files.volumes_from {
            let (_, record) = self.find(&from.container)?;
            for mount in record.request.mounts {
                if taken.insert(mount.target.clone()) {
                    let access = from.access.unwrap_or(mount.access);
                    wanted.push(Wanted::There(BindMount { access, ..mount }));
                }
            }
        }
        for path in &image.volumes {
            let mount = MountRequest::parse_volume(path).map_err(|e| {
                let text = format!("image {} has a volume that cannot be mounted", request.image);
                Error::caused(ErrorKind::Invalid, text, e)
            })?;
            if taken.insert(mount.target.clone()) {
                wanted.push(Wanted::Asked(mount));
            }
        }
        let (volumes, root, id) = (Volumes::of(&self.root), self.root.clone(), id.clone());
        let made = blocking(move || make(volumes, root, &id, wanted, &image)).await?;
        let (mounts, mounted) = made?;
        request.mounts = mounts;
        Ok(mounted)
    }

    /// What a request means on this host. A source's links are resolved now, once: what they point to later is not what
    /// was asked for.
    async fn wanted(&self, mount: MountRequest) -> Result<Wanted> {
        let MountOrigin::Host { path, missing } = &mount.origin else { return Ok(Wanted::Asked(mount)) };
        let (path, missing) = (path.clone(), *missing);
        let (shown, looked) = (path.display().to_string(), blocking(move || existing(&path, missing)));
        let source = tokio::time::timeout(LOOK_DEADLINE, looked).await.map_err(|_| {
            let seconds = LOOK_DEADLINE.as_secs();
            let text = format!(
                "mount source {shown} does not answer within {seconds} s: see what it is mounted from"
            );
            Error::new(ErrorKind::Timeout, text)
        })???;
        let bound = BindMount::new(source, mount.target.clone(), mount.access)?;
        Ok(Wanted::There(with_options(bound, &mount)))
    }
}

enum Wanted {
    /// A volume.
    Asked(MountRequest),
    /// A path of this host.
    There(BindMount),
}

fn with_options(bound: BindMount, asked: &MountRequest) -> BindMount {
    let MountRequest { limits, consistency, propagation, .. } = *asked;
    BindMount { limits, consistency, propagation, ..bound }
}

fn existing(path: &Path, missing: Missing) -> Result<PathBuf> {
    let unusable = |e| {
        let text = format!("mount source {} cannot be used", path.display());
        Error::caused(ErrorKind::Invalid, text, e)
    };
    match (path.canonicalize(), missing) {
        (Ok(path), _) => Ok(path),
        (Err(e), Missing::Create) if e.kind() == std::io::ErrorKind::NotFound => {
            // docker's `-v` does so, too: with root's rights, for anybody to enter.
            std::fs::create_dir_all(path).and_then(|()| path.canonicalize()).map_err(unusable)
        }
        (Err(e), Missing::Refuse) if e.kind() == std::io::ErrorKind::NotFound => {
            let text = format!("mount source {} does not exist: create it first, or use -v", path.display());
            Err(Error::new(ErrorKind::Invalid, text))
        }
        (Err(e), _) => Err(unusable(e)),
    }
}

fn make(
    volumes: Volumes,
    root: PathBuf,
    id: &ContainerId,
    wanted: Vec<Wanted>,
    image: &ImageSide,
) -> Result<(Vec<BindMount>, Mounted)> {
    let hold = volumes.hold().map_err(volume_error)?;
    let mut mounted = Mounted { volumes, own: Vec::new(), root, hold };
    let made = wanted.into_iter().map(|wanted| mounted.one(id, wanted, image)).collect::<Result<Vec<_>>>();
    match made {
        Ok(mounts) => Ok((mounts, mounted)),
        Err(error) => {
            let Mounted { volumes, own, root, hold } = mounted;
            drop(hold);
            let _ = volumes.remove(&own, &|| in_use(&root));
            Err(error)
        }
    }
}

impl Mounted {
    fn one(&mut self, id: &ContainerId, wanted: Wanted, image: &ImageSide) -> Result<BindMount> {
        let mount = match wanted {
            Wanted::There(mount) => return Ok(mount),
            Wanted::Asked(mount) => mount,
        };
        let MountOrigin::Volume { name, content, labels } = &mount.origin else {
            return Err(Error::new(ErrorKind::Internal, "a host path was taken for a volume"));
        };
        let life = if name.is_some() { VolumeLife::Named } else { VolumeLife::Anonymous };
        let name = name.clone().unwrap_or_else(VolumeName::random);
        let container = (life == VolumeLife::Anonymous).then_some(id);
        let new = NewVolume { name: name.clone(), labels: labels.clone(), container };
        let volume = self.volumes.create(new).map_err(volume_error)?;
        if life == VolumeLife::Anonymous {
            self.own.push(name.clone());
        }
        if *content == VolumeContent::Image && self.volumes.is_empty(&volume).map_err(volume_error)? {
            let tree = (image.tree)()?;
            let content = ImageContent { tree: &tree, path: &mount.target };
            self.volumes.fill(&volume, content, &|| in_use(&self.root)).map_err(volume_error)?;
        }
        let bound = BindMount::new(volume.path, mount.target.clone(), mount.access)?;
        Ok(BindMount { volume: Some(VolumeUse { name, life }), ..with_options(bound, &mount) })
    }
}
