//! The worker's side of a supervisor's socket.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio_util::bytes::Bytes;
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use crate::directory::ContainerDirectory;
use crate::error::{Error, ErrorKind, Result};
use crate::operate::{Answer, CHUNK, Copy, Operation, Piece, Refusal};
use crate::protocol::{Reply, Request, Until, Update, codec};

/// A supervisor answers from memory; slower means stuck.
const DEADLINE: Duration = Duration::from_secs(10);

/// What it has to ask its runtime takes longer, also with a deadline of its own.
const RUNTIME_DEADLINE: Duration = Duration::from_secs(120);

type Connection = Framed<UnixStream, LengthDelimitedCodec>;

/// A container's supervisor, addressed by the container's directory.
#[derive(Debug, Clone)]
pub struct Supervisor {
    directory: ContainerDirectory,
}

impl Supervisor {
    /// The supervisor of the container in `directory`. Connects at each call.
    pub fn of(directory: ContainerDirectory) -> Self {
        Self { directory }
    }

    /// Sends signal `number` to the main process, or to `all` processes.
    pub async fn signal(&self, number: i32, all: bool) -> Result<()> {
        self.ask(&Request::Signal { number, all }).await.map(drop)
    }

    /// Has the container stopped: SIGTERM, and SIGKILL after `grace`. Returns at once.
    pub async fn stop(&self, grace: Duration) -> Result<()> {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        self.ask(&Request::Stop { grace_ms }).await.map(drop)
    }

    /// A stream of every change from now on, the present state first.
    pub async fn watch(&self, until: Until) -> Result<Updates> {
        Ok(Updates { connection: self.ask(&Request::Watch { until }).await? })
    }

    /// Takes the container's stdin. Refused when it has none or somebody else has it.
    pub async fn stdin(&self) -> Result<StdinSender> {
        Ok(StdinSender { connection: self.ask(&Request::Stdin).await? })
    }

    /// Does something with the running container.
    pub async fn operate(&self, operation: Operation) -> Result<std::result::Result<Answer, Refusal>> {
        let request = Request::Operate { operation };
        let (_, reply) = self.converse(&request, RUNTIME_DEADLINE).await?;
        match reply {
            Reply::Operated { outcome } => Ok(outcome),
            _ => Err(Error::new(ErrorKind::Refused, "the supervisor answered something else")),
        }
    }

    /// Begins to copy files.
    pub async fn copy(&self, files: Copy) -> Result<std::result::Result<CopyStream, Refusal>> {
        let (connection, reply) = self.converse(&Request::Copy { files }, DEADLINE).await?;
        match reply {
            Reply::Operated { outcome: Err(refusal) } => Ok(Err(refusal)),
            Reply::Ok => Ok(Ok(CopyStream { connection })),
            _ => Err(Error::new(ErrorKind::Refused, "the supervisor answered something else")),
        }
    }

    async fn ask(&self, request: &Request) -> Result<Connection> {
        self.converse(request, DEADLINE).await.map(|(connection, _)| connection)
    }

    async fn converse(&self, request: &Request, deadline: Duration) -> Result<(Connection, Reply)> {
        let exchange = async {
            let directory = self.directory.open().map_err(|e| self.gone(e))?;
            let path = self.directory.short_socket_path(&directory);
            let stream = UnixStream::connect(path).await.map_err(|e| self.gone(e))?;
            let mut connection = Framed::new(stream, codec());
            let body = serde_json::to_vec(request).map_err(|e| self.gone(e))?;
            connection.send(Bytes::from(body)).await.map_err(|e| self.gone(e))?;
            match receive::<Reply>(&mut connection).await? {
                Some(Reply::Refused { message }) => Err(Error::new(ErrorKind::Refused, message)),
                Some(reply) => Ok((connection, reply)),
                None => Err(Error::new(ErrorKind::Gone, self.gone_message())),
            }
        };
        tokio::time::timeout(deadline, exchange).await.unwrap_or_else(|_| {
            let text = format!("the supervisor in {} did not answer", self.directory.path().display());
            Err(Error::new(ErrorKind::Timeout, text))
        })
    }

    fn gone(&self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::caused(ErrorKind::Gone, self.gone_message(), cause)
    }

    fn gone_message(&self) -> String {
        format!("no supervisor answers in {}", self.directory.path().display())
    }
}

/// Changes in a container's life.
#[derive(Debug)]
pub struct Updates {
    connection: Connection,
}

impl Updates {
    /// The next change. `None` when the supervisor is gone; after a final update that is how it should be.
    pub async fn next(&mut self) -> Result<Option<Update>> {
        receive(&mut self.connection).await
    }
}

/// The container's stdin.
#[derive(Debug)]
pub struct StdinSender {
    connection: Connection,
}

impl StdinSender {
    /// Longest piece that is sent in one frame.
    const PIECE: usize = 64 << 10;

    /// Sends bytes. An error means that the container takes no more, which ends no container.
    pub async fn send(&mut self, data: &[u8]) -> Result<()> {
        for piece in data.chunks(Self::PIECE) {
            self.frame(Bytes::copy_from_slice(piece)).await?;
        }
        Ok(())
    }

    /// End-of-file.
    pub async fn close(mut self) -> Result<()> {
        self.frame(Bytes::new()).await
    }

    async fn frame(&mut self, bytes: Bytes) -> Result<()> {
        self.connection
            .send(bytes)
            .await
            .map_err(|e| Error::caused(ErrorKind::Gone, "the container takes no more input", e))
    }
}

/// A copy under way.
#[derive(Debug)]
pub struct CopyStream {
    connection: Connection,
}

impl CopyStream {
    /// The next part of an archive that comes out; `None` when it is whole and the copy is done.
    pub async fn next(&mut self) -> Result<std::result::Result<Option<Bytes>, Refusal>> {
        let broken = || Error::new(ErrorKind::Gone, "the copy was cut off; the container may have ended");
        let Some(Ok(frame)) = self.connection.next().await else { return Err(broken()) };
        match Piece::decode(frame.freeze()) {
            Some(Piece::Data(bytes)) => Ok(Ok(Some(bytes))),
            Some(Piece::Done) => Ok(Ok(None)),
            Some(Piece::Failed(refusal)) => Ok(Err(refusal)),
            _ => Err(broken()),
        }
    }

    /// Sends a part of an archive that goes in. That it is not taken is explained by [`next`](Self::next).
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(CHUNK) {
            self.piece(&Piece::Data(Bytes::copy_from_slice(piece))).await?;
        }
        Ok(())
    }

    /// Says that the archive is whole.
    pub async fn end(&mut self) -> Result<()> {
        self.piece(&Piece::End).await
    }

    async fn piece(&mut self, piece: &Piece) -> Result<()> {
        let sent = self.connection.send(piece.encode()).await;
        sent.map_err(|e| Error::caused(ErrorKind::Gone, "the copy takes no more", e))
    }
}

async fn receive<T: DeserializeOwned>(connection: &mut Connection) -> Result<Option<T>> {
    match connection.next().await {
        None => Ok(None),
        Some(Err(e)) => Err(Error::caused(ErrorKind::Gone, "the supervisor's connection broke", e)),
        Some(Ok(body)) => serde_json::from_slice(&body)
            .map(Some)
            .map_err(|e| Error::caused(ErrorKind::Refused, "the supervisor sent something unknown", e)),
    }
}
