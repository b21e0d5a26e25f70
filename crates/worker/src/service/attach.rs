//! A client at a container's streams. Output is read from the log, so a slow client misses nothing and holds up nobody.

use beta9_supervisor::{ContainerDirectory, LogEntry, LogReader, Supervisor, Until};
use beta9_types::Exit;

use crate::api;
use crate::error::{Error, ErrorKind, Result};
use crate::service::Worker;
use crate::service::follow::Follower;

/// A container's output from its first byte to its end.
pub(super) struct Output {
    follower: Follower,
    reader: LogReader,
    exit: Option<Exit>,
    is_open: bool,
}

/// What comes out of a container.
pub(super) enum Event {
    Entries(Vec<LogEntry>),
    Exit(Exit),
}

impl Worker {
    /// The output of a container that was started.
    pub(super) fn output(&self, container: &str) -> Result<Output> {
        let (directory, record) = self.find(container)?;
        if !directory.log().exists() {
            let text = format!("container {} has not been started", record.id.short());
            return Err(Error::new(ErrorKind::Precondition, text));
        }
        let reader = LogReader::open(&directory.log())?;
        Ok(Output { follower: Follower::new(directory, Until::Gone), reader, exit: None, is_open: true })
    }

    /// What is in a container's log now. Empty for one that was not started.
    pub(super) fn log_so_far(&self, container: &str) -> Result<Option<LogReader>> {
        let (directory, _) = self.find(container)?;
        if directory.log().exists() { Ok(Some(LogReader::open(&directory.log())?)) } else { Ok(None) }
    }

    /// Moves a client's messages into the container's stdin until it or the container has had enough.
    pub(super) async fn feed(
        &self,
        container: &str,
        mut input: tonic::Streaming<api::AttachRequest>,
    ) -> Result<()> {
        let (directory, record) = self.find(container)?;
        if !record.request.stdin {
            return Ok(());
        }
        feed(&directory, &mut input).await
    }
}

async fn feed(
    directory: &ContainerDirectory,
    input: &mut tonic::Streaming<api::AttachRequest>,
) -> Result<()> {
    use api::attach_request::Message;
    let mut stdin = Supervisor::of(directory.clone()).stdin().await?;
    loop {
        match input.message().await {
            Ok(Some(api::AttachRequest { message: Some(Message::Stdin(bytes)) })) => {
                if stdin.send(&bytes).await.is_err() {
                    return Ok(());
                }
            }
            Ok(Some(api::AttachRequest { message: Some(Message::Open(_)) })) => {
                return Err(Error::new(ErrorKind::Invalid, "an attach is opened once"));
            }
            // Closed, the end of the messages, or a client that went away: the input is over.
            _ => {
                let _ = stdin.close().await;
                return Ok(());
            }
        }
    }
}

impl Output {
    /// The next piece of output; after all of it the exit; then `None`.
    pub(super) async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            let entries = self.reader.read().map_err(|e| Error::internal("read the container's log", e))?;
            if !entries.is_empty() {
                return Ok(Some(Event::Entries(entries)));
            }
            if !self.is_open {
                return Ok(self.exit.take().map(Event::Exit));
            }
            match self.follower.next().await? {
                Some(update) if update.is_final() => {
                    self.exit = update.state.state.exit().cloned();
                    self.is_open = false;
                }
                Some(_) => {}
                None => self.is_open = false,
            }
        }
    }
}
