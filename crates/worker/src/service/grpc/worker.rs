//! The worker's own service.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{BoxStream, PENDING, Server};
use crate::api;
use crate::api::worker_service_server::WorkerService;

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
