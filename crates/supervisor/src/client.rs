//! The worker's side of a supervisor's socket.

use std::time::Duration;

use beta9_types::{ExecId, SignalNumber, TerminalSize};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio_util::bytes::Bytes;
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use crate::directory::{ContainerDirectory, Socket};
use crate::error::{Error, ErrorKind, Result};
use crate::operate::{Answer, CHUNK, Copy, CopyPiece, Operation, Refusal};
use crate::protocol::{AttachFrom, ExecSpec, Input, Piece, Reads, Reply, Request, Until, Update, codec};

/// A supervisor answers from memory; slower means stuck.
const DEADLINE: Duration = Duration::from_secs(10);
/// What it has to ask its runtime takes longer, also with a deadline of its own.
const RUNTIME_DEADLINE: Duration = Duration::from_secs(90);

type Connection = Framed<UnixStream, LengthDelimitedCodec>;

/// A container's supervisor, addressed by the container's directory.
#[derive(Debug, Clone)]
pub struct Supervisor {
    directory: ContainerDirectory,
    socket: Socket,
}

impl Supervisor {
    /// The supervisor of the container in `directory`. Connects at each call.
    pub fn of(directory: ContainerDirectory) -> Self {
        Self { directory, socket: Socket::Supervisor }
    }

    /// Whoever lends out the files of the container in `directory`, which does not run. It copies and can be stopped.
    pub fn lender_of(directory: ContainerDirectory) -> Self {
        Self { directory, socket: Socket::Lender }
    }

    /// Sends signal `number` to the main process, or to `all` processes.
    pub async fn signal(&self, number: i32, all: bool) -> Result<()> {
        self.ask(&Request::Signal { number, all, exec: None }).await.map(drop)
    }

    /// Sends signal `number` to a process that [`exec`](Self::exec) started.
    pub async fn signal_exec(&self, exec: ExecId, number: i32) -> Result<()> {
        self.ask(&Request::Signal { number, all: false, exec: Some(exec) }).await.map(drop)
    }

    /// Changes the size of the terminal of the main process, or of one that [`exec`](Self::exec) started.
    pub async fn resize(&self, exec: Option<ExecId>, size: TerminalSize) -> Result<()> {
        self.ask(&Request::Resize { exec, size }).await.map(drop)
    }

    /// Has the container stopped: its stop signal or the one given, and SIGKILL after `grace`. Returns at once.
    pub async fn stop(&self, grace: Duration, signal: Option<SignalNumber>) -> Result<()> {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        self.ask(&Request::Stop { grace_ms, signal }).await.map(drop)
    }

    /// A stream of every change from now on, the present state first.
    pub async fn watch(&self, until: Until) -> Result<Updates> {
        Ok(Updates { connection: self.ask(&Request::Watch { until }).await?.0 })
    }

    /// Takes part in the container's streams. The first number is the position of the log's first piece.
    pub async fn attach(&self, from: AttachFrom, stdin: bool) -> Result<(u64, SessionInput, SessionOutput)> {
        let (connection, reply) = self.ask(&Request::Attach { from, stdin }).await?;
        let (input, output) = session(connection);
        Ok((position(&reply), input, output))
    }

    /// Does something with the running container.
    pub async fn operate(&self, operation: Operation) -> Result<std::result::Result<Answer, Refusal>> {
        let request = Request::Operate { operation };
        let (_, reply) = self.ask_within(&request, RUNTIME_DEADLINE).await?;
        match reply {
            Reply::Operated { outcome } => Ok(outcome),
            _ => Err(Error::new(ErrorKind::Refused, "the supervisor answered something else")),
        }
    }

    /// Begins to copy files.
    pub async fn copy(&self, files: Copy) -> Result<std::result::Result<CopyStream, Refusal>> {
        let (connection, reply) = self.ask_within(&Request::Copy { files }, DEADLINE).await?;
        match reply {
            Reply::Operated { outcome: Err(refusal) } => Ok(Err(refusal)),
            Reply::Ok => Ok(Ok(CopyStream { connection })),
            _ => Err(Error::new(ErrorKind::Refused, "the supervisor answered something else")),
        }
    }

    /// Reads the log from a position on, or from the first that is kept, which is the number.
    pub async fn logs(&self, from: u64, reads: Reads) -> Result<(u64, SessionOutput)> {
        let (connection, reply) = self.ask(&Request::Logs { from, reads }).await?;
        let (input, output) = session(connection);
        Ok((position(&reply), SessionOutput { _input: Some(input), ..output }))
    }

