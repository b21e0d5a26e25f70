//! Following a container's life, wherever the truth about it is at the moment: a supervisor's socket or a file.

use std::time::Duration;

use beta9_supervisor::{
    ContainerDirectory, ErrorKind as SupervisorErrorKind, StateFile, Supervisor, Until, Update, Updates,
    needs_recovery,
};

use crate::error::{Error, ErrorKind, Result};
use crate::service::launch;

/// A supervisor that holds its lock opens its socket, or ends, within this time.
const PATIENCE: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(20);

/// A container's changes, from the present state to its end.
pub(super) struct Follower {
    directory: ContainerDirectory,
    until: Until,
    updates: Option<Updates>,
    finished: bool,
}

impl Follower {
    /// Follows the container in `directory`.
    pub(super) fn new(directory: ContainerDirectory, until: Until) -> Self {
        Self { directory, until, updates: None, finished: false }
    }

    /// The next change; `None` after the last. A container that was only created waits for its start.
    pub(super) async fn next(&mut self) -> Result<Option<Update>> {
        let mut patience = PATIENCE;
        while !self.finished {
            if let Some(updates) = &mut self.updates {
                match updates.next().await {
                    Ok(Some(update)) => {
                        self.finished = match self.until {
                            Until::Started => update.state.state.is_started(),
                            Until::Gone | Until::Over => update.is_final(),
                        };
                        return Ok(Some(update));
                    }
                    Ok(None) | Err(_) => self.updates = None,
                }
            }
            let state = StateFile::read(&self.directory)?;
            if state.cleaned && state.state.exit().is_some() {
                self.finished = true;
                return Ok(Some(Update { state }));
            }
            if needs_recovery(&self.directory)? {
                launch::recover(&self.directory).await?;
                continue;
            }
            match Supervisor::of(self.directory.clone()).watch(self.until).await {
                Ok(updates) => self.updates = Some(updates),
                Err(error) if error.kind() == SupervisorErrorKind::Gone && !patience.is_zero() => {
                    if !self.directory.path().exists() {
                        let text = "the container is gone, and its record with it";
                        return Err(Error::new(ErrorKind::NotFound, text));
                    }
                    patience = patience.saturating_sub(STEP);
                    tokio::time::sleep(STEP).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// The last change: the container's end, or the end of its start.
    pub(super) async fn last(&mut self) -> Result<StateFile> {
        let mut last = None;
        while let Some(update) = self.next().await? {
            last = Some(update.state);
        }
        last.ok_or_else(|| Error::new(ErrorKind::Internal, "the container's end was not reported"))
    }
}
