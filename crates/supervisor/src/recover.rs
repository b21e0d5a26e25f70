//! After a supervisor: what it left behind is taken away, and what it knew is kept.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use beta9_sys::cgroup::Cgroup;
use beta9_sys::reaper::Reaper;
use beta9_types::{ContainerState, Exit, ExitReason, Phase};

use crate::directory::{ContainerDirectory, Socket};
use crate::error::{Error, ErrorKind, Result, chain};
use crate::life::cgroup;
use crate::lock::{Liveness, liveness};
use crate::network::{self, Network};
use crate::record::{Record, StateFile};
use crate::runtimes;
use crate::volumes::{OwnVolumes, remove_own};

/// How long killed processes may take to leave their cgroup.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// The same, of those that survived it once.
const FORGET_DEADLINE: Duration = Duration::from_secs(2);

/// Whether the container in `directory` needs `supervise` to clean up after a supervisor that died.
pub fn needs_recovery(directory: &ContainerDirectory) -> Result<bool> {
    let state = StateFile::read(directory)?;
    let over = state.state == ContainerState::Created || (state.cleaned && state.state.exit().is_some());
    let is_left = !over || directory.lending().exists() || network::is_left(directory);
    Ok(is_left && liveness(directory)? == Liveness::Gone)
}

/// Ends what is left of a container and records why. A verdict that was written down is kept; otherwise nobody knows
/// the exit code, and none is invented.
pub(crate) async fn clean_up(
    directory: &ContainerDirectory,
    record: &Record,
    mut state: StateFile,
    reaper: &Reaper,
    network: Network,
) -> Result<()> {
    sweep(directory, record, reaper).await?;
    network.clean_up(directory, record).await;
    let marks = beta9_runtime::Marks::default();
    if state.state.exit().is_none() {
        let text = "the process that watched over the container died; nobody saw how the container ended";
        state.state = ContainerState::Exited(Exit::lost(ExitReason::SupervisorLost, text));
        state.marks.push(marks.reach(Phase::Exited));
    }
    state.marks.push(marks.reach(Phase::Cleaned));
    state.cleaned = true;
    state.write(directory)
}

/// Takes away what runs of a container and what it held, whatever that was.
pub(crate) async fn sweep(directory: &ContainerDirectory, record: &Record, reaper: &Reaper) -> Result<()> {
    let cgroup = cgroup(&record.id);
    let group = cgroup.clone();
    let emptied = tokio::task::spawn_blocking(move || group.kill(KILL_DEADLINE)).await.unwrap_or(false);
    if !emptied {
        tracing::error!(container = %record.id, "processes of a lost container survive SIGKILL");
    }
    let runtime = runtimes::build(record.runtime, &record.settings, reaper)
        .map_err(|e| Error::caused(ErrorKind::Refused, "set up the runtime", e))?;
    if let Err(error) = runtime.clean(&record.id, directory.path(), &cgroup).await {
        tracing::error!(container = %record.id, error = error.chain(), "runtime left something behind");
    }
    remove_cgroup(&cgroup).await;
    directory.unlisten(Socket::Supervisor);
    directory.unlisten(Socket::Lender);
    let _ = fs::remove_file(directory.lending());
    Ok(())
}

/// Removes the container's cgroup. The one above it stays: somebody may be making the next one in it.
pub(crate) async fn remove_cgroup(cgroup: &Cgroup) {
    let cgroup = cgroup.clone();
    let removed = tokio::task::spawn_blocking(move || cgroup.remove()).await;
    if let Ok(Err(error)) = removed {
        tracing::error!(error = chain(&error), "cgroup could not be removed");
    }
}

/// Removes the record of a container that is over: its name, its directory, and what its runtime kept for a reader.
pub fn forget(directory: &ContainerDirectory, record: &Record, own: OwnVolumes) {
    // Before the record, without which nobody would know whose they were.
    if own == OwnVolumes::Remove
        && let Some(root) = directory.path().parent().and_then(Path::parent)
    {
        remove_own(root, record);
    }
    forget_vm(record);
    // A process that waited for a file system may have held it past the container's end.
    let (group, end) = (cgroup(&record.id), Instant::now() + FORGET_DEADLINE);
    while let Err(error) = group.remove() {
        if Instant::now() >= end {
            tracing::error!(container = %record.id, error = chain(&error), "cgroup could not be removed");
            break;
        }
        group.kill(FORGET_DEADLINE);
        // One that has left its group by name may still be on its way out; there is no event for it.
        std::thread::sleep(Duration::from_millis(10));
    }
    // Somebody may have renamed it since the record was read.
    let current = Record::read(directory).ok().flatten();
    if let Some(name) = &current.as_ref().unwrap_or(record).request.name
        && let Some(root) = directory.path().parent().and_then(Path::parent)
    {
        let _ = fs::remove_file(root.join("names").join(name.as_ref()));
    }
    if let Err(error) = fs::remove_dir_all(directory.path())
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::error!(path = %directory.path().display(), %error, "record could not be removed");
    }
}

/// Removes what a VM leaves for the reader of a failed start.
pub(crate) fn forget_vm(record: &Record) {
    if record.runtime.is_microvm()
        && let Err(error) = beta9_microvm::forget(record.runtime, &record.settings, &record.id)
    {
        tracing::error!(container = %record.id, error = error.chain(), "logs of a failed start could not be removed");
    }
}