    /// Starts another process; returns when it runs, or says which exit code stands for the failure.
    pub async fn exec(
        &self,
        spec: ExecSpec,
    ) -> Result<std::result::Result<(SessionInput, SessionOutput), ExecFailure>> {
        let (connection, reply) = self.ask_within(&Request::Exec(Box::new(spec)), RUNTIME_DEADLINE).await?;
        Ok(match reply {
            Reply::ExecFailed { code, message } => Err(ExecFailure { code, message }),
            _ => Ok(session(connection)),
        })
    }

    async fn ask(&self, request: &Request) -> Result<(Connection, Reply)> {
        let slow = matches!(request, Request::Signal { .. } | Request::Resize { .. });
        self.ask_within(request, if slow { RUNTIME_DEADLINE } else { DEADLINE }).await
    }

    async fn ask_within(&self, request: &Request, deadline: Duration) -> Result<(Connection, Reply)> {
        let exchange = async {
            let directory = self.directory.open().map_err(|e| self.gone(e))?;
            let path = ContainerDirectory::short_path(&directory, self.socket);
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

/// A process that could not be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecFailure {
    /// The exit code that stands for it: 125, 126 or 127.
    pub code: u8,
    /// What was tried and what went wrong.
    pub message: String,
}

fn position(reply: &Reply) -> u64 {
    match reply {
        Reply::Log { position } => *position,
        _ => 0,
    }
}

fn session(connection: Connection) -> (SessionInput, SessionOutput) {
    let (sink, stream) = connection.split();
    (SessionInput { sink }, SessionOutput { stream, _input: None })
}

/// What is sent to a container that one is attached to, or to a process that one has started. Dropping it ends nothing;
/// dropping it and the output is leaving.
#[derive(Debug)]
pub struct SessionInput {
    sink: SplitSink<Connection, Bytes>,
}

impl SessionInput {
    /// Longest piece that is sent in one frame.
    const PIECE: usize = 64 << 10;

    /// Sends bytes to stdin.
    pub async fn send(&mut self, data: &[u8]) -> Result<()> {
        for piece in data.chunks(Self::PIECE) {
            self.frame(&Input::Stdin(Bytes::copy_from_slice(piece))).await?;
        }
        Ok(())
    }

    /// End-of-file.
    pub async fn end(&mut self) -> Result<()> {
        self.frame(&Input::End).await
    }

    /// Leaves, with stdin open for the next.
    pub async fn detach(&mut self) -> Result<()> {
        self.frame(&Input::Detach).await
    }

    async fn frame(&mut self, input: &Input) -> Result<()> {
        self.sink
            .send(input.encode())
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
        match CopyPiece::decode(frame.freeze()) {
            Some(CopyPiece::Data(bytes)) => Ok(Ok(Some(bytes))),
            Some(CopyPiece::Done) => Ok(Ok(None)),
            Some(CopyPiece::Failed(refusal)) => Ok(Err(refusal)),
            _ => Err(broken()),
        }
    }

    /// Sends a part of an archive that goes in. That it is not taken is explained by [`next`](Self::next).
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(CHUNK) {
            self.piece(&CopyPiece::Data(Bytes::copy_from_slice(piece))).await?;
        }
        Ok(())
    }

    /// Says that the archive is whole.
    pub async fn end(&mut self) -> Result<()> {
        self.piece(&CopyPiece::End).await
    }

    async fn piece(&mut self, piece: &CopyPiece) -> Result<()> {
        let sent = self.connection.send(piece.encode()).await;
        sent.map_err(|e| Error::caused(ErrorKind::Gone, "the copy takes no more", e))
    }
}

/// What comes from a container that one is attached to, or from a process that one has started.
#[derive(Debug)]
pub struct SessionOutput {
    stream: SplitStream<Connection>,
    /// Where there is no input: the half without which the connection would be closed.
    _input: Option<SessionInput>,
}

impl SessionOutput {
    /// The next piece; `None` when the connection was cut off or, after the last piece, closed.
    pub async fn next(&mut self) -> Result<Option<Piece>> {
        match self.stream.next().await {
            Some(Ok(frame)) => Piece::decode(frame.freeze())
                .map(Some)
                .ok_or_else(|| Error::new(ErrorKind::Refused, "the supervisor sent something unknown")),
            Some(Err(_)) | None => Ok(None),
        }
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
