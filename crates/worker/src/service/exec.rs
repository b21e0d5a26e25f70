//! Other processes in a running container.

use std::time::Duration;

use beta9_supervisor::{
    Copy, ExecFailure, ExecSpec, Record, SessionInput, SessionOutput, StateFile, Supervisor,
};
use beta9_types::{ContainerState, CopyOut, ExecId, TerminalSize};

use crate::error::{Error, ErrorKind, Result};
use crate::service::Worker;
use crate::service::operate::refused;
use crate::spec::{self, Accounts, ExecChoices};

/// How long an account file may take to come out of a guest.
const ACCOUNTS_DEADLINE: Duration = Duration::from_secs(30);

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
    pub(super) record: Record,
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
        let supervisor = Supervisor::of(directory.clone());
        let accounts = match &choices.user {
            None => Accounts::default(),
            Some(_) if record.runtime.is_microvm() => accounts_in_guest(&supervisor, &record).await?,
            Some(_) => spec::accounts_here(&directory, &record)?,
        };
        let command = choices.args.join(" ");
        let process = spec::exec_process(&directory, choices, &accounts)?;
        // Where its end is to be told of, somebody has to stay.
        let detach = detach && !self.has_events();
        let spec = ExecSpec { id: id.clone(), process, stdin, terminal, detach };
        let of_exec = [("exec", id.to_string()), ("command", command)];
        self.tell(&record, "exec_create", &of_exec);
        let started = supervisor.exec(spec).await?;
        self.tell(&record, "exec_start", &of_exec);
        if let Err(failure) = &started {
            self.tell(
                &record,
                "exec_die",
                &[("exec", id.to_string()), ("exit_code", failure.code.to_string())],
            );
        }
        Ok(started.map(|(input, output)| Executed { id, record, input, output }))
    }
}

/// The account files of a container whose disk only its guest reads, as they are now.
async fn accounts_in_guest(supervisor: &Supervisor, record: &Record) -> Result<Accounts> {
    let passwd = file_in_guest(supervisor, record, "/etc/passwd").await?;
    let groups = file_in_guest(supervisor, record, "/etc/group").await?;
    Ok(Accounts::of_content(&passwd, &groups))
}

/// Bytes that an archive has beside the content of its one file, at most.
const ARCHIVE_OVERHEAD: usize = 64 << 10;

/// One that does not exist is empty.
async fn file_in_guest(supervisor: &Supervisor, record: &Record, path: &str) -> Result<Vec<u8>> {
    let most = usize::try_from(Accounts::MAX_FILE).unwrap_or(usize::MAX);
    let request = Copy::Out(CopyOut { path: path.to_owned(), follow: true });
    let read = async {
        let mut stream = match supervisor.copy(request).await? {
            Ok(stream) => stream,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let mut archive = Vec::new();
        loop {
            match stream.next().await? {
                Ok(Some(bytes)) if archive.len() + bytes.len() <= most + ARCHIVE_OVERHEAD => {
                    archive.extend_from_slice(&bytes);
                }
                Ok(Some(_)) => {
                    let text = format!("{path} of the container is larger than {most} bytes");
                    return Err(Error::new(ErrorKind::Invalid, text));
                }
                Ok(None) => return Ok(Ok(archive)),
                Err(refusal) => return Ok(Err(refusal)),
            }
        }
    };
    let read = tokio::time::timeout(ACCOUNTS_DEADLINE, read).await.unwrap_or_else(|_| {
        Err(Error::new(ErrorKind::Timeout, format!("{path} of the container could not be read in time")))
    });
    match read? {
        Ok(archive) => beta9_archive::content(archive.as_slice(), Accounts::MAX_FILE)
            .map_err(|e| Error::caused(ErrorKind::Invalid, format!("read {path} of the container"), e)),
        Err(refusal) if refusal.is_missing => Ok(Vec::new()),
        Err(refusal) => Err(refused(record, refusal)),
    }
}
