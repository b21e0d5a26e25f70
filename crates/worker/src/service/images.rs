//! What can be done with an image beside importing it.

use std::path::Path;
use std::sync::Arc;

use beta9_image::{ExportFormat, Image};
use beta9_registry::{Credentials, DockerConfig, Pull, Push, Registries, Secret, Transfer, Watch};
use beta9_types::{Digest, ImageReference, Platform, PullPolicy, RegistryHost};
use tokio::sync::{mpsc, watch};
use tonic::Status;

use crate::api;
use crate::error::{Error, ErrorKind, Result};
use crate::service::lifecycle::image_error;
use crate::service::{Worker, blocking};

/// An image that has to be here, and how it may come here.
pub(super) struct Wish {
    reference: ImageReference,
    platform: Option<Platform>,
    policy: PullPolicy,
    plain_http: Option<bool>,
    credentials: Option<Credentials>,
}

impl Wish {
    /// What a pull asks for.
    pub(super) fn of_pull(request: api::PullRequest) -> Result<Self> {
        let policy = if request.pull.is_empty() { PullPolicy::Always } else { request.pull.parse()? };
        Ok(Self {
            reference: request.image.parse()?,
            platform: platform(&request.platform)?,
            policy,
            plain_http: request.plain_http,
            credentials: request.credentials.map(credentials),
        })
    }

    /// What a container asks for.
    pub(super) fn of_create(request: &mut api::CreateRequest) -> Result<Self> {
        let policy = if request.pull.is_empty() { PullPolicy::default() } else { request.pull.parse()? };
        Ok(Self {
            reference: request.image.parse()?,
            platform: platform(&request.platform)?,
            policy,
            plain_http: None,
            credentials: request.registry_credentials.take().map(credentials),
        })
    }
}

fn platform(text: &str) -> Result<Option<Platform>> {
    if text.is_empty() { Ok(None) } else { Ok(Some(text.parse()?)) }
}

fn credentials(given: api::RegistryCredentials) -> Credentials {
    if given.identity_token.is_empty() {
        Credentials::Password { username: given.username, password: Secret::new(given.password) }
    } else {
        Credentials::IdentityToken(Secret::new(given.identity_token))
    }
}

/// What became of a removal.
pub(super) struct Removed {
    pub(super) references: Vec<ImageReference>,
    pub(super) content: Option<Digest>,
    pub(super) freed: u64,
}

impl Worker {
    /// Sees to it that an image is here.
    pub(super) async fn fulfil(&self, wish: Wish, watch: Arc<dyn Watch>) -> Result<Image> {
        let Wish { reference, platform, policy, plain_http, credentials } = wish;
        if policy != PullPolicy::Always {
            let (store, wanted) = (Arc::clone(&self.store), reference.clone());
            match blocking(move || store.get(&wanted)).await? {
                Ok(image) if platform.as_ref().is_none_or(|platform| is_for(&image, platform)) => {
                    return Ok(image);
                }
                Ok(image) if policy == PullPolicy::Never => {
                    return Err(wrong_platform(&image, &platform.unwrap_or_else(Platform::here)));
                }
                Err(error)
                    if policy == PullPolicy::Never || error.kind() != beta9_image::ErrorKind::NotFound =>
                {
                    return Err(image_error(error));
                }
                Ok(_) | Err(_) => {}
            }
        }
        let registries = self.registries();
        let sources = registries.sources(&reference).map_err(registry_error)?;
        let (mirrors, host) = match sources.split_last() {
            Some((host, mirrors)) => (mirrors, host),
            None => return Err(Error::new(ErrorKind::Internal, "a name has no registry")),
        };
        let credentials = match credentials {
            Some(given) => Some(given),
            None => own_credentials(host).await?,
        };
        let mut mirror_credentials = Vec::new();
        for mirror in mirrors {
            mirror_credentials.extend(own_credentials(mirror).await?.map(|found| (mirror.clone(), found)));
        }
        let platform = platform.unwrap_or_else(Platform::here);
        let pull = Pull { reference, platform, plain_http, credentials, mirror_credentials };
        let image = registries.pull(&self.store, pull, watch).await.map_err(registry_error)?;
        tracing::info!(image = %image.reference, digest = %image.digest, "image pulled");
        self.tell_of_image("pull", image.reference.as_ref(), &[("digest", image.digest.to_string())]);
        self.keep_image_limit(image.digest.clone()).await;
        Ok(image)
    }

