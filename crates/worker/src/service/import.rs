//! Taking an image in from a path.
//!
//! The path may be on a file system that does not answer any more, such as a FUSE mount whose server hangs, and a thread that
//! asks it for something cannot be called back. A process can: so one is started for the import, and ended when the source
//! has given nothing for too long.
//!
//! ```text
//! worker ──path, name──▶ `take-in` ──lines: steps, and at last the image or why not──▶ worker
//! ```

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use beta9_image::{Image, Step, Store};
use beta9_types::ImageReference;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use crate::api;
use crate::error::{Error, ErrorKind, Result};
use crate::service::lifecycle::image_error;
use crate::service::{Worker, blocking, own_program};

/// How long a source may give nothing.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a process that was killed may take to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// Longest line of the process: paths and names in messages.
const MAX_LINE: u64 = 64 << 10;
/// Progress is told at most so often.
const TELL_INTERVAL: Duration = Duration::from_millis(50);

/// What the process says, one a line.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "said", rename_all = "snake_case")]
enum Said {
    Step { step: String, done: u64, total: u64 },
    Done { reference: ImageReference },
    Failed { kind: Kind, message: String },
}

/// The kinds that a caller tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    NotFound,
    Invalid,
    Precondition,
    Internal,
}

impl From<ErrorKind> for Kind {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::Invalid => Self::Invalid,
            ErrorKind::Precondition => Self::Precondition,
            _ => Self::Internal,
        }
    }
}

impl From<Kind> for ErrorKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::NotFound => Self::NotFound,
            Kind::Invalid => Self::Invalid,
            Kind::Precondition => Self::Precondition,
            Kind::Internal => Self::Internal,
        }
    }
}

impl Worker {
    /// Takes an image in, and tells of the steps.
    pub(super) async fn import(
        &self,
        request: api::ImportRequest,
        tell: impl Fn(api::ImportProgress),
    ) -> Result<Image> {
        let api::ImportRequest { path, tag, patience_ms } = request;
        let tag: Option<ImageReference> = if tag.is_empty() { None } else { Some(tag.parse()?) };
        let patience = patience_ms.map_or(PATIENCE, Duration::from_millis);
        let reference = self.take_in(&path, tag.as_ref(), patience, tell).await?;
        let store = self.store.clone();
        let image = blocking(move || store.get(&reference)).await?.map_err(image_error)?;
        let digest = [("digest", image.digest.to_string())];
        self.tell_of_image("import", image.reference.as_ref(), &digest);
        self.keep_image_limit(image.digest.clone()).await;
        Ok(image)
    }

    async fn take_in(
        &self,
        path: &str,
        tag: Option<&ImageReference>,
        patience: Duration,
        tell: impl Fn(api::ImportProgress),
    ) -> Result<ImageReference> {
        let failed = |e| Error::internal("take the image in", e);
        let mut command = own_program();
        command.args(["take-in", "--"]).arg(&self.root).arg(path).args(tag.map(ToString::to_string));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        // With the caller's own end it ends, too.
        let mut child = Command::from(command).kill_on_drop(true).spawn().map_err(failed)?;
        let stdout = child.stdout.take().ok_or_else(|| Error::new(ErrorKind::Internal, "no pipe"))?;
        let mut lines = BufReader::new(stdout);
        loop {
            let mut line = Vec::new();
            let read = (&mut lines).take(MAX_LINE);
            tokio::pin!(read);
            let Ok(read) = timeout(patience, read.read_until(b'\n', &mut line)).await else {
                let _ = child.start_kill();
                let is_gone = timeout(KILL_DEADLINE, child.wait()).await.is_ok();
                let text = format!(
                    "{path} gave nothing for {} s: see whether its file system still answers{}",
                    patience.as_secs_f32(),
                    if is_gone { "" } else { "; a process that asked it cannot even be killed" }
                );
                return Err(Error::new(ErrorKind::Timeout, text));
            };
            let is_over = read.map_err(failed)? == 0;
            match serde_json::from_slice(&line) {
                Ok(Said::Step { step, done, total }) => {
                    tell(api::ImportProgress { step, done_bytes: done, total_bytes: total });
                }
                Ok(Said::Done { reference }) => {
                    child.wait().await.map_err(failed)?;
                    return Ok(reference);
                }
                Ok(Said::Failed { kind, message }) => {
                    child.wait().await.map_err(failed)?;
                    return Err(Error::new(kind.into(), message));
                }
                Err(_) if is_over => {
                    let status = child.wait().await.map_err(failed)?;
                    return Err(Error::new(ErrorKind::Internal, format!("the import ended with {status}")));
                }
                Err(e) => return Err(Error::internal("understand the import", e)),
            }
        }
    }
}

/// What the process does. Everything that it has to say goes to `say`, a line at a time.
pub(crate) fn take_in(
    root: &Path,
    path: &Path,
    tag: Option<&ImageReference>,
    say: impl Fn(&str) + Send + Sync + 'static,
) {
    let say = std::sync::Arc::new(say);
    let line = |said: &Said| serde_json::to_string(said).unwrap_or_default();
    let last = std::sync::Mutex::new(None::<std::time::Instant>);
    let steps = std::sync::Arc::clone(&say);
    let progress = move |step: Step, done: u64, total: Option<u64>| {
        let mut last = last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let is_due = last.is_none_or(|last| last.elapsed() >= TELL_INTERVAL);
        if is_due || Some(done) == total {
            *last = Some(std::time::Instant::now());
            steps(&line(&Said::Step { step: step.as_str().to_owned(), done, total: total.unwrap_or(0) }));
        }
    };
    let imported = Store::open(root).and_then(|store| store.with_progress(progress).import(path, tag));
    let said = match imported {
        Ok(image) => Said::Done { reference: image.reference },
        Err(error) => {
            let error = image_error(error);
            Said::Failed { kind: error.kind().into(), message: crate::error::chain(&error) }
        }
    };
    say(&line(&said));
}
