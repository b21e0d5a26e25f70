//! The gRPC face: messages in, messages out, nothing decided here.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use beta9_image::{Step, Store, Unused};
use beta9_supervisor::{Operation, OwnVolumes};
use beta9_types::{
    ContainerId, ContainerRequest, CopyOut, ExecId, ImageReference, LimitChange, MemoryBytes, RestartPolicy,
};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::api;
use crate::api::container_service_server::{ContainerService, ContainerServiceServer};
use crate::api::image_service_server::{ImageService, ImageServiceServer};
use crate::api::volume_service_server::VolumeServiceServer;
use crate::api::worker_service_server::{WorkerService, WorkerServiceServer};
use crate::error::{Error, ErrorKind};
use crate::service::images::{Layers, Wish};
use crate::service::lifecycle::image_error;
use crate::service::operate::Rounds;
use crate::service::options::options;
use crate::service::volumes::VolumeServer;
use crate::service::{Worker, blocking, micros, streams};

/// Messages that wait for a slow client; the rest waits in the log.
pub(super) const PENDING: usize = 8;
/// Longest message accepted and sent.
const MAX_MESSAGE: usize = 16 << 20;

pub(super) type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The services of one worker.
pub(crate) fn router(worker: Arc<Worker>) -> tonic::transport::server::Router {
    let server = Server { worker };
    tonic::transport::Server::builder()
        .add_service(ContainerServiceServer::new(server.clone()).max_encoding_message_size(MAX_MESSAGE))
        .add_service(ImageServiceServer::new(server.clone()))
        .add_service(VolumeServiceServer::new(VolumeServer::new(Arc::clone(&server.worker))))
        .add_service(WorkerServiceServer::new(server))
}

#[derive(Clone)]
struct Server {
    worker: Arc<Worker>,
}

#[tonic::async_trait]
impl ContainerService for Server {
    async fn create(
        &self,
        request: Request<api::CreateRequest>,
    ) -> Result<Response<api::CreateResponse>, Status> {
        let mut message = request.into_inner();
        let wish = Wish::of_create(&mut message)?;
        let id = match message.id.as_str() {
            "" => ContainerId::random(),
            id => id.parse().map_err(Error::from)?,
        };
        let (id, warnings) = self.worker.create(id, parse(message)?, wish).await?;
        Ok(Response::new(api::CreateResponse { id: id.to_string(), warnings }))
    }

    async fn start(
        &self,
        request: Request<api::StartRequest>,
    ) -> Result<Response<api::StartResponse>, Status> {
        let described = self.worker.start(&request.into_inner().container).await?;
        Ok(Response::new(api::StartResponse { container: Some(described.into()) }))
    }

    type AttachStream = BoxStream<api::AttachResponse>;

    async fn attach(
        &self,
        request: Request<Streaming<api::AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        Ok(Response::new(streams::attach(&self.worker, request.into_inner()).await?))
    }

    type ExecStream = BoxStream<api::ExecResponse>;

    async fn exec(
        &self,
        request: Request<Streaming<api::ExecRequest>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        Ok(Response::new(streams::exec(Arc::clone(&self.worker), request.into_inner()).await?))
    }

    async fn resize(
        &self,
        request: Request<api::ResizeRequest>,
    ) -> Result<Response<api::ResizeResponse>, Status> {
        let api::ResizeRequest { container, exec, size } = request.into_inner();
        let size = streams::terminal_size(size)?.unwrap_or_default();
        self.worker.resize(&container, exec_id(&exec)?, size).await?;
        Ok(Response::new(api::ResizeResponse {}))
    }

    type LogsStream = BoxStream<api::LogsResponse>;

    async fn logs(&self, request: Request<api::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        Ok(Response::new(streams::logs(&self.worker, request.into_inner()).await?))
    }

    async fn wait(&self, request: Request<api::WaitRequest>) -> Result<Response<api::WaitResponse>, Status> {
        let exit = self.worker.wait(&request.into_inner().container).await?;
        Ok(Response::new(api::WaitResponse { exit: Some((&exit).into()) }))
    }

