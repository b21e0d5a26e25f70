//! Operating a container of an OCI runtime program.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use beta9_archive::{Links, Owner, Tree, Unpacking, pack, unpack};
use beta9_runtime::{Error, ErrorKind, Operations, Result};
use beta9_sys::cgroup::Cgroup;
use beta9_sys::namespaces::enter_private_mounts;
use beta9_sys::processes::describe;
use beta9_sys::reaper::Reaper;
use beta9_types::{
    BindMount, ContainerId, CopyIn, CopyOut, DiskRate, LimitChange, ProcessInfo, RuntimeKind, Usage, chain,
};
use rustix::fs::{Mode, OFlags};

use crate::disks;
use crate::overlay::mount_volumes;
use crate::program::{Files, Program};

/// How one program's containers are operated.
#[derive(Clone)]
pub(crate) struct OciOperations {
    pub(crate) kind: RuntimeKind,
    pub(crate) id: ContainerId,
    pub(crate) program: Program,
    pub(crate) reaper: Reaper,
    pub(crate) files: Files,
    pub(crate) cgroup: Cgroup,
    pub(crate) view: View,
    /// The container's own directory.
    pub(crate) directory: PathBuf,
}

/// Where a container's files are seen as the container sees them.
#[derive(Debug, Clone)]
pub(crate) enum View {
    /// In the root directory of this process, which is the container's first.
    Process(u32),
    /// In a directory, with host paths mounted over it: what the sandbox's own file server was given.
    Directory { root: PathBuf, mounts: Vec<BindMount> },
}

impl OciOperations {
    async fn call(&self, subcommand: &str, args: &[&str]) -> Result<()> {
        self.program.output(&self.reaper, &self.files, subcommand, args).await.map(drop)
    }

    /// Runs blocking work with the container's files on a thread of its own, which may change its namespaces.
    async fn with_tree(
        &self,
        work: impl FnOnce(&Tree) -> beta9_archive::Result<()> + Send + 'static,
    ) -> Result<()> {
        let (view, cgroup) = (self.view.clone(), self.cgroup.clone());
        let (done, outcome) = tokio::sync::oneshot::channel();
        let thread = std::thread::Builder::new().name("copy".to_owned()).spawn(move || {
            let copied = tree(&view, &cgroup).and_then(|tree| work(&tree).map_err(|e| failed(&e)));
            let _ = done.send(copied);
        });
        thread.map_err(|e| Error::caused(ErrorKind::Failed, "start a thread", e))?;
        outcome.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Failed, "the copy panicked")))
    }
}

fn failed(error: &beta9_archive::Error) -> Error {
    let kind = match error.kind() {
        beta9_archive::ErrorKind::NotFound => ErrorKind::NotFound,
        beta9_archive::ErrorKind::Refused => ErrorKind::Unsupported,
        _ => ErrorKind::Failed,
    };
    Error::new(kind, chain(error))
}

fn tree(view: &View, cgroup: &Cgroup) -> Result<Tree> {
    match view {
        View::Process(pid) => {
            let path = format!("/proc/{pid}/root");
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = rustix::fs::open(path.as_str(), flags, Mode::empty()).map_err(|e| {
                Error::caused(ErrorKind::Failed, format!("open {path}"), std::io::Error::from(e))
            })?;
            // The number could be another process's by now; that one would not be in the group.
            let is_inside =
                cgroup.processes().iter().any(|inside| inside.as_raw_nonzero().get().unsigned_abs() == *pid);
            if !is_inside {
                return Err(Error::new(ErrorKind::Failed, "the container has ended"));
            }
            Ok(Tree::new(root, Links::InRoot))
        }
        View::Directory { root, mounts } => {
            enter_private_mounts().map_err(|e| {
                Error::caused(ErrorKind::Failed, "enter a mount namespace of the copy's own", e)
            })?;
            mount_volumes(root, mounts)?;
            Tree::open(root, Links::InRoot).map_err(|e| failed(&e))
        }
    }
}

#[async_trait]
impl Operations for OciOperations {
    async fn pause(&self) -> Result<()> {
        self.call("pause", &[self.id.as_str()]).await
    }

    async fn resume(&self) -> Result<()> {
        self.call("resume", &[self.id.as_str()]).await
    }

    async fn usage(&self) -> Result<Usage> {
        Ok(self.cgroup.usage())
    }

    async fn processes(&self) -> Result<Vec<ProcessInfo>> {
        if self.kind != RuntimeKind::Gvisor {
            return Ok(describe(&self.cgroup.processes()));
        }
        let args = ["--format", "table", self.id.as_str()];
        let text = self.program.output(&self.reaper, &self.files, "ps", &args).await?;
        sandboxed_processes(&text)
    }

    async fn update(&self, change: LimitChange) -> Result<()> {
        if self.kind == RuntimeKind::Gvisor {
            return self.update_sandbox(change);
        }
        let mut args = Vec::new();
        let mut flag = |name: &str, value: Option<u64>| {
            if let Some(value) = value {
                args.extend([name.to_owned(), value.to_string()]);
            }
        };
        flag("--memory", change.memory_bytes);
        flag("--memory-swap", change.memory_swap_bytes);
        flag("--cpu-period", change.nano_cpus.map(|_| LimitChange::CPU_PERIOD_US));
        flag("--cpu-quota", change.cpu_quota_us());
        flag("--pids-limit", change.pids);
        args.push(self.id.to_string());
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.call("update", &args).await
    }

