//! A worker to talk to: the one that serves the root directory, or one hosted in this process.

use std::path::Path;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use crate::api::container_service_client::ContainerServiceClient;
use crate::api::image_service_client::ImageServiceClient;
use crate::api::volume_service_client::VolumeServiceClient;
use crate::api::worker_service_client::WorkerServiceClient;
use crate::cli::{Failure, Global};
use crate::error::{Error, ErrorKind, Result};
use crate::pools::Setup;
use crate::service::{self, Worker};

/// Longest message accepted: a piece of a log.
const MAX_MESSAGE: usize = 16 << 20;

/// The worker's socket below its root.
pub(crate) const SOCKET: &str = "worker.sock";

/// The API of one worker.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) containers: ContainerServiceClient<Channel>,
    pub(crate) images: ImageServiceClient<Channel>,
    pub(crate) volumes: VolumeServiceClient<Channel>,
    pub(crate) worker: WorkerServiceClient<Channel>,
}

impl Client {
    /// Connects to the worker that serves the root; without one, hosts the service in this process.
    pub(crate) async fn connect(global: &Global) -> std::result::Result<Self, Failure> {
        let setup = Setup::load(global)?;
        let channel = match connect(&setup.root).await? {
            Some(stream) => channel(stream).await?,
            None => host(setup).await?,
        };
        Ok(Self {
            containers: ContainerServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE),
            images: ImageServiceClient::new(channel.clone()),
            volumes: VolumeServiceClient::new(channel.clone()),
            worker: WorkerServiceClient::new(channel),
        })
    }
}

/// A connection to the worker that serves `root`; `None` when none does.
pub(crate) async fn connect(root: &Path) -> Result<Option<UnixStream>> {
    use std::io::ErrorKind as Io;
    use std::os::fd::AsRawFd;
    let Ok(directory) = std::fs::File::open(root) else { return Ok(None) };
    // By descriptor: a socket address holds 107 bytes, a root may be longer.
    let path = format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd());
    match UnixStream::connect(path).await {
        Ok(stream) => Ok(Some(stream)),
        // A socket that nobody serves was left by a worker that was killed.
        Err(e) if matches!(e.kind(), Io::NotFound | Io::ConnectionRefused) => Ok(None),
        Err(e) => {
            let text = format!("connect to the worker at {}", root.join(SOCKET).display());
            Err(Error::caused(ErrorKind::Internal, text, e))
        }
    }
}

/// Serves the API to this very process, over a pipe in memory: the same code as with a daemon.
async fn host(setup: Setup) -> Result<Channel> {
    let (root, pools) = (setup.root.clone(), setup.into_pools(&[])?);
    let worker = Arc::new(Worker::open(&root, pools)?);
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let incoming = tokio_stream::once(Ok::<_, std::io::Error>(theirs));
    // It ends with this process, which is when nobody needs it any more.
    tokio::spawn(service::router(worker).serve_with_incoming(incoming));
    channel(ours).await
}

/// A gRPC channel over one connection that is made already.
async fn channel<S>(stream: S) -> Result<Channel>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let mut stream = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_| {
        let stream = stream.take().ok_or_else(|| std::io::Error::other("the worker closed the connection"));
        async move { stream }
    });
    Endpoint::from_static("http://worker")
        .connect_with_connector(connector)
        .await
        .map_err(|e| Error::internal("talk to the worker", e))
}
