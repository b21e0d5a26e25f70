//! A client at a container's output and input.
//!
//! While the container runs, its supervisor sends the log; afterwards its files are read, from where the supervisor
//! stopped. Either way a slow client holds up nobody.

use std::time::Duration;

use beta9_supervisor::{
    AttachFrom, ContainerDirectory, ErrorKind as SupervisorErrorKind, LogEntry, LogFiles, LogParser, Piece,
    Record, SessionInput, SessionOutput, Supervisor, Until, await_end,
};
use beta9_types::{ContainerState, Exit};

use crate::error::{Error, ErrorKind, Result};
use crate::service::follow::Follower;
use crate::service::{Worker, blocking};

/// Bytes of a log that are read at a time.
const CHUNK: usize = 64 << 10;

/// How long a container may take to remove itself after its end.
const REMOVAL_DEADLINE: Duration = Duration::from_secs(10);

/// A container's output, entry by entry, and its end.
pub(super) struct Output {
    directory: ContainerDirectory,
    parser: LogParser,
    source: Source,
    exit: Option<Exit>,
}

enum Source {
    Supervisor(SessionOutput),
    Files(LogFiles),
    Nothing,
}

/// What comes out of a container.
pub(super) enum Event {
    Entries(Vec<LogEntry>),
    Exit(Exit),
}

impl Worker {
    /// Takes part in the streams of a container that was started. There is no input to a container that is over, or that
    /// has no stdin, or for a client that only looks.
    pub(super) async fn attach(
        &self,
        container: &str,
        from: AttachFrom,
        with_stdin: WithStdin,
    ) -> Result<(Output, Option<SessionInput>)> {
        let (directory, record) = self.find(container)?;
        require_started(&directory, &record)?;
        let stdin = record.request.stdin && with_stdin == WithStdin::Yes;
        let supervisor = Supervisor::of(directory.clone());
        let mut session = supervisor.attach(from, stdin).await;
        if let Some(error) = session.as_ref().err().filter(|e| e.kind() == SupervisorErrorKind::Gone) {
            match look_again(&directory, error).await? {
                Again::Ask => session = supervisor.attach(from, stdin).await,
                Again::Over(exit) => {
                    let from = if from == AttachFrom::Now { u64::MAX } else { 0 };
                    return Ok((Output::of_files(directory, from, exit)?, None));
                }
            }
        }
        let (position, input, output) = session?;
        Ok((Output::of_supervisor(directory, position, output), Some(input)))
    }
}

/// Whether a client sends input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WithStdin {
    Yes,
    No,
}

/// What to do when no supervisor answers.
pub(super) enum Again {
    /// It is there after all: it was not up yet.
    Ask,
    /// The container is over, like this.
    Over(Option<Exit>),
}

/// Finds out why no supervisor answers.
pub(super) async fn look_again(
    directory: &ContainerDirectory,
    error: &beta9_supervisor::Error,
) -> Result<Again> {
    tracing::debug!(%error, "no supervisor answers at first");
    let update = Follower::new(directory.clone(), Until::Gone).next().await?;
    Ok(match update {
        Some(update) if !update.is_final() => Again::Ask,
        update => Again::Over(update.and_then(|update| update.state.state.exit().cloned())),
    })
}

/// A container that was only created has no output, and nobody who could be asked.
pub(super) fn require_started(directory: &ContainerDirectory, record: &Record) -> Result<()> {
    if beta9_supervisor::StateFile::read(directory)?.state == ContainerState::Created {
        let text = format!("container {} has not been started", record.id.short());
        return Err(Error::new(ErrorKind::Precondition, text));
    }
    Ok(())
}

impl Output {
    /// What a supervisor sends from `position` on.
    pub(super) fn of_supervisor(directory: ContainerDirectory, position: u64, output: SessionOutput) -> Self {
        let (parser, source) = (LogParser::at(position), Source::Supervisor(output));
        Self { directory, parser, source, exit: None }
    }

    /// What is in the files of a container that is over, from `position` on.
    pub(super) fn of_files(directory: ContainerDirectory, position: u64, exit: Option<Exit>) -> Result<Self> {
        let (parser, source) = if directory.log().exists() {
            let files = LogFiles::open(&directory.log(), position)?;
            (LogParser::at(files.position()), Source::Files(files))
        } else {
            (LogParser::at(0), Source::Nothing)
        };
        Ok(Self { directory, parser, source, exit })
    }

    /// Bytes of the log before what comes next.
    pub(super) fn position(&self) -> u64 {
        self.parser.position()
    }

    /// Waits until a container that removes itself at its end has done so, lest its name and its image seem to be in use to
    /// whoever waited for that end.
    pub(super) async fn see_removal(&self) {
        let directory = self.directory.clone();
        let waited = blocking(move || {
            if let Ok(Some(record)) = Record::read(&directory)
                && record.request.auto_remove
            {
                await_end(&directory, REMOVAL_DEADLINE);
            }
        });
        let _ = waited.await;
    }

    /// The next piece of output; after all of it the exit, where the container is over; then `None`.
    pub(super) async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            let entries = match &mut self.source {
                Source::Supervisor(session) => match session.next().await? {
                    Some(Piece::Log(bytes)) => self.parser.push(&bytes),
                    Some(Piece::Update(update)) => {
                        self.exit = update.state.state.exit().cloned();
                        self.source = Source::Nothing;
                        continue;
                    }
                    Some(Piece::End) => {
                        self.source = Source::Nothing;
                        continue;
                    }
                    Some(Piece::Stdout(_) | Piece::Stderr(_) | Piece::Exit(_)) => {
                        let text = "the supervisor sent the output of another process";
                        return Err(Error::new(ErrorKind::Internal, text));
                    }
                    None => {
                        self.go_on_without_supervisor().await?;
                        continue;
                    }
                },
                Source::Files(files) => {
                    let mut buffer = vec![0; CHUNK];
                    let count = files
                        .read(&mut buffer)
                        .map_err(|e| Error::internal("read the container's log", e))?;
                    if count == 0 {
                        self.source = Source::Nothing;
                        continue;
                    }
                    self.parser.push(&buffer[..count])
                }
                Source::Nothing => return Ok(self.exit.take().map(Event::Exit)),
            };
            if !entries.is_empty() {
                return Ok(Some(Event::Entries(entries)));
            }
        }
    }

    /// The supervisor's connection was cut off: it died, or has let this client go.
    async fn go_on_without_supervisor(&mut self) -> Result<()> {
        let update = Follower::new(self.directory.clone(), Until::Gone).next().await?;
        match update {
            Some(update) if update.is_final() => {
                let exit = update.state.state.exit().cloned();
                *self = Self::of_files(self.directory.clone(), self.position(), exit)?;
                Ok(())
            }
            _ => {
                let text = "the container's output was not read fast enough, so the connection was closed: \
                            the container goes on, and its log has what came last";
                Err(Error::new(ErrorKind::Precondition, text))
            }
        }
    }
}