    async fn reserve_memory(&self, bytes: u64) -> Result<()> {
        let failed = |e| Error::caused(ErrorKind::Failed, "reserve memory for the container", e);
        self.cgroup.reserve_memory(bytes).map_err(failed)
    }

    async fn limit_disks(&self, rate: DiskRate) -> Result<()> {
        disks::change(&self.cgroup, &self.directory, rate)
    }

    async fn copy_out(&self, request: CopyOut, to: OwnedFd) -> Result<()> {
        self.with_tree(move |tree| pack(tree, &request, File::from(to))).await
    }

    async fn copy_in(&self, request: CopyIn, from: OwnedFd) -> Result<()> {
        let CopyIn { path, placement, keep_owner } = request;
        let owner = if keep_owner { Owner::Kept } else { Owner::Ids { uid: 0, gid: 0 } };
        let unpacking = Unpacking { path, placement, owner, name: None };
        self.with_tree(move |tree| unpack(tree, &unpacking, File::from(from)).map(drop)).await
    }
}

impl OciOperations {
    /// runsc has no `update`. What limits the sandbox is its cgroup.
    fn update_sandbox(&self, change: LimitChange) -> Result<()> {
        if change.pids.is_some() {
            let text = "gvisor cannot change the limit of processes of a running container: its cgroup counts the \
                        sandbox's own threads; create the container with --pids-limit";
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        let failed = |e| Error::caused(ErrorKind::Failed, "change the limits of the sandbox", e);
        if let Some(bytes) = change.memory_bytes {
            self.cgroup.limit_memory(bytes).map_err(failed)?;
        }
        if let Some(quota) = change.cpu_quota_us() {
            self.cgroup.limit_cpu(quota, LimitChange::CPU_PERIOD_US).map_err(failed)?;
        }
        Ok(())
    }
}

/// Reads the table of `runsc ps`. Its JSON is a list of numbers alone, as OCI programs have it.
///
/// ```text
/// UID       PID       PPID      C         TTY       STIME     TIME      CMD
/// ```
fn sandboxed_processes(text: &[u8]) -> Result<Vec<ProcessInfo>> {
    let text = String::from_utf8_lossy(text);
    let unknown = || Error::new(ErrorKind::Failed, "runsc ps answered something unknown");
    let mut lines = text.lines();
    if !lines.next().is_some_and(|header| header.starts_with("UID") && header.trim_end().ends_with("CMD")) {
        return Err(unknown());
    }
    let mut all =
        lines.map(|line| sandboxed_process(line).ok_or_else(unknown)).collect::<Result<Vec<_>>>()?;
    all.sort_unstable_by_key(|info| info.pid);
    Ok(all)
}

fn sandboxed_process(line: &str) -> Option<ProcessInfo> {
    let mut fields = line.split_ascii_whitespace();
    let (uid, pid, parent) = (fields.next()?, fields.next()?, fields.next()?);
    let (time, command) = (fields.nth(3)?, fields.collect::<Vec<_>>().join(" "));
    Some(ProcessInfo {
        pid: pid.parse().ok()?,
        parent: parent.parse().ok()?,
        uid: uid.parse().ok()?,
        cpu_ms: milliseconds(time),
        command,
    })
}

/// A duration as Go prints it.
fn milliseconds(text: &str) -> u64 {
    let mut total = 0.0;
    let mut rest = text;
    while let Some(end) = rest.find(|c: char| !c.is_ascii_digit() && c != '.') {
        let (number, after) = rest.split_at(end);
        let unit_end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let factor = match unit {
            "h" => 3_600_000.0,
            "m" => 60_000.0,
            "s" => 1000.0,
            "ms" => 1.0,
            "µs" | "us" => 0.001,
            _ => 0.0,
        };
        total += number.parse::<f64>().unwrap_or(0.0) * factor;
        rest = after;
    }
    // Far within the range of integers that a float holds exactly.
    total as u64
}

/// A directory of the container on the host, for [`View::Directory`].
pub(crate) fn directory_view(root: &Path, mounts: &[BindMount]) -> View {
    View::Directory { root: root.to_owned(), mounts: mounts.to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sandboxes_processes_are_read() {
        let text = b"UID       PID       PPID      C         TTY       STIME     TIME      CMD\n\
            5         2         1         0         ?         20:00     1m2.5s    sleep\n\
            0         1         0         0         ?         20:00     10ms      sh\n";
        let all = sandboxed_processes(text).unwrap();
        assert_eq!((all[0].pid, all[0].cpu_ms, all[1].pid, all[1].cpu_ms, all[1].uid), (1, 10, 2, 62_500, 5));
        assert!(sandboxed_processes(b"null and void").is_err());
        assert_eq!(milliseconds("500\u{b5}s"), 0);
    }
}
