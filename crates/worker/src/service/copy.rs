//! Files between a client and a container, running or not.

use std::io;
use std::os::fd::OwnedFd;

use beta9_supervisor::{
    ContainerDirectory, Copy, CopyStream, Record, Refusal, StateFile, Supervisor, copy_stopped,
    needs_recovery,
};
use beta9_types::{CopyIn, CopyOut, Placement};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use crate::api;
use crate::error::{Error, ErrorKind, Result};
use crate::service::launch::Loan;
use crate::service::operate::{is_alive, refused};
use crate::service::{Worker, launch};

/// Bytes of an archive in one message.
const CHUNK: usize = 64 << 10;

/// An archive that comes out of a container.
pub(super) struct Outgoing {
    record: Record,
    from: From,
}

enum From {
    Running(CopyStream, #[expect(dead_code, reason = "held while files are copied")] Option<Loan>),
    Stopped { pipe: pipe::Receiver, verdict: Verdict },
}

type Verdict = oneshot::Receiver<std::result::Result<(), Refusal>>;

impl Worker {
    /// Begins to copy files out of a container.
    pub(super) async fn copy_out(&self, container: &str, request: CopyOut) -> Result<Outgoing> {
        let (directory, record) = self.find(container)?;
        let request = CopyOut { path: absolute(&request.path), ..request };
        let files = Copy::Out(request);
        let from = if let Some((supervisor, loan)) = lender(&directory, &record).await? {
            let begun = supervisor.copy(files).await?;
            From::Running(begun.map_err(|refusal| refused(&record, refusal))?, loan)
        } else {
            let (read, write) = new_pipe()?;
            let verdict = begin_stopped(directory, record.clone(), files, write)?;
            From::Stopped { pipe: pipe::Receiver::from_owned_fd(read).map_err(no_pipe)?, verdict }
        };
        Ok(Outgoing { record, from })
    }

    /// Copies files into a container.
    pub(super) async fn copy_in(
        &self,
        open: api::CopyToOpen,
        input: tonic::Streaming<api::CopyToRequest>,
    ) -> Result<Record> {
        let (directory, record) = self.find(&open.container)?;
        let placement = if open.unpack { Placement::Unpacked } else { Placement::Named };
        let files = Copy::In(CopyIn { path: absolute(&open.path), placement, keep_owner: open.keep_owner });
        let outcome = if let Some((supervisor, _loan)) = lender(&directory, &record).await? {
            match supervisor.copy(files).await? {
                Ok(stream) => copy_in_running(stream, input).await?,
                Err(refusal) => Err(refusal),
            }
        } else {
            let (read, write) = new_pipe()?;
            let verdict = begin_stopped(directory, record.clone(), files, read)?;
            copy_in_stopped(write, verdict, input).await?
        };
        outcome.map_err(|refusal| refused(&record, refusal))?;
        Ok(record)
    }
}

impl Outgoing {
    /// The container.
    pub(super) fn record(&self) -> &Record {
        &self.record
    }

    /// The next part of the archive; `None` when it is whole.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        match &mut self.from {
            From::Running(stream, _) => match stream.next().await? {
                Ok(bytes) => Ok(bytes.map(|bytes| bytes.to_vec())),
                Err(refusal) => Err(refused(&self.record, refusal)),
            },
            From::Stopped { pipe, verdict } => {
                let mut buffer = vec![0; CHUNK];
                let count = pipe.read(&mut buffer).await.map_err(no_pipe)?;
                buffer.truncate(count);
                if count > 0 {
                    return Ok(Some(buffer));
                }
                match verdict.await.unwrap_or_else(|_| Err(panicked())) {
                    Ok(()) => Ok(None),
                    Err(refusal) => Err(refused(&self.record, refusal)),
                }
            }
        }
    }
}

/// What a client sends: parts of an archive, and that it is whole. Anything else is an archive that was cut off.
async fn next(input: &mut tonic::Streaming<api::CopyToRequest>) -> Option<Vec<u8>> {
    use api::copy_to_request::Message;
    match input.message().await {
        Ok(Some(api::CopyToRequest { message: Some(Message::Data(data)) })) => Some(data),
        Ok(Some(api::CopyToRequest { message: Some(Message::End(true)) })) => Some(Vec::new()),
        _ => None,
    }
}

async fn copy_in_running(
    mut stream: CopyStream,
    mut input: tonic::Streaming<api::CopyToRequest>,
) -> Result<std::result::Result<(), Refusal>> {
    loop {
        let sent = match next(&mut input).await {
            None => return Err(Error::new(ErrorKind::Invalid, "the archive was cut off by its sender")),
            Some(data) if data.is_empty() => {
                let _ = stream.end().await;
                break;
            }
            Some(data) => stream.send(&data).await,
        };
        if sent.is_err() {
            // Why it takes no more is said by what it says last.
            break;
        }
    }
    Ok(stream.next().await?.map(drop))
}

async fn copy_in_stopped(
    to: OwnedFd,
    verdict: Verdict,
    mut input: tonic::Streaming<api::CopyToRequest>,
) -> Result<std::result::Result<(), Refusal>> {
    let mut to = pipe::Sender::from_owned_fd(to).map_err(no_pipe)?;
    loop {
        match next(&mut input).await {
            None => return Err(Error::new(ErrorKind::Invalid, "the archive was cut off by its sender")),
            Some(data) if data.is_empty() || to.write_all(&data).await.is_err() => break,
            Some(_) => {}
        }
    }
    drop(to);
    Ok(verdict.await.unwrap_or_else(|_| Err(panicked())))
}

/// Who copies files of the container: its supervisor, or where it does not run and its disk is a guest's, whoever boots one.
/// `None` where the files are there for everybody.
async fn lender(
    directory: &ContainerDirectory,
    record: &Record,
) -> Result<Option<(Supervisor, Option<Loan>)>> {
    if is_alive(&StateFile::read(directory)?.state) {
        return Ok(Some((Supervisor::of(directory.clone()), None)));
    }
    if !record.runtime.is_microvm() {
        return Ok(None);
    }
    if needs_recovery(directory)? {
        launch::recover(directory).await?;
    }
    let loan = launch::lend(directory).await.map_err(|error| {
        let text = format!("container {}: {}", record.id.short(), crate::error::chain(&error));
        Error::new(error.kind(), text)
    })?;
    Ok(Some((Supervisor::lender_of(directory.clone()), Some(loan))))
}

/// Copies on a thread of its own, which ends with the copy.
fn begin_stopped(
    directory: ContainerDirectory,
    record: Record,
    files: Copy,
    stream: OwnedFd,
) -> Result<Verdict> {
    let (done, verdict) = oneshot::channel();
    std::thread::Builder::new()
        .name("copy".to_owned())
        .spawn(move || drop(done.send(copy_stopped(&directory, &record, files, stream))))
        .map_err(|e| Error::internal("start a thread", e))?;
    Ok(verdict)
}

/// docker's rule: a path of a container begins at its root.
fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

fn new_pipe() -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = io::pipe().map_err(no_pipe)?;
    Ok((read.into(), write.into()))
}

fn no_pipe(error: io::Error) -> Error {
    Error::internal("use the copy's pipe", error)
}

fn panicked() -> Refusal {
    Refusal { is_missing: false, message: "the copy panicked".to_owned() }
}