    /// Sends an image to a registry.
    pub(super) async fn push(
        &self,
        request: api::PushRequest,
        watch: Arc<dyn Watch>,
    ) -> Result<api::PushedImage> {
        let image = self.image(&request.image).await?;
        let destination = match request.destination.as_str() {
            "" => image.reference.clone(),
            text => text.parse()?,
        };
        let host = RegistryHost::parse(destination.host())?;
        let credentials = match request.credentials {
            Some(given) => Some(credentials(given)),
            None => own_credentials(&host).await?,
        };
        let push = Push { destination: destination.clone(), plain_http: request.plain_http, credentials };
        let pushed = self.registries().push(&self.store, &image, push, watch).await;
        let digest = pushed.map_err(registry_error)?;
        tracing::info!(image = %destination, %digest, "image pushed");
        self.tell_of_image("push", destination.as_ref(), &[("digest", digest.to_string())]);
        Ok(api::PushedImage { reference: destination.to_string(), digest: digest.to_string() })
    }

    /// Whether a registry takes these credentials.
    pub(super) async fn check_login(&self, request: api::CheckLoginRequest) -> Result<()> {
        let host = RegistryHost::parse(&request.registry)?;
        let given = request
            .credentials
            .ok_or_else(|| Error::new(ErrorKind::Invalid, "there are no credentials to check"))?;
        let checked = self.registries().check(&host, request.plain_http, credentials(given)).await;
        checked.map_err(registry_error)
    }

    /// The image of that name or digest.
    pub(super) async fn image(&self, name: &str) -> Result<Image> {
        let (store, name) = (Arc::clone(&self.store), name.to_owned());
        blocking(move || store.find(&name)).await?.map_err(image_error)
    }

    /// Everything known of an image.
    pub(super) async fn inspect_image(&self, name: &str) -> Result<api::InspectImageResponse> {
        let image = self.image(name).await?;
        let (store, wanted) = (Arc::clone(&self.store), image.clone());
        let found = blocking(move || Ok((store.documents(&wanted)?, store.names(&wanted.digest)?))).await?;
        let (documents, names) = found.map_err(image_error)?;
        Ok(api::InspectImageResponse {
            references: names.iter().map(ToString::to_string).collect(),
            manifest: documents.manifest,
            config: documents.config,
            layers: image
                .layers
                .iter()
                .map(|layer| api::ImageLayer {
                    digest: layer.digest.to_string(),
                    size_bytes: layer.size,
                    diff_id: layer.diff_id.to_string(),
                })
                .collect(),
            image: Some((&image).into()),
        })
    }

    /// Takes names away, and with the last one the content, unless a container needs it.
    pub(super) async fn remove_image(&self, name: &str, force: bool) -> Result<Removed> {
        let image = self.image(name).await?;
        let (store, digest) = (Arc::clone(&self.store), image.digest.clone());
        let names = blocking(move || store.names(&digest)).await?.map_err(image_error)?;
        // A name means itself; a digest means every name.
        let is_named = ImageReference::parse(name).is_ok_and(|name| name == image.reference);
        let doomed = if is_named { vec![image.reference.clone()] } else { names.clone() };
        let user = self.user_of(&image.digest)?;
        if let Some(container) = user.as_ref().filter(|_| !force && doomed.len() == names.len()) {
            let text = format!(
                "image {} is used by container {container}: remove that first, or use --force to take the name away",
                image.reference
            );
            return Err(Error::new(ErrorKind::Precondition, text));
        }
        let store = Arc::clone(&self.store);
        let removed = blocking(move || {
            for name in &doomed {
                store.unname(name)?;
            }
            let is_last = doomed.len() == names.len();
            let freed = if is_last && user.is_none() { store.remove_content(&image)? } else { 0 };
            let content = (freed > 0).then_some(image.digest);
            Ok(Removed { references: doomed, content, freed })
        });
        let removed = removed.await?.map_err(image_error)?;
        for reference in &removed.references {
            self.tell_of_image("untag", reference.as_ref(), &[]);
        }
        if let Some(digest) = &removed.content {
            self.tell_of_image("delete", digest.as_ref(), &[]);
        }
        Ok(removed)
    }

    /// A container of that image, if there is one.
    fn user_of(&self, image: &Digest) -> Result<Option<String>> {
        for id in self.ids()? {
            // A record that cannot be read is an error: its image must not be lost.
            if let Some((_, record)) = self.by_id(&id)?
                && record.image_digest == *image
            {
                return Ok(Some(id.short().to_owned()));
            }
        }
        Ok(None)
    }

