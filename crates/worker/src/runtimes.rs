//! Whether a runtime works on this machine, found out by making it work.
//!
//! For an OCI program that means that it is there and runs. For a microVM it means one boot to the guest's init, launched
//! as a container's VM is launched: in a process like a supervisor, which `probe` is. A boot that succeeded is
//! remembered in `<root>/probes/` under a key that names everything it depended on; a failure is not.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use beta9_microvm::ProbeReport;
use beta9_oci::{Gvisor, Runc};
use beta9_runtime::Capabilities;
use beta9_types::{RuntimeKind, RuntimeSettings};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::error::{Error, ErrorKind, Result, chain};
use crate::guest;
use crate::service::{blocking, own_program};

/// A probe has deadlines of its own; this one is for a probe that is stuck.
const PROBE_DEADLINE: Duration = Duration::from_secs(150);
/// Longest answer of a probe.
const MAX_ANSWER: usize = 1 << 20;

/// A runtime that works here.
#[derive(Debug, Clone)]
pub(crate) struct Working {
    /// The settings with programs found and platform chosen.
    pub(crate) settings: RuntimeSettings,
    /// What it can do.
    pub(crate) capabilities: Capabilities,
    /// One line on what was found.
    pub(crate) detail: String,
    /// What an operator should know although it works.
    pub(crate) warnings: Vec<String>,
}

/// What the `probe` process answers on its stdout.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Booted(ProbeReport),
    Failed(String),
}

/// Makes sure that `kind` works with these settings, or says why it does not and what to do.
pub(crate) async fn create(root: &Path, kind: RuntimeKind, settings: &RuntimeSettings) -> Result<Working> {
    let (wanted, failed) =
        (settings.clone(), |e: beta9_runtime::Error| Error::new(ErrorKind::Precondition, chain(&e)));
    match kind {
        RuntimeKind::Runc => {
            let settings = blocking(move || Runc::find(&wanted)).await?.map_err(failed)?;
            let detail = version(&settings.runc_bin).await?;
            Ok(Working { settings, capabilities: beta9_oci::RUNC_CAPABILITIES, detail, warnings: Vec::new() })
        }
        RuntimeKind::Gvisor => {
            let settings = blocking(move || Gvisor::find(&wanted)).await?.map_err(failed)?;
            let detail =
                format!("{}, platform {}", version(&settings.gvisor_bin).await?, settings.gvisor_platform);
            Ok(Working {
                settings,
                capabilities: beta9_oci::GVISOR_CAPABILITIES,
                detail,
                warnings: Vec::new(),
            })
        }
        RuntimeKind::Firecracker | RuntimeKind::Qemu => {
            let place = root.to_owned();
            let wanted = blocking(move || guest::complete(&place, kind, &wanted)).await??;
            let report = probe(root, kind, &wanted).await?;
            let settings = report.settings(&wanted);
            let detail = report.to_string();
            let warnings = report.warnings;
            Ok(Working { settings, capabilities: beta9_microvm::CAPABILITIES, detail, warnings })
        }
    }
}

/// The first line of `program --version`.
pub(crate) async fn version(program: &Path) -> Result<String> {
    let failed =
        |e| Error::caused(ErrorKind::Precondition, format!("run {} --version", program.display()), e);
    let output =
        Command::new(program).arg("--version").stdin(Stdio::null()).output().await.map_err(failed)?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().next() {
        Some(line) if output.status.success() => Ok(line.to_owned()),
        _ => {
            let text = format!("{} --version failed: reinstall it", program.display());
            Err(Error::new(ErrorKind::Precondition, text))
        }
    }
}

async fn probe(root: &Path, kind: RuntimeKind, settings: &RuntimeSettings) -> Result<ProbeReport> {
    let memory =
        root.join("probes").join(format!("{kind}-{}.json", beta9_microvm::probe_key(kind, settings)));
    if let Ok(text) = fs::read(&memory)
        && let Ok(report) = serde_json::from_slice(&text)
    {
        return Ok(report);
    }
    let answer = tokio::time::timeout(PROBE_DEADLINE, ask(kind, settings)).await.unwrap_or_else(|_| {
        let text = format!("the {kind} probe did not end within {} s", PROBE_DEADLINE.as_secs());
        Err(Error::new(ErrorKind::Timeout, text))
    })?;
    match answer {
        Answer::Booted(report) => {
            if let Err(error) = remember(&memory, &report) {
                tracing::warn!(path = %memory.display(), %error, "probe result could not be kept");
            }
            Ok(report)
        }
        Answer::Failed(message) => {
            let hint = guest::hint(kind, settings).unwrap_or_default();
            Err(Error::new(ErrorKind::Precondition, format!("{message}{hint}")))
        }
    }
}

/// Runs the probe in a process of its own, which owns the VM's processes and takes them with it.
async fn ask(kind: RuntimeKind, settings: &RuntimeSettings) -> Result<Answer> {
    let failed = |e: std::io::Error| Error::internal("run the probe", e);
    let mut child = Command::from(own_program())
        .args(["probe", kind.as_str()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        let body = serde_json::to_vec(settings).map_err(|e| Error::internal("describe the runtime", e))?;
        stdin.write_all(&body).await.map_err(failed)?;
    }
    let output = child.wait_with_output().await.map_err(failed)?;
    let answer = output.stdout.get(..MAX_ANSWER.min(output.stdout.len())).unwrap_or_default();
    serde_json::from_slice(answer).map_err(|_| {
        let said = String::from_utf8_lossy(&output.stderr);
        let text = format!("the {kind} probe ended with {} and said: {}", output.status, said.trim());
        Error::new(ErrorKind::Internal, text)
    })
}

fn remember(path: &Path, report: &ProbeReport) -> std::io::Result<()> {
    let Some(directory) = path.parent() else { return Ok(()) };
    fs::create_dir_all(directory)?;
    let temporary = path.with_extension(format!("{}.new", std::process::id()));
    let mut file = fs::File::create(&temporary)?;
    serde_json::to_writer(&mut file, report)?;
    file.flush()?;
    fs::rename(temporary, path)
}
