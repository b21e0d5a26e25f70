//! QEMU's monitor protocol (QMP): a line of JSON for each question, each answer and each event.

use std::time::Duration;

use async_trait::async_trait;
use beta9_runtime::{Error, ErrorKind, Result};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::super::watchdog::Pulse;
use super::super::{Change, DiskLimit, VmDirectory};
use super::QMP_SOCKET;
use super::command::device_name;

/// Longest line that is read. Real ones are a few hundred bytes; QEMU may be in a guest's hands.
const MAX_LINE: u64 = 64 << 10;
/// Events that may come before an answer.
const MAX_EVENTS: usize = 1024;
/// How long a connection may take to be ready for questions.
const GREETING_DEADLINE: Duration = Duration::from_secs(5);

/// A monitor that is connected to when it is first needed, which costs a VM's start nothing.
pub(super) struct Monitor {
    /// Open as long as this is: the socket is reached through it.
    directory: VmDirectory,
    connection: Option<BufReader<UnixStream>>,
    /// How many disks the VM has.
    drives: usize,
}

impl Monitor {
    pub(super) fn of(directory: VmDirectory, drives: usize) -> Self {
        Self { directory, connection: None, drives }
    }

    /// Asks, and waits for what comes back. Has no deadline of its own.
    pub(super) async fn execute(&mut self, command: &str, arguments: Option<Value>) -> Result<Value> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let answer = ask(&mut connection, command, arguments).await;
        // After half an answer nothing fits any more.
        if answer.is_ok() {
            self.connection = Some(connection);
        }
        answer
    }

    async fn connect(&self) -> Result<BufReader<UnixStream>> {
        let failed = |e| Error::caused(ErrorKind::Failed, "connect to qemu's monitor", e);
        let mut connection =
            BufReader::new(UnixStream::connect(self.directory.reach(QMP_SOCKET)).await.map_err(failed)?);
        let greeted = timeout(GREETING_DEADLINE, async {
            let greeting = read(&mut connection).await?;
            if greeting.get("QMP").is_none() {
                return Err(Error::new(ErrorKind::Failed, "qemu's monitor did not greet"));
            }
            ask(&mut connection, "qmp_capabilities", None).await
        });
        greeted
            .await
            .map_err(|_| Error::new(ErrorKind::Timeout, "qemu's monitor did not greet in time"))??;
        Ok(connection)
    }
}

#[async_trait]
impl Pulse for Monitor {
    async fn beat(&mut self) -> Result<()> {
        self.execute("query-status", None).await.map(drop)
    }

    async fn change(&mut self, change: Change) -> Result<()> {
        match change {
            Change::Disks(limit) => {
                for index in 0..self.drives {
                    self.execute("block_set_io_throttle", Some(throttle(index, limit))).await?;
                }
                Ok(())
            }
            Change::Balloon { taken, of } => {
                let left = u64::from(of.saturating_sub(taken)) << 20;
                self.execute("balloon", Some(json!({ "value": left }))).await.map(drop)
            }
        }
    }
}

/// What `block_set_io_throttle` takes: all of it, and 0 for no limit.
fn throttle(index: usize, limit: DiskLimit) -> Value {
    let DiskLimit { bytes, operations } = limit;
    json!({
        "id": device_name(index),
        "bps": bytes.unwrap_or(0), "bps_rd": 0, "bps_wr": 0,
        "iops": operations.unwrap_or(0), "iops_rd": 0, "iops_wr": 0,
    })
}

async fn ask(
    connection: &mut BufReader<UnixStream>,
    command: &str,
    arguments: Option<Value>,
) -> Result<Value> {
    let failed = |e| Error::caused(ErrorKind::Failed, format!("qemu {command}"), e);
    let mut question = match arguments {
        Some(arguments) => json!({ "execute": command, "arguments": arguments }),
        None => json!({ "execute": command }),
    }
    .to_string();
    question.push('\n');
    connection.write_all(question.as_bytes()).await.map_err(failed)?;
    for _ in 0..MAX_EVENTS {
        let mut heard = read(connection).await?;
        if let Some(answer) = heard.get_mut("return") {
            return Ok(answer.take());
        }
        if let Some(error) = heard.get("error") {
            let why = error["desc"].as_str().unwrap_or("without a word");
            return Err(Error::new(ErrorKind::Failed, format!("qemu {command} was refused: {why}")));
        }
    }
    Err(Error::new(ErrorKind::Failed, format!("qemu {command} was answered with events alone")))
}

async fn read(connection: &mut BufReader<UnixStream>) -> Result<Value> {
    let failed = |e| Error::caused(ErrorKind::Failed, "read from qemu's monitor", e);
    let mut line = Vec::new();
    connection.take(MAX_LINE).read_until(b'\n', &mut line).await.map_err(failed)?;
    if !line.ends_with(b"\n") {
        return Err(Error::new(ErrorKind::Failed, "qemu's monitor closed, or said a line without an end"));
    }
    serde_json::from_slice(&line)
        .map_err(|e| Error::caused(ErrorKind::Failed, "understand qemu's monitor", e))
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    /// Answers with these lines, one for each that it hears, the first unasked.
    async fn against(lines: &'static [&'static str]) -> Result<Value> {
        let root = tempfile::tempdir().unwrap();
        let id = beta9_types::ContainerId::parse("c1").unwrap();
        let directory = VmDirectory::create(root.path(), &id).unwrap();
        let listener = UnixListener::bind(directory.reach(QMP_SOCKET)).unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            for line in lines {
                stream.write_all(line.as_bytes()).await.unwrap();
                let mut heard = String::new();
                stream.read_line(&mut heard).await.unwrap();
            }
        });
        Monitor::of(directory, 1).execute("query-status", None).await
    }

    #[tokio::test(flavor = "current_thread")]
    async fn answers_are_found_among_events_and_refusals_repeated() {
        const HELLO: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n";
        let answer = against(&[
            HELLO,
            "{\"return\": {}}\n",
            "{\"event\": \"RTC_CHANGE\"}\n{\"return\": {\"status\": \"running\"}}\n",
        ]);
        assert_eq!(answer.await.unwrap()["status"], "running");
        let refused = against(&[
            HELLO,
            "{\"return\": {}}\n",
            "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\n",
        ]);
        assert_eq!(refused.await.unwrap_err().to_string(), "qemu query-status was refused: no");
        for bad in ["{}\n", "x\n"] {
            let lines: &'static [&'static str] = vec![bad].leak();
            assert!(against(lines).await.is_err(), "{bad} was accepted");
        }
    }
}
