//! Finding and killing processes that a test did not start itself.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

const DEADLINE: Duration = Duration::from_secs(30);

/// Processes, each with its command line, whose arguments end with `\0`.
pub(crate) fn all() -> Result<Vec<(Pid, String)>> {
    let entries = fs::read_dir("/proc").context("cannot list /proc")?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw));
    // One that ends while it is looked at is not there.
    let command_line = |pid: Pid| fs::read(format!("/proc/{pid}/cmdline")).ok();
    // One that has ended and was not waited for has no command line any more.
    let is_alive = |(_, command_line): &(Pid, String)| !command_line.is_empty();
    Ok(pids
        .filter_map(|pid| Some((pid, String::from_utf8_lossy(&command_line(pid)?).into_owned())))
        .filter(is_alive)
        .collect())
}

/// Those in the container's cgroup.
pub(crate) fn of_container(id: &str) -> Result<Vec<(Pid, String)>> {
    let mut processes = all()?;
    processes.retain(|(pid, _)| {
        fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(id))
    });
    Ok(processes)
}

/// The process whose command line holds `text`, as soon as there is one. There is no event for that.
pub(crate) fn appears(text: &str) -> Result<Pid> {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some((pid, _)) = all()?.into_iter().find(|(_, command_line)| command_line.contains(text)) {
            return Ok(pid);
        }
        ensure!(Instant::now() < end, "no process with {text:?} appeared within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Signals one.
pub(crate) fn signal(pid: Pid, signal: Signal) -> Result<()> {
    let process =
        pidfd_open(pid, PidfdFlags::empty()).with_context(|| format!("cannot watch process {pid}"))?;
    pidfd_send_signal(&process, signal).with_context(|| format!("cannot signal process {pid}"))
}

/// Kills one and returns when it is gone.
pub(crate) fn kill(pid: Pid) -> Result<()> {
    let process =
        pidfd_open(pid, PidfdFlags::empty()).with_context(|| format!("cannot watch process {pid}"))?;
    pidfd_send_signal(&process, Signal::KILL).with_context(|| format!("cannot kill process {pid}"))?;
    let deadline = Timespec::try_from(DEADLINE)?;
    let ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&deadline))?;
    ensure!(ended > 0, "process {pid} survives SIGKILL");
    Ok(())
}
