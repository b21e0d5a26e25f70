//! Pushing: what the registry has not, then the manifest that names it.

use std::io::{self, Read};
use std::sync::Arc;

use beta9_image::{Image, Ingest, Store, Wanted};
use beta9_types::{Digest, ImageReference, RegistryHost};
use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Body, Method, Response, StatusCode, Url};
use serde::Deserialize;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;

use crate::auth::Session;
use crate::manifest::CONTENT_DIGEST;
use crate::pull::{blocking, digest_of};
use crate::transport::send_error;
use crate::{Credentials, Error, ErrorKind, Registries, Result, Status, Transfer, Watch};

/// Blobs that are sent at the same time.
const PARALLEL: usize = 3;
/// Attempts at one blob.
const ATTEMPTS: u32 = 4;
/// Bytes of one piece, and pieces between the disk and the network.
const PIECE: usize = 128 << 10;
const PENDING: usize = 8;

/// What to push, and where.
pub struct Push {
    /// The name to give it there.
    pub destination: ImageReference,
    /// Overrides the settings of the registry.
    pub plain_http: Option<bool>,
    /// For that registry.
    pub credentials: Option<Credentials>,
}

impl Registries {
    /// Sends an image of the store to a registry. Returns the digest of its manifest, which is the image's own.
    pub async fn push(
        &self,
        store: &Store,
        image: &Image,
        push: Push,
        watch: Arc<dyn Watch>,
    ) -> Result<Digest> {
        let destination = push.destination.clone();
        let failed = |e: Error| e.during(format!("cannot push to {destination}"));
        self.push_to(store, image, push, watch).await.map_err(failed)
    }

    async fn push_to(
        &self,
        store: &Store,
        image: &Image,
        push: Push,
        watch: Arc<dyn Watch>,
    ) -> Result<Digest> {
        let host = RegistryHost::parse(push.destination.host()).map_err(|e| {
            Error::caused(ErrorKind::Invalid, format!("cannot use the name {}", push.destination), e)
        })?;
        let repository = push.destination.repository();
        let scope = format!("repository:{repository}:pull,push");
        let session = self.session(&host, push.plain_http, push.credentials, Some(scope)).await?;
        let (store, image) = (store.clone(), image.clone());
        let (ingest, manifest, store) = blocking(move || {
            let manifest = store.documents(&image)?.manifest;
            Ok::<_, beta9_image::Error>((store.ingest()?, manifest, store))
        })
        .await??;
        let plan = ingest.plan(&manifest)?;
        let sender = Arc::new(Sender { _lease: ingest, store, session, repository, watch });
        let mut blobs = plan.layers;
        blobs.push(plan.config);
        sender.blobs(blobs).await?;
        let digest = digest_of(&manifest);
        let place = match push.destination.digest() {
            Some(wanted) if wanted != digest => {
                let message = format!("the image is {digest}: push it by a tag, or by its own digest");
                return Err(Error::new(ErrorKind::Invalid, message));
            }
            Some(digest) => digest.to_string(),
            None => push.destination.tag().unwrap_or("latest").to_owned(),
        };
        sender.manifest(&place, manifest, &digest).await?;
        Ok(digest)
    }
}

/// One push.
struct Sender {
    /// Nothing of the image is removed meanwhile.
    _lease: Ingest,
    store: Store,
    session: Session,
    repository: String,
    watch: Arc<dyn Watch>,
}

impl Sender {
    async fn blobs(self: &Arc<Self>, blobs: Vec<Wanted>) -> Result<()> {
        let turns = Arc::new(Semaphore::new(PARALLEL));
        let mut sending = JoinSet::new();
        for blob in blobs {
            self.tell(&blob, Status::Waiting, 0);
            let (this, turns) = (Arc::clone(self), Arc::clone(&turns));
            sending.spawn(async move {
                let _turn = turns.acquire().await;
                this.blob(&blob).await
            });
        }
        // The first failure drops the set, which ends the others.
        while let Some(done) = sending.join_next().await {
            done.map_err(|e| Error::caused(ErrorKind::Io, "a step panicked", e))??;
        }
        Ok(())
    }

    async fn blob(&self, blob: &Wanted) -> Result<()> {
        if self.is_there(blob).await? {
            self.tell(blob, Status::Exists, blob.size);
            return Ok(());
        }
        let mut delay = self.session.transport.waits.retry;
        for attempt in 1.. {
            match self.upload(blob).await {
                Ok(()) => break,
                Err(error) if error.is_transient() && attempt < ATTEMPTS => {
                    tracing::debug!(digest = %blob.digest, attempt, error = error.chain(), "sending a layer again");
                }
                // A token may have run out in the middle.
                Err(error) if error.kind() == ErrorKind::Unauthorized && attempt == 1 => {
                    self.session.forget().await;
                }
                Err(error) => return Err(error.during(format!("layer {} cannot be sent", blob.digest))),
            }
            tokio::time::sleep(delay).await;
            delay *= 2;
        }
        self.tell(blob, Status::Done, blob.size);
        Ok(())
    }