    async fn list(&self, request: Request<api::ListRequest>) -> Result<Response<api::ListResponse>, Status> {
        let all = request.into_inner().all;
        let containers = self.worker.list().await?.into_iter().map(api::Container::from);
        let containers = containers
            .filter(|c| all || matches!(c.status.as_str(), "running" | "starting" | "paused"))
            .collect();
        Ok(Response::new(api::ListResponse { containers }))
    }

    async fn inspect(
        &self,
        request: Request<api::InspectRequest>,
    ) -> Result<Response<api::InspectResponse>, Status> {
        let described = self.worker.inspect(&request.into_inner().container).await?;
        Ok(Response::new(api::InspectResponse { container: Some(described.into()) }))
    }

    async fn stop(&self, request: Request<api::StopRequest>) -> Result<Response<api::StopResponse>, Status> {
        let api::StopRequest { container, grace_ms } = request.into_inner();
        self.worker.stop(&container, grace_ms.map(Duration::from_millis)).await?;
        Ok(Response::new(api::StopResponse {}))
    }

    async fn restart(
        &self,
        request: Request<api::RestartRequest>,
    ) -> Result<Response<api::RestartResponse>, Status> {
        let api::RestartRequest { container, grace_ms } = request.into_inner();
        let described = self.worker.restart(&container, grace_ms.map(Duration::from_millis)).await?;
        Ok(Response::new(api::RestartResponse { container: Some(described.into()) }))
    }

    async fn rename(
        &self,
        request: Request<api::RenameRequest>,
    ) -> Result<Response<api::RenameResponse>, Status> {
        let api::RenameRequest { container, name } = request.into_inner();
        self.worker.rename(&container, name.parse().map_err(Error::from)?).await?;
        Ok(Response::new(api::RenameResponse {}))
    }

    async fn kill(&self, request: Request<api::KillRequest>) -> Result<Response<api::KillResponse>, Status> {
        let api::KillRequest { container, signal, all, exec } = request.into_inner();
        if !(1..=64).contains(&signal) {
            return Err(Error::new(ErrorKind::Invalid, format!("there is no signal {signal}")).into());
        }
        match exec_id(&exec)? {
            Some(exec) => self.worker.kill_exec(&container, exec, signal).await?,
            None => self.worker.kill(&container, signal, all).await?,
        }
        Ok(Response::new(api::KillResponse {}))
    }

    async fn remove(
        &self,
        request: Request<api::RemoveRequest>,
    ) -> Result<Response<api::RemoveResponse>, Status> {
        let api::RemoveRequest { container, force, volumes } = request.into_inner();
        let volumes = if volumes { OwnVolumes::Remove } else { OwnVolumes::Keep };
        self.worker.remove(&container, force, volumes).await?;
        Ok(Response::new(api::RemoveResponse {}))
    }

    async fn pause(
        &self,
        request: Request<api::PauseRequest>,
    ) -> Result<Response<api::PauseResponse>, Status> {
        self.worker.freeze(&request.into_inner().container, Operation::Pause).await?;
        Ok(Response::new(api::PauseResponse {}))
    }

    async fn unpause(
        &self,
        request: Request<api::UnpauseRequest>,
    ) -> Result<Response<api::UnpauseResponse>, Status> {
        self.worker.freeze(&request.into_inner().container, Operation::Resume).await?;
        Ok(Response::new(api::UnpauseResponse {}))
    }

    type StatsStream = BoxStream<api::StatsResponse>;

