//! The gRPC face: messages in, messages out, nothing decided here.

mod images;
mod worker;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use beta9_supervisor::{Operation, OwnVolumes};
use beta9_types::{
    ContainerId, ContainerRequest, CopyOut, ExecId, LimitChange, MemoryBytes, NetworkPolicy, PortChange,
    RestartPolicy, SignalNumber,
};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::api;
use crate::api::container_service_server::{ContainerService, ContainerServiceServer};
use crate::api::image_service_server::ImageServiceServer;
use crate::api::volume_service_server::VolumeServiceServer;
use crate::api::worker_service_server::WorkerServiceServer;
use crate::error::{Error, ErrorKind};
use crate::service::images::Wish;
use crate::service::operate::HostChange;
use crate::service::operate::Rounds;
use crate::service::options::{disk_rate, options};
use crate::service::volumes::VolumeServer;
use crate::service::{Worker, streams};

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
        let api::ListRequest { all, sizes } = request.into_inner();
        let mut containers = Vec::new();
        for described in self.worker.list().await? {
            let is_up = matches!(described.state.state.status(), "running" | "starting" | "paused");
            if all || is_up {
                containers.push(self.worker.told(described, sizes).await?);
            }
        }
        Ok(Response::new(api::ListResponse { containers }))
    }

    async fn inspect(
        &self,
        request: Request<api::InspectRequest>,
    ) -> Result<Response<api::InspectResponse>, Status> {
        let api::InspectRequest { container, sizes } = request.into_inner();
        let described = self.worker.inspect(&container).await?;
        let container = self.worker.told(described, sizes).await?;
        Ok(Response::new(api::InspectResponse { container: Some(container) }))
    }

    async fn stop(&self, request: Request<api::StopRequest>) -> Result<Response<api::StopResponse>, Status> {
        let api::StopRequest { container, grace_ms, signal } = request.into_inner();
        self.worker.stop(&container, grace_ms.map(Duration::from_millis), stop_signal(signal)?).await?;
        Ok(Response::new(api::StopResponse {}))
    }

    async fn restart(
        &self,
        request: Request<api::RestartRequest>,
    ) -> Result<Response<api::RestartResponse>, Status> {
        let api::RestartRequest { container, grace_ms, signal } = request.into_inner();
        let grace = grace_ms.map(Duration::from_millis);
        let described = self.worker.restart(&container, grace, stop_signal(signal)?).await?;
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
        let api::UpdateRequest {
            container,
            memory_bytes,
            nano_cpus,
            pids,
            restart,
            network_policy,
            egress_rate,
            ingress_rate,
            disk_rate: disk_bytes,
            disk_operations,
            memory_reservation_bytes,
            publish_add,
            publish_remove,
        } = request.into_inner();
        let policy = match network_policy.as_str() {
            "" => None,
            text => Some(text.parse::<NetworkPolicy>().map_err(Error::from)?),
        };
        let ports = PortChange {
            remove: publish_remove
                .iter()
                .map(|port| port.parse())
                .collect::<Result<_, _>>()
                .map_err(Error::from)?,
            add: publish_add
                .iter()
                .map(|port| port.parse())
                .collect::<Result<_, _>>()
                .map_err(Error::from)?,
        };
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
        let disk = disk_rate(disk_bytes, disk_operations)?;
        let reservation = memory_reservation_bytes.map(MemoryBytes::try_from).transpose();
        let memory_reservation = reservation.map_err(Error::from)?;
        let host = HostChange { memory_reservation, disk };
        let of_host = memory_reservation.is_some() || !disk.is_empty();
        let of_container = !change.is_empty() || of_host || restart.is_some();
        let rates = egress_rate.is_some() || ingress_rate.is_some();
        if !of_container && !rates && policy.is_none() && ports.is_empty() {
            let text = "nothing to update: give --memory, --memory-reservation, --cpus, --pids-limit, --disk-rate, \
                        --disk-operations, --restart, --network-policy, --publish-add, --publish-rm, --egress-rate or --ingress-rate";
            return Err(Error::new(ErrorKind::Invalid, text).into());
        }
        if of_container {
            self.worker.update(&container, change, host, restart).await?;
        }
        if rates {
            self.worker.set_network_rates(&container, egress_rate, ingress_rate).await?;
        }
        if let Some(policy) = policy {
            self.worker.set_network_policy(&container, policy).await?;
        }
        if !ports.is_empty() {
            self.worker.change_ports(&container, ports).await?;
        }
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

/// 0 is the container's own.
fn stop_signal(number: i32) -> Result<Option<SignalNumber>, Error> {
    if number == 0 { Ok(None) } else { Ok(Some(number.to_string().parse()?)) }
}

/// Empty is the main process.
fn exec_id(text: &str) -> Result<Option<ExecId>, Error> {
    if text.is_empty() { Ok(None) } else { Ok(Some(text.parse()?)) }
}