    /// Writes an image to a path.
    pub(super) async fn export_image(
        &self,
        request: api::ExportImageRequest,
        progress: impl beta9_image::Progress + 'static,
    ) -> Result<String> {
        let image = self.image(&request.image).await?;
        let format = match request.format.as_str() {
            "" => ExportFormat::OciArchive,
            name => ExportFormat::named(name).ok_or_else(|| {
                let names = ExportFormat::ALL.map(|(_, name)| name).join(", ");
                Error::new(
                    ErrorKind::Invalid,
                    format!("there is no image format {name:?}: use one of {names}"),
                )
            })?,
        };
        if !Path::new(&request.path).is_absolute() {
            return Err(Error::new(ErrorKind::Invalid, format!("path {:?} is not absolute", request.path)));
        }
        let store = self.store.as_ref().clone().with_progress(progress);
        let name = image.reference.to_string();
        let exported = blocking(move || {
            store.export(&image, Path::new(&request.path), format)?;
            Ok(request.path)
        });
        let path = exported.await?.map_err(image_error)?;
        self.tell_of_image("export", &name, &[("path", path.clone())]);
        Ok(path)
    }

    fn registries(&self) -> Registries {
        Registries::new(self.pools.registries())
    }
}

fn is_for(image: &Image, platform: &Platform) -> bool {
    let config = &image.config;
    platform.accepts(
        &config.os().to_string(),
        &config.architecture().to_string(),
        config.variant().as_deref(),
    )
}

/// Refuses an image that would unpack and then not run.
pub(super) fn check_runs_here(image: &Image) -> Result<()> {
    let here = Platform::here();
    if is_for(image, &here) { Ok(()) } else { Err(wrong_platform(image, &here)) }
}

fn wrong_platform(image: &Image, wanted: &Platform) -> Error {
    let text = format!(
        "image {} is for {}/{} and {wanted} is needed: pull it with --platform {wanted}",
        image.reference,
        image.config.os(),
        image.config.architecture()
    );
    Error::new(ErrorKind::Precondition, text)
}

/// What the worker's own user has stored for a registry.
async fn own_credentials(host: &RegistryHost) -> Result<Option<Credentials>> {
    let config = blocking(|| DockerConfig::load(|name| std::env::var_os(name))).await?;
    config.map_err(registry_error)?.credentials(host).await.map_err(registry_error)
}

fn registry_error(error: beta9_registry::Error) -> Error {
    use beta9_registry::ErrorKind as Kind;
    let kind = match error.kind() {
        Kind::Invalid | Kind::Protocol => ErrorKind::Invalid,
        Kind::Unauthorized => ErrorKind::Unauthorized,
        Kind::NotFound | Kind::NotStored => ErrorKind::NotFound,
        Kind::Unreachable | Kind::Interrupted | Kind::Busy => ErrorKind::Unavailable,
        Kind::Timeout => ErrorKind::Timeout,
        Kind::Limit | Kind::Unsupported | Kind::Full | Kind::Helper => ErrorKind::Precondition,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, crate::error::chain(&error))
}

/// Layers as they are just now: whoever shows them may be slower than they move.
pub(super) struct Layers(watch::Receiver<Vec<Transfer>>);

impl Layers {
    /// Both ends.
    pub(super) fn new() -> (Arc<dyn Watch>, Self) {
        let (sender, receiver) = watch::channel(Vec::<Transfer>::new());
        let see = move |transfer: Transfer| {
            sender.send_modify(|layers| {
                match layers.iter_mut().find(|layer| layer.digest == transfer.digest) {
                    Some(layer) => *layer = transfer,
                    None => layers.push(transfer),
                }
            });
        };
        (Arc::new(see), Self(receiver))
    }

    /// Does the work and tells the client of the layers meanwhile. `None`, and the work undone, when the client leaves.
    pub(super) async fn during<T, M>(
        mut self,
        work: impl Future<Output = T>,
        client: &mpsc::Sender<std::result::Result<M, Status>>,
        message: impl Fn(api::LayerProgress) -> M,
    ) -> Option<T> {
        let mut told: Vec<Transfer> = Vec::new();
        tokio::pin!(work);
        loop {
            let done = tokio::select! {
                done = &mut work => Some(done),
                Ok(()) = self.0.changed() => None,
                () = client.closed() => return None,
            };
            let now = self.0.borrow_and_update().clone();
            for layer in &now {
                let before = told.iter().find(|before| before.digest == layer.digest);
                if before.is_none_or(|before| is_news(before, layer)) {
                    client.send(Ok(message(layer.into()))).await.ok()?;
                    told.retain(|before| before.digest != layer.digest);
                    told.push(layer.clone());
                }
            }
            if done.is_some() {
                return done;
            }
        }
    }
}

/// Half a percent is the least that anybody sees.
fn is_news(before: &Transfer, now: &Transfer) -> bool {
    before.status != now.status || before.done.abs_diff(now.done) > now.total / 200
}

impl From<&Transfer> for api::LayerProgress {
    fn from(layer: &Transfer) -> Self {
        Self {
            digest: layer.digest.to_string(),
            status: layer.status.as_str().to_owned(),
            done_bytes: layer.done,
            total_bytes: layer.total,
        }
    }
}