    async fn stats(
        &self,
        request: Request<api::StatsRequest>,
    ) -> Result<Response<Self::StatsStream>, Status> {
        let api::StatsRequest { containers, once, interval_ms } = request.into_inner();
        let interval = match interval_ms.unwrap_or(1000) {
            interval @ 100..=3_600_000 => Duration::from_millis(interval),
            other => {
                let text = format!("invalid interval {other} ms: use 100 to 3600000");
                return Err(Error::new(ErrorKind::Invalid, text).into());
            }
        };
        let worker = Arc::clone(&self.worker);
        let mut rounds = Rounds::begin(&worker, containers).await?;
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            loop {
                let stats = rounds.next(&worker).await;
                let answer = stats.map(|stats| api::StatsResponse { stats }).map_err(Status::from);
                let is_last = once || answer.is_err();
                if sender.send(answer).await.is_err() || is_last {
                    return;
                }
                tokio::select! {
                    () = tokio::time::sleep(interval) => {}
                    () = sender.closed() => return,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn top(&self, request: Request<api::TopRequest>) -> Result<Response<api::TopResponse>, Status> {
        let processes = self.worker.top(&request.into_inner().container).await?;
        let processes = processes.into_iter().map(api::Process::from).collect();
        Ok(Response::new(api::TopResponse { processes }))
    }

    async fn update(
        &self,
        request: Request<api::UpdateRequest>,
    ) -> Result<Response<api::UpdateResponse>, Status> {
        let api::UpdateRequest { container, memory_bytes, nano_cpus, pids, restart } = request.into_inner();
        let restart = match restart.as_str() {
            "" => None,
            text => Some(text.parse::<RestartPolicy>().map_err(Error::from)?),
        };
        let memory = memory_bytes.map(MemoryBytes::try_from).transpose().map_err(Error::from)?;
        let invalid =
            |what: &str| Status::from(Error::new(ErrorKind::Invalid, format!("a limit of 0 {what} is none")));
        if nano_cpus == Some(0) {
            return Err(invalid("processors"));
        }
        if pids == Some(0) {
            return Err(invalid("processes"));
        }
        let memory_bytes = memory.map(|memory| memory.get());
        let change = LimitChange { memory_bytes, nano_cpus, pids, memory_swap_bytes: None };
        self.worker.update(&container, change, restart).await?;
        Ok(Response::new(api::UpdateResponse {}))
    }

    type CopyFromStream = BoxStream<api::CopyFromResponse>;

    async fn copy_from(
        &self,
        request: Request<api::CopyFromRequest>,
    ) -> Result<Response<Self::CopyFromStream>, Status> {
        let api::CopyFromRequest { container, path, follow } = request.into_inner();
        let mut outgoing = self.worker.copy_out(&container, CopyOut { path, follow }).await?;
        let worker = Arc::clone(&self.worker);
        let (sender, receiver) = mpsc::channel(PENDING);
        tokio::spawn(async move {
            loop {
                let answer = match outgoing.next().await {
                    Ok(Some(data)) => Ok(api::CopyFromResponse { data }),
                    Ok(None) => return worker.tell(outgoing.record(), "copy_from", &[]),
                    Err(error) => Err(Status::from(error)),
                };
                let is_last = answer.is_err();
                if sender.send(answer).await.is_err() || is_last {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn copy_to(
        &self,
        request: Request<Streaming<api::CopyToRequest>>,
    ) -> Result<Response<api::CopyToResponse>, Status> {
        use api::copy_to_request::Message;
        let mut input = request.into_inner();
        let Some(Message::Open(open)) = input.message().await?.and_then(|m| m.message) else {
            return Err(Error::new(ErrorKind::Invalid, "the first message of a copy must open it").into());
        };
        let record = self.worker.copy_in(open, input).await?;
        self.worker.tell(&record, "copy_to", &[]);
        Ok(Response::new(api::CopyToResponse {}))
    }
}

#[tonic::async_trait]
impl ImageService for Server {
    type ImportStream = BoxStream<api::ImportResponse>;

    async fn import(
        &self,
        request: Request<api::ImportRequest>,
    ) -> Result<Response<Self::ImportStream>, Status> {
        use api::import_response::Message;
        let api::ImportRequest { path, tag } = request.into_inner();
        let tag: Option<ImageReference> = match tag.as_str() {
            "" => None,
            tag => Some(tag.parse().map_err(Error::from)?),
        };
        let worker = Arc::clone(&self.worker);
        let root = worker.root.clone();
        let (sender, receiver) = mpsc::channel(PENDING);
        let answer = |message| Ok(api::ImportResponse { message: Some(message) });
        tokio::spawn(async move {
            let progress = sender.clone();
            let imported = blocking(move || {
                let store =
                    Store::open(&root)?.with_progress(move |step: Step, done_bytes, total: Option<u64>| {
                        let total_bytes = total.unwrap_or(0);
                        let message =
                            api::ImportProgress { step: step.as_str().to_owned(), done_bytes, total_bytes };
                        // Progress is for eyes: a client that does not keep up misses some.
                        let _ = progress.try_send(answer(Message::Progress(message)));
                    });
                store.import(std::path::Path::new(&path), tag.as_ref())
            })
            .await;
            if let Ok(Ok(image)) = &imported {
                worker.keep_image_limit(image.digest.clone()).await;
            }
            let last = match imported {
                Ok(Ok(image)) => answer(Message::Image((&image).into())),
                Ok(Err(error)) => Err(image_error(error).into()),
                Err(error) => Err(error.into()),
            };
            let _ = sender.send(last).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn prune_images(
        &self,
        request: Request<api::PruneImagesRequest>,
    ) -> Result<Response<api::PruneImagesResponse>, Status> {
        let unused = if request.into_inner().all { Unused::All } else { Unused::Dangling };
        let pruned = self.worker.prune_images(unused).await?;
        let images = pruned.images.iter().map(ToString::to_string).collect();
        Ok(Response::new(api::PruneImagesResponse { images, freed_bytes: pruned.bytes }))
    }

    async fn list_images(
        &self,
        _: Request<api::ListImagesRequest>,
    ) -> Result<Response<api::ListImagesResponse>, Status> {
        let store = Arc::clone(&self.worker.store);
        let images = blocking(move || store.list()).await?.map_err(image_error)?;
        Ok(Response::new(api::ListImagesResponse { images: images.iter().map(api::Image::from).collect() }))
    }

    type PullStream = BoxStream<api::PullResponse>;

    async fn pull(&self, request: Request<api::PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        use api::pull_response::Message;
        let wish = Wish::of_pull(request.into_inner())?;
        let worker = Arc::clone(&self.worker);
        let (sender, receiver) = mpsc::channel(PENDING);
        let answer = |message| api::PullResponse { message: Some(message) };
        tokio::spawn(async move {
            let (watch, layers) = Layers::new();
            let work = worker.fulfil(wish, watch);
            let done = layers.during(work, &sender, |progress| answer(Message::Progress(progress))).await;
            if let Some(done) = done {
                let last = done.map(|image| answer(Message::Image((&image).into()))).map_err(Status::from);
                let _ = sender.send(last).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    type PushStream = BoxStream<api::PushResponse>;

    async fn push(&self, request: Request<api::PushRequest>) -> Result<Response<Self::PushStream>, Status> {
        use api::push_response::Message;
        let (request, worker) = (request.into_inner(), Arc::clone(&self.worker));
        let (sender, receiver) = mpsc::channel(PENDING);
        let answer = |message| api::PushResponse { message: Some(message) };
        tokio::spawn(async move {
            let (watch, layers) = Layers::new();
            let work = worker.push(request, watch);
            let done = layers.during(work, &sender, |progress| answer(Message::Progress(progress))).await;
            if let Some(done) = done {
                let last = done.map(|image| answer(Message::Image(image))).map_err(Status::from);
                let _ = sender.send(last).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn check_login(
        &self,
        request: Request<api::CheckLoginRequest>,
    ) -> Result<Response<api::CheckLoginResponse>, Status> {
        self.worker.check_login(request.into_inner()).await?;
        Ok(Response::new(api::CheckLoginResponse {}))
    }

    async fn inspect_image(
        &self,
        request: Request<api::InspectImageRequest>,
    ) -> Result<Response<api::InspectImageResponse>, Status> {
        Ok(Response::new(self.worker.inspect_image(&request.into_inner().image).await?))
    }

    async fn remove_image(
        &self,
        request: Request<api::RemoveImageRequest>,
    ) -> Result<Response<api::RemoveImageResponse>, Status> {
        let api::RemoveImageRequest { image, force } = request.into_inner();
        let removed = self.worker.remove_image(&image, force).await?;
        Ok(Response::new(api::RemoveImageResponse {
            removed_references: removed.references.iter().map(ToString::to_string).collect(),
            removed_digest: removed.content.map_or_else(String::new, |digest| digest.to_string()),
            freed_bytes: removed.freed,
        }))
    }

    type ExportImageStream = BoxStream<api::ExportImageResponse>;

    async fn export_image(
        &self,
        request: Request<api::ExportImageRequest>,
    ) -> Result<Response<Self::ExportImageStream>, Status> {
        use api::export_image_response::Message;
        let (request, worker) = (request.into_inner(), Arc::clone(&self.worker));
        let (sender, receiver) = mpsc::channel(PENDING);
        let answer = |message| Ok(api::ExportImageResponse { message: Some(message) });
        tokio::spawn(async move {
            let progress = sender.clone();
            let report = move |step: Step, done_bytes, total: Option<u64>| {
                let (step, total_bytes) = (step.as_str().to_owned(), total.unwrap_or(0));
                let message = api::ImportProgress { step, done_bytes, total_bytes };
                // Progress is for eyes: a client that does not keep up misses some.
                let _ = progress.try_send(answer(Message::Progress(message)));
            };
            let last = match worker.export_image(request, report).await {
                Ok(path) => answer(Message::Path(path)),
                Err(error) => Err(error.into()),
            };
            let _ = sender.send(last).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

impl From<&beta9_image::Image> for api::Image {
    fn from(image: &beta9_image::Image) -> Self {
        Self {
            reference: image.reference.to_string(),
            digest: image.digest.to_string(),
            size_bytes: image.size,
            imported_us: micros(image.imported),
            layers: u32::try_from(image.layers.len()).unwrap_or(u32::MAX),
        }
    }
}

#[tonic::async_trait]
impl WorkerService for Server {
    type EventsStream = BoxStream<api::EventsResponse>;

    async fn events(
        &self,
        request: Request<api::EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        let mut subscription = self.worker.events(request.into_inner())?;
        let (sender, receiver) = mpsc::channel(PENDING);
        tokio::spawn(async move {
            loop {
                let message = tokio::select! {
                    message = subscription.next() => message,
                    () = sender.closed() => return,
                };
                let Some(message) = message else { return };
                if sender.send(Ok(api::EventsResponse { message: Some(message) })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn status(&self, _: Request<api::StatusRequest>) -> Result<Response<api::StatusResponse>, Status> {
        let running = self.worker.list().await?;
        let running = running.iter().filter(|c| c.state.state.status() == "running").count();
        let pools = self.worker.pools();
        Ok(Response::new(api::StatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            root: self.worker.root.to_string_lossy().into_owned(),
            started_us: self.worker.started_us,
            config_path: pools.config_path(),
            config_loaded_sha256: pools.loaded_hash(),
            config_file_sha256: pools.file_hash(),
            pools: pools.status().await,
            containers_running: u32::try_from(running).unwrap_or(u32::MAX),
        }))
    }
}

/// Checks every value of a request by its own type's rule.
fn parse(mut message: api::CreateRequest) -> Result<ContainerRequest, Error> {
    fn optional<T: std::str::FromStr<Err = beta9_types::ParseError>>(text: &str) -> Result<Option<T>, Error> {
        if text.is_empty() { Ok(None) } else { Ok(Some(text.parse()?)) }
    }
    let text = |text: String| Some(text).filter(|text| !text.is_empty());
    let options = options(&mut message)?;
    Ok(ContainerRequest {
        options,
        image: message.image.parse()?,
        command: message.command,
        env: message.env,
        cwd: text(message.cwd),
        user: optional(&message.user)?,
        hostname: text(message.hostname),
        // Where they come from is found when the image is there.
        mounts: Vec::new(),
        memory: match message.memory_bytes {
            0 => None,
            bytes => Some(MemoryBytes::try_from(bytes)?),
        },
        name: optional(&message.name)?,
        runtime: optional(&message.runtime)?,
        pool: text(message.pool),
        stdin: message.stdin,
        auto_remove: message.auto_remove,
        terminal: streams::terminal_size(message.terminal)?,
        attach: message.attach,
        log_max_size: Some(message.log_max_size).filter(|size| *size > 0),
        log_max_files: Some(message.log_max_files).filter(|count| *count > 0),
    })
}

/// Empty is the main process.
fn exec_id(text: &str) -> Result<Option<ExecId>, Error> {
    if text.is_empty() { Ok(None) } else { Ok(Some(text.parse()?)) }
}
