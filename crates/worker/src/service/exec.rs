//! Other processes in a running container.

use beta9_supervisor::{ExecFailure, ExecSpec, SessionInput, SessionOutput, StateFile, Supervisor};
use beta9_types::{ContainerState, ExecId, TerminalSize};

use crate::error::{Error, ErrorKind, Result};
use crate::service::Worker;
use crate::spec::{self, ExecChoices};

/// How a client takes part in a process.
#[derive(Debug)]
pub(super) struct ExecStreams {
    pub(super) stdin: bool,
    pub(super) terminal: Option<TerminalSize>,
    pub(super) detach: bool,
}

/// A process that runs.
pub(super) struct Executed {
    pub(super) id: ExecId,
    pub(super) input: SessionInput,
    pub(super) output: SessionOutput,
}

impl Worker {
    /// Starts a process; returns when it runs, or with the exit code that stands for why it does not.
    pub(super) async fn exec(
        &self,
        container: &str,
        choices: ExecChoices,
        streams: ExecStreams,
    ) -> Result<std::result::Result<Executed, ExecFailure>> {
        let (directory, record) = self.find(container)?;
        let state = StateFile::read(&directory)?.state;
        if matches!(state, ContainerState::Paused { .. }) {
            let text = format!("container {} is paused: unpause it first", record.id.short());
            return Err(Error::new(ErrorKind::Precondition, text));
        }
        if !matches!(state, ContainerState::Running { .. }) {
            let text = format!("container {} is not running", record.id.short());
            return Err(Error::new(ErrorKind::Precondition, text));
        }
        let id = ExecId::random();
        let ExecStreams { stdin, terminal, detach } = streams;
        let process = spec::exec_process(&directory, &record, choices)?;
        let spec = ExecSpec { id: id.clone(), process, stdin, terminal, detach };
        let started = Supervisor::of(directory).exec(spec).await?;
        if started.is_ok() {
            self.tell(&record, "exec_start", &[("exec", id.to_string())]);
        }
        Ok(started.map(|(input, output)| Executed { id, input, output }))
    }
}
