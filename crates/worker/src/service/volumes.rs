//! Volumes over gRPC, and which of them containers have.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use beta9_types::{VolumeLife, VolumeName};
use beta9_volume::{NewVolume, Unused, Volume, Volumes};
use tonic::{Request, Response, Status};

use crate::api;
use crate::api::volume_service_server::VolumeService;
use crate::error::{Error, ErrorKind};
use crate::service::{Worker, blocking};

/// Longest labels of one volume.
const MAX_LABELS: usize = 64 << 10;

/// The volumes that containers on record have. A record that cannot be read is an error: what it has must not be lost.
pub(super) fn in_use(root: &Path) -> Result<HashSet<VolumeName>, Box<dyn std::error::Error + Send + Sync>> {
    Ok(beta9_supervisor::volumes_in_use(root)?.into_keys().collect())
}

/// The crate says what is wrong; the kind decides the code.
pub(super) fn volume_error(error: beta9_volume::Error) -> Error {
    let kind = match error.kind() {
        beta9_volume::ErrorKind::NotFound => ErrorKind::NotFound,
        beta9_volume::ErrorKind::InUse => ErrorKind::Precondition,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, crate::error::chain(&error))
}

/// The service.
pub(super) struct VolumeServer {
    worker: Arc<Worker>,
}

impl VolumeServer {
    pub(super) fn new(worker: Arc<Worker>) -> Self {
        Self { worker }
    }

    /// Does blocking work on the volumes of the worker's root.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(Volumes, &Path) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let root = self.worker.root.clone();
        blocking(move || work(Volumes::of(&root), &root)).await?
    }
}

#[tonic::async_trait]
impl VolumeService for VolumeServer {
    async fn create_volume(
        &self,
        request: Request<api::CreateVolumeRequest>,
    ) -> Result<Response<api::CreateVolumeResponse>, Status> {
        let api::CreateVolumeRequest { name, labels } = request.into_inner();
        let name = if name.is_empty() { VolumeName::random() } else { name.parse().map_err(Error::from)? };
        let size: usize = labels.iter().map(|(name, value)| name.len() + value.len()).sum();
        if size > MAX_LABELS || labels.contains_key("") {
            let text = "labels of a volume need names and may be 64 KiB together: use fewer or shorter ones";
            return Err(Error::new(ErrorKind::Invalid, text).into());
        }
        let labels = labels.into_iter().collect();
        let volume = self
            .with(move |volumes, root| {
                let new = NewVolume { name, labels, container: None };
                let volume = volumes.create(new).map_err(volume_error)?;
                Ok(message(volume, &mut holders(root)?))
            })
            .await?;
        Ok(Response::new(api::CreateVolumeResponse { volume: Some(volume) }))
    }

    async fn list_volumes(
        &self,
        _: Request<api::ListVolumesRequest>,
    ) -> Result<Response<api::ListVolumesResponse>, Status> {
        let volumes = self
            .with(|volumes, root| {
                let mut holders = holders(root)?;
                let listed = volumes.list().map_err(volume_error)?;
                Ok(listed.into_iter().map(|volume| message(volume, &mut holders)).collect())
            })
            .await?;
        Ok(Response::new(api::ListVolumesResponse { volumes }))
    }

    async fn inspect_volume(
        &self,
        request: Request<api::InspectVolumeRequest>,
    ) -> Result<Response<api::InspectVolumeResponse>, Status> {
        let name: VolumeName = request.into_inner().name.parse().map_err(Error::from)?;
        let volume = self
            .with(move |volumes, root| {
                let volume = volumes.get(&name).map_err(volume_error)?;
                Ok(message(volume, &mut holders(root)?))
            })
            .await?;
        Ok(Response::new(api::InspectVolumeResponse { volume: Some(volume) }))
    }

    async fn remove_volume(
        &self,
        request: Request<api::RemoveVolumeRequest>,
    ) -> Result<Response<api::RemoveVolumeResponse>, Status> {
        let api::RemoveVolumeRequest { name, force } = request.into_inner();
        let name: VolumeName = name.parse().map_err(Error::from)?;
        self.with(move |volumes, root| {
            let kept = volumes.remove(&[name], &|| in_use(root)).map_err(volume_error)?;
            match kept.into_iter().next() {
                Some((_, error)) if !(force && error.kind() == beta9_volume::ErrorKind::NotFound) => {
                    Err(volume_error(error))
                }
                _ => Ok(()),
            }
        })
        .await?;
        Ok(Response::new(api::RemoveVolumeResponse {}))
    }

    async fn prune_volumes(
        &self,
        request: Request<api::PruneVolumesRequest>,
    ) -> Result<Response<api::PruneVolumesResponse>, Status> {
        let api::PruneVolumesRequest { all, labels } = request.into_inner();
        let unused = if all { Unused::All } else { Unused::Anonymous };
        let (names, freed_bytes) = self
            .with(move |volumes, root| {
                let fits = |volume: &Volume| labels.iter().all(|label| has(volume, label));
                volumes.prune(unused, &fits, &|| in_use(root)).map_err(volume_error)
            })
            .await?;
        let names = names.into_iter().map(String::from).collect();
        Ok(Response::new(api::PruneVolumesResponse { names, freed_bytes }))
    }
}

fn has(volume: &Volume, label: &str) -> bool {
    match label.split_once('=') {
        Some((name, value)) => volume.labels.get(name).is_some_and(|known| known == value),
        None => volume.labels.contains_key(label),
    }
}

fn holders(root: &Path) -> Result<HashMap<VolumeName, Vec<String>>, Error> {
    let found = beta9_supervisor::volumes_in_use(root)?;
    Ok(found.into_iter().map(|(name, ids)| (name, ids.into_iter().map(String::from).collect())).collect())
}

fn message(volume: Volume, holders: &mut HashMap<VolumeName, Vec<String>>) -> api::Volume {
    api::Volume {
        containers: holders.remove(&volume.name).unwrap_or_default(),
        name: volume.name.into(),
        path: volume.path.to_string_lossy().into_owned(),
        created_us: volume.created_us,
        labels: volume.labels.into_iter().collect(),
        anonymous: volume.life == VolumeLife::Anonymous,
    }
}