    async fn is_there(&self, blob: &Wanted) -> Result<bool> {
        let url = self.session.transport.url(&format!("{}/blobs/{}", self.repository, blob.digest))?;
        match self.session.get(Method::HEAD, url, &HeaderMap::new(), "the blob").await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            // A registry may refuse the question and take the blob.
            Err(error) if matches!(error.kind(), ErrorKind::Protocol | ErrorKind::Unauthorized) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Opens an upload and sends the blob as one body.
    async fn upload(&self, blob: &Wanted) -> Result<()> {
        let url = self.session.transport.url(&format!("{}/blobs/uploads/", self.repository))?;
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        let opened = self.session.send(Method::POST, url.clone(), &headers, "an upload").await?;
        let location = opened.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.ok_or_else(|| {
            Error::new(ErrorKind::Protocol, "the registry does not say where an upload goes")
        })?;
        let mut place = self.session.transport.named(&url, location)?;
        place.query_pairs_mut().append_pair("digest", blob.digest.as_ref());
        let response = self.put(place, blob).await?;
        let response = self.session.succeed(response, "an upload").await?;
        check_digest(&response, &blob.digest)
    }

    async fn put(&self, place: Url, blob: &Wanted) -> Result<Response> {
        let transport = &self.session.transport;
        let (pieces, mut sent) = self.read(blob).await?;
        let mut request = transport
            .client(&place)
            .put(place.clone())
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, blob.size)
            .body(Body::wrap_stream(ReceiverStream::new(pieces)));
        let authorization = self.session.authorization().await.filter(|_| transport.is_registrys(&place));
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let answered = request.send();
        tokio::pin!(answered);
        let mut is_reading = true;
        loop {
            let moved = async {
                // When everything was handed over, only the answer is waited for.
                if is_reading { sent.changed().await.is_ok() } else { std::future::pending().await }
            };
            let step = timeout(transport.waits.idle, async {
                tokio::select! {
                    answer = &mut answered => Err(answer),
                    moved = moved => Ok(moved),
                }
            });
            match step.await {
                Ok(Err(answer)) => return answer.map_err(|e| send_error(&place, e)),
                Ok(Ok(more)) => {
                    is_reading = more;
                    let done = *sent.borrow_and_update();
                    self.tell(blob, Status::Moving, done);
                }
                Err(_) => return Err(transport.silent(&place)),
            }
        }
    }

    /// The blob in pieces, and how much of it was handed over.
    async fn read(&self, blob: &Wanted) -> Result<(mpsc::Receiver<io::Result<Bytes>>, watch::Receiver<u64>)> {
        let (store, digest) = (self.store.clone(), blob.digest.clone());
        let mut file = blocking(move || store.open_blob(&digest)).await??;
        let (sender, pieces) = mpsc::channel(PENDING);
        let (moved, sent) = watch::channel(0);
        // Ends with the file, or when nobody takes the pieces any more.
        tokio::task::spawn_blocking(move || {
            let mut done = 0u64;
            loop {
                let mut piece = vec![0; PIECE];
                let read = file.read(&mut piece).map(|count| {
                    piece.truncate(count);
                    Bytes::from(piece)
                });
                done += read.as_ref().map_or(0, |piece| piece.len() as u64);
                let is_last = read.is_err();
                let is_end = read.as_ref().is_ok_and(Bytes::is_empty);
                if is_end || sender.blocking_send(read).is_err() || is_last {
                    return;
                }
                moved.send_replace(done);
            }
        });
        Ok((pieces, sent))
    }

    async fn manifest(&self, place: &str, bytes: Vec<u8>, digest: &Digest) -> Result<()> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Kind {
            media_type: Option<String>,
        }
        let kind = serde_json::from_slice::<Kind>(&bytes).ok().and_then(|kind| kind.media_type);
        let kind = kind.unwrap_or_else(|| "application/vnd.oci.image.manifest.v1+json".to_owned());
        let transport = &self.session.transport;
        let url = transport.url(&format!("{}/manifests/{place}", self.repository))?;
        let mut request = transport.client(&url).put(url.clone()).header(CONTENT_TYPE, kind).body(bytes);
        if let Some(authorization) = self.session.authorization().await {
            request = request.header(AUTHORIZATION, authorization);
        }
        let answered = timeout(transport.waits.connect + transport.waits.idle, request.send()).await;
        let response = answered.map_err(|_| transport.silent(&url))?.map_err(|e| send_error(&url, e))?;
        let response = self.session.succeed(response, "the manifest").await?;
        if !matches!(response.status(), StatusCode::CREATED | StatusCode::ACCEPTED | StatusCode::OK) {
            let message = format!("the registry answered {} for the manifest", response.status());
            return Err(Error::new(ErrorKind::Protocol, message));
        }
        check_digest(&response, digest)
    }

    fn tell(&self, blob: &Wanted, status: Status, done: u64) {
        self.watch.see(Transfer { digest: blob.digest.clone(), status, done, total: blob.size });
    }
}

/// What the registry says it has got must be what was sent.
fn check_digest(response: &Response, digest: &Digest) -> Result<()> {
    let said = response.headers().get(CONTENT_DIGEST).and_then(|value| value.to_str().ok());
    match said.and_then(|said| Digest::parse(said).ok()) {
        Some(said) if said != *digest => {
            let message = format!("the registry stored {said} where {digest} was sent");
            Err(Error::new(ErrorKind::Protocol, message))
        }
        _ => Ok(()),
    }
}
