//! Pulling: from a name to an image in the store.

use std::sync::{Arc, OnceLock};

use beta9_image::{Image, Ingest, Partial, Plan, Store, Wanted};
use beta9_types::{Digest, ImageReference, Platform, RegistryHost};
use reqwest::header::{CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, Response, StatusCode};
use tokio::sync::{Mutex, Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use crate::auth::Session;
use crate::transport::Stream;
use crate::{Credentials, Error, ErrorKind, Registries, Result, Status, Transfer, Watch, manifest};

/// Layers that are fetched at the same time.
const PARALLEL: usize = 3;
/// Attempts in a row that bring nothing, until a layer is given up.
const FRUITLESS: u32 = 3;
/// Attempts in all: a registry that breaks off again and again wins nothing.
const ATTEMPTS: u32 = 20;
/// What an attempt must bring to count as one that brought something.
const FRUIT: u64 = 64 << 10;
/// Pieces between the network and the disk.
const PENDING: usize = 16;

/// What to pull.
pub struct Pull {
    /// The name.
    pub reference: ImageReference,
    /// For which machine.
    pub platform: Platform,
    /// Overrides the settings of the registry, not those of its mirrors.
    pub plain_http: Option<bool>,
    /// For the registry that the name names.
    pub credentials: Option<Credentials>,
    /// For its mirrors.
    pub mirror_credentials: Vec<(RegistryHost, Credentials)>,
}

impl Registries {
    /// Where a name is looked for: the mirrors of its registry, then the registry.
    pub fn sources(&self, reference: &ImageReference) -> Result<Vec<RegistryHost>> {
        let host = RegistryHost::parse(reference.host())
            .map_err(|e| Error::caused(ErrorKind::Invalid, format!("cannot use the name {reference}"), e))?;
        let mut sources = self.settings(&host).mirrors;
        sources.retain(|mirror| *mirror != host);
        sources.push(host);
        Ok(sources)
    }

    /// Brings an image into the store under its name. Dropped half-way, it leaves what the next pull goes on with.
    pub async fn pull(&self, store: &Store, pull: Pull, watch: Arc<dyn Watch>) -> Result<Image> {
        let mut sources = self.sources(&pull.reference)?;
        let registry = sources.pop();
        for mirror in sources {
            let credentials = pull.mirror_credentials.iter().find(|(host, _)| *host == mirror);
            let credentials = credentials.map(|(_, credentials)| credentials.clone());
            match self.pull_from(store, &pull, &mirror, None, credentials, &watch).await {
                // Another registry has no more room for us, and sends no other image.
                Err(error) if !matches!(error.kind(), ErrorKind::Full | ErrorKind::Io | ErrorKind::Limit) => {
                    let image = pull.reference.as_str();
                    tracing::warn!(%mirror, image, error = error.chain(), "mirror cannot serve the image");
                }
                done => return done.map_err(|e| e.during(cannot_pull(&pull, &mirror))),
            }
        }
        let registry = registry
            .ok_or_else(|| Error::new(ErrorKind::Invalid, format!("{} names no registry", pull.reference)))?;
        let credentials = pull.credentials.clone();
        self.pull_from(store, &pull, &registry, pull.plain_http, credentials, &watch)
            .await
            .map_err(|e| e.during(cannot_pull(&pull, &registry)))
    }

    async fn pull_from(
        &self,
        store: &Store,
        pull: &Pull,
        source: &RegistryHost,
        plain_http: Option<bool>,
        credentials: Option<Credentials>,
        watch: &Arc<dyn Watch>,
    ) -> Result<Image> {
        let repository = pull.reference.repository();
        let scope = format!("repository:{repository}:pull");
        let session = self.session(source, plain_http, credentials, Some(scope)).await?;
        let fetcher = Arc::new(Fetcher {
            ingest: {
                let store = store.clone();
                blocking(move || store.ingest()).await??
            },
            session,
            repository,
            watch: Arc::clone(watch),
            wanted: Mutex::default(),
            config: OnceLock::new(),
            stop: watch::Sender::new(false),
        });
        let manifest = fetcher.image(pull).await;
        let reference = pull.reference.clone();
        let Fetcher { ingest, wanted, .. } = Arc::into_inner(fetcher)
            .ok_or_else(|| Error::new(ErrorKind::Io, "a layer is still being fetched"))?;
        match manifest {
            Ok(manifest) => Ok(blocking(move || ingest.finish(&reference, &manifest)).await??),
            // Where no connection can be made the next pull goes on. Who answers and does not deliver has lied about
            // what it has, and what it sent beside the lie is worth nothing.
            Err(error) if error.kind() == ErrorKind::Unreachable => Err(error),
            Err(error) => {
                let wanted = wanted.into_inner();
                blocking(move || ingest.abandon(&wanted)).await??;
                Err(error)
            }
        }
    }
}

fn cannot_pull(pull: &Pull, source: &RegistryHost) -> String {
    if source.as_str() == pull.reference.host() {
        format!("cannot pull {}", pull.reference)
    } else {
        format!("cannot pull {} from its mirror {source}", pull.reference)
    }
}

/// One pull from one registry.
struct Fetcher {
    ingest: Ingest,
    session: Session,
    repository: String,
    watch: Arc<dyn Watch>,
    /// What the image asks for, once that is known.
    wanted: Mutex<Vec<Wanted>>,
    config: OnceLock<Digest>,
    /// Whether a layer has failed, and the others need not go on.
    stop: watch::Sender<bool>,
}

impl Fetcher {
    /// Brings everything of an image into the store, and returns its manifest.
    async fn image(self: &Arc<Self>, pull: &Pull) -> Result<Vec<u8>> {
        let digest = pull.reference.digest().map(|digest| digest.to_string());
        let place = digest.as_deref().or(pull.reference.tag()).unwrap_or("latest");
        let manifest = retried(&self.session, || {
            manifest::fetch(&self.session, &self.repository, place, &pull.platform)
        })
        .await?
        .bytes;
        let plan = self.ingest.plan(&manifest)?;
        self.wanted.lock().await.extend(plan.layers.iter().chain([&plan.config]).cloned());
        let _ = self.config.set(plan.config.digest.clone());
        for layer in &plan.layers {
            self.tell(layer, Status::Waiting, 0);
        }
        self.blob(&plan.config).await?;
        self.check(&plan, &pull.platform).await?;
        self.layers(&plan).await?;
        Ok(manifest)
    }

    async fn check(self: &Arc<Self>, plan: &Plan, platform: &Platform) -> Result<()> {
        let (this, plan, platform) = (Arc::clone(self), plan.clone(), platform.clone());
        blocking(move || {
            let config = this.ingest.document(&plan.config.digest)?;
            this.ingest.check_config(&config, &plan, &platform)?;
            this.ingest.check_space(&plan)
        })
        .await??;
        Ok(())
    }

    async fn layers(self: &Arc<Self>, plan: &Plan) -> Result<()> {
        let turns = Arc::new(Semaphore::new(PARALLEL));
        let mut fetching = JoinSet::new();
        for layer in plan.layers.clone() {
            let (this, turns) = (Arc::clone(self), Arc::clone(&turns));
            fetching.spawn(async move {
                let _turn = turns.acquire().await;
                let done = this.blob(&layer).await;
                if done.is_err() {
                    this.stop.send_replace(true);
                }
                done
            });
        }
        // All of them end before anything is cleaned up.
        let mut outcome = Ok(());
        while let Some(done) = fetching.join_next().await {
            let done = done.map_err(|e| Error::caused(ErrorKind::Io, "a step panicked", e));
            outcome = outcome.and(done.and_then(|done| done));
        }
        outcome
    }

    /// Does something unless another layer fails meanwhile.
    async fn unless_stopped<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut stop = self.stop.subscribe();
        tokio::select! {
            done = work => done,
            _ = stop.wait_for(|stop| *stop) => {
                Err(Error::new(ErrorKind::Interrupted, "given up as another layer failed"))
            }
        }
    }

    /// Brings one blob into the store, over as many connections as it takes. It ends early, and well, where another
    /// one has failed.
    async fn blob(self: &Arc<Self>, wanted: &Wanted) -> Result<()> {
        let mut fruitless = 0;
        let mut delay = self.session.transport.waits.retry;
        for attempt in 1.. {
            if *self.stop.borrow() {
                return Ok(());
            }
            // Waits for whoever fetches the same; a file is opened anew for each attempt, as the last one closed it.
            let (this, blob) = (Arc::clone(self), wanted.clone());
            let Some(partial) = blocking(move || this.ingest.partial(&blob)).await?? else {
                self.tell(wanted, Status::Exists, wanted.size);
                return Ok(());
            };
            let before = partial.written();
            let (partial, outcome) = self.attempt(wanted, partial).await?;
            let error = match outcome {
                Ok(()) => {
                    blocking(move || partial.finish()).await??;
                    self.tell(wanted, Status::Done, wanted.size);
                    return Ok(());
                }
                Err(error) => error,
            };
            fruitless = if partial.written() >= before.saturating_add(FRUIT) { 0 } else { fruitless + 1 };
            drop(partial);
            if *self.stop.borrow() {
                return Ok(());
            }
            if fruitless >= FRUITLESS || attempt >= ATTEMPTS || !error.is_transient() {
                let message = format!("layer {} cannot be fetched", wanted.digest);
                return Err(error.during(message));
            }
            tracing::debug!(digest = %wanted.digest, attempt, error = error.chain(), "fetching a layer again");
            let pause = async {
                tokio::time::sleep(delay).await;
                Ok(())
            };
            if self.unless_stopped(pause).await.is_err() {
                return Ok(());
            }
            delay = (delay * 2).min(self.session.transport.waits.idle);
        }
        Ok(())
    }

    /// One request for what is missing. The partial comes back with whatever arrived.
    async fn attempt(&self, wanted: &Wanted, mut partial: Partial) -> Result<(Partial, Result<()>)> {
        if partial.missing() == 0 && wanted.size > 0 {
            partial.restart()?;
        }
        let response = match self.unless_stopped(self.request(wanted, &mut partial)).await {
            Ok(response) => response,
            Err(error) => return Ok((partial, Err(error))),
        };
        let start = partial.written();
        self.tell(wanted, Status::Moving, start);
        // Writing and hashing happen on a thread that may block.
        let (sender, mut pieces) = mpsc::channel::<bytes::Bytes>(PENDING);
        let writer = blocking_task(move || {
            let mut outcome = Ok(());
            while let (Ok(()), Some(piece)) = (&outcome, pieces.blocking_recv()) {
                outcome = partial.append(&piece).map_err(Error::from);
            }
            (partial, outcome)
        });
        let mut stream = Stream::new(&self.session.transport, response);
        let mut arrived = start;
        let received = loop {
            match self.unless_stopped(stream.next()).await {
                Ok(Some(piece)) => {
                    arrived += piece.len() as u64;
                    self.tell(wanted, Status::Moving, arrived.min(wanted.size));
                    if sender.capacity() == 0 {
                        // The disk is slower than the registry.
                        let sent = sender.send(piece).await;
                        stream.rest();
                        if sent.is_err() {
                            break Ok(());
                        }
                    } else if sender.send(piece).await.is_err() {
                        break Ok(());
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        drop(sender);
        let (partial, written) =
            writer.await.map_err(|e| Error::caused(ErrorKind::Io, "a step panicked", e))?;
        let outcome = written.and(received).and_then(|()| {
            if partial.missing() == 0 {
                return Ok(());
            }
            let message = format!(
                "the registry sent {} bytes of a layer where it announced {}",
                partial.written(),
                wanted.size
            );
            Err(Error::new(ErrorKind::Interrupted, message))
        });
        Ok((partial, outcome))
    }

    /// Asks for the bytes that are missing, or for all where the registry cannot go on in the middle.
    async fn request(&self, wanted: &Wanted, partial: &mut Partial) -> Result<Response> {
        let url = self.session.transport.url(&format!("{}/blobs/{}", self.repository, wanted.digest))?;
        let what = format!("blob {}", wanted.digest);
        let mut headers = HeaderMap::new();
        if partial.written() > 0 {
            let range = format!("bytes={}-{}", partial.written(), wanted.size - 1);
            headers.extend(HeaderValue::from_str(&range).ok().map(|value| (RANGE, value)));
        }
        let response = self.session.get(Method::GET, url, &headers, &what).await?;
        if response.status() == StatusCode::PARTIAL_CONTENT {
            let start = format!("bytes {}-", partial.written());
            let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
            if range.is_none_or(|range| !range.starts_with(&start)) || partial.written() == 0 {
                return Err(Error::new(
                    ErrorKind::Protocol,
                    "the registry sent another part than was asked for",
                ));
            }
        } else {
            partial.restart()?;
        }
        if let Some(length) = response.content_length().filter(|length| *length != partial.missing()) {
            let message = format!(
                "the registry sends {length} bytes of {what} where {} were announced",
                partial.missing()
            );
            return Err(Error::new(ErrorKind::Protocol, message));
        }
        Ok(response)
    }

    fn tell(&self, wanted: &Wanted, status: Status, done: u64) {
        // The configuration is no layer.
        if self.config.get() == Some(&wanted.digest) {
            return;
        }
        self.watch.see(Transfer { digest: wanted.digest.clone(), status, done, total: wanted.size });
    }
}

/// Tries a short exchange again while that makes sense.
async fn retried<T, F: Future<Output = Result<T>>>(
    session: &Session,
    mut exchange: impl FnMut() -> F,
) -> Result<T> {
    let mut delay = session.transport.waits.retry;
    for _ in 1..FRUITLESS {
        match exchange().await {
            Err(error) if error.is_transient() && error.kind() != ErrorKind::Unreachable => {
                tracing::debug!(error = error.chain(), "asking the registry again");
            }
            done => return done,
        }
        tokio::time::sleep(delay).await;
        delay *= 2;
    }
    exchange().await
}

fn blocking_task<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> tokio::task::JoinHandle<T> {
    tokio::task::spawn_blocking(work)
}

/// Runs work that blocks, where it may.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    blocking_task(work).await.map_err(|e| Error::caused(ErrorKind::Io, "a step panicked", e))
}

/// The digest of content, for whoever names it.
pub(crate) fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_sha256(<sha2::Sha256 as sha2::Digest>::digest(bytes).into())
}
