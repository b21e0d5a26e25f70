//! Firecracker's counters: lines of JSON on a pipe, one a minute and one at its end, each with what was counted since the
//! line before. They are added up here and left in the VM's directory for whoever serves metrics.
//!
//! Firecracker may be in a guest's hands: lines are bounded, taken in once a second at most, and numbers never overflow.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use beta9_runtime::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe;

use super::super::VmDirectory;

const COUNTERS: &str = "counters.json";
/// Longest line. Real ones are some ten thousand bytes, and more with more devices.
const MAX_LINE: u64 = 256 << 10;
/// Longest file of our own.
const MAX_FILE: u64 = 4 << 10;
/// The least time between two lines that are looked at.
const PAUSE: Duration = Duration::from_secs(1);

/// What a VM's engine has counted since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EngineCounters {
    /// Bytes that the guest read from its disks.
    pub disk_read_bytes: u64,
    /// Bytes that it wrote to them.
    pub disk_written_bytes: u64,
    /// Times that a disk waited for its limit.
    pub disk_throttled: u64,
    /// Bytes between guest and host by vsock, both ways.
    pub vsock_bytes: u64,
    /// System calls that the engine's filter caught.
    pub seccomp_faults: u64,
    /// Failures of virtual processors.
    pub vcpu_failures: u64,
    /// Lines of the engine's log that found no room.
    pub lost_log_lines: u64,
}

/// The part of a line that is kept.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    block: Block,
    vsock: Vsock,
    seccomp: Seccomp,
    vcpu: Vcpu,
    logger: Logger,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Block {
    read_bytes: u64,
    write_bytes: u64,
    rate_limiter_throttled_events: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Vsock {
    rx_bytes_count: u64,
    tx_bytes_count: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Seccomp {
    num_faults: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Vcpu {
    failures: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Logger {
    missed_log_count: u64,
}

impl EngineCounters {
    fn add(&mut self, line: &Line) {
        let Line { block, vsock, seccomp, vcpu, logger } = line;
        for (total, more) in [
            (&mut self.disk_read_bytes, block.read_bytes),
            (&mut self.disk_written_bytes, block.write_bytes),
            (&mut self.disk_throttled, block.rate_limiter_throttled_events),
            (&mut self.vsock_bytes, vsock.rx_bytes_count.saturating_add(vsock.tx_bytes_count)),
            (&mut self.seccomp_faults, seccomp.num_faults),
            (&mut self.vcpu_failures, vcpu.failures),
            (&mut self.lost_log_lines, logger.missed_log_count),
        ] {
            *total = total.saturating_add(more);
        }
    }
}

/// Takes in what comes by the pipe until its end, or until it is no line.
pub(super) fn take_in(from: OwnedFd, directory: VmDirectory) -> Result<()> {
    let failed = |e| Error::caused(ErrorKind::Failed, "read firecracker's counters", e);
    let mut from = BufReader::new(pipe::Receiver::from_owned_fd(from).map_err(failed)?);
    tokio::spawn(async move {
        let mut counters = EngineCounters::default();
        while let Some(line) = next(&mut from).await {
            match serde_json::from_slice(&line) {
                Ok(line) => counters.add(&line),
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(error, "a line of firecracker's counters cannot be read");
                }
            }
            // A full disk costs the counters, not the VM.
            let _ = write(&directory, counters);
            // Meanwhile the pipe fills, and then Firecracker drops what it has to say.
            tokio::time::sleep(PAUSE).await;
        }
    });
    Ok(())
}

/// `None` at the end, and where a line has none.
async fn next(from: &mut BufReader<pipe::Receiver>) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    from.take(MAX_LINE).read_until(b'\n', &mut line).await.ok()?;
    line.ends_with(b"\n").then_some(line)
}

fn write(directory: &VmDirectory, counters: EngineCounters) -> std::io::Result<()> {
    let (new, place) = (format!("{COUNTERS}.new"), directory.path().join(COUNTERS));
    let text = serde_json::to_vec(&counters)?;
    File::create(directory.path().join(&new))?.write_all(&text)?;
    std::fs::rename(directory.path().join(new), place)
}

/// What was counted of the VM in a directory, if anything was.
pub(crate) fn read(directory: &Path) -> Option<EngineCounters> {
    let mut text = Vec::new();
    File::open(directory.join(COUNTERS)).ok()?.take(MAX_FILE).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use beta9_types::ContainerId;

    use super::*;

    /// The parts of a line of release 1.13.1 that count here, beside others that do not.
    const RECORDED: &str = r#"{"utc_timestamp_ms":1,"api_server":{"sync_response_fails":0},
        "block":{"read_bytes":4096,"write_bytes":512,"rate_limiter_throttled_events":2,"read_agg":{"min_us":0}},
        "block_d0":{"read_bytes":4096},"logger":{"missed_metrics_count":0,"missed_log_count":1},
        "seccomp":{"num_faults":0},"vcpu":{"failures":0,"exit_io_in":7},"vsock":{"rx_bytes_count":10,"tx_bytes_count":5}}"#;

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn lines_are_added_up_and_rubbish_is_passed_over() {
        let root = tempfile::tempdir().unwrap();
        let directory = VmDirectory::create(root.path(), &ContainerId::parse("c1").unwrap()).unwrap();
        let (from, to) = rustix::pipe::pipe().unwrap();
        let line = RECORDED.replace('\n', "");
        let most = u64::MAX;
        let text = format!(
            "{line}\nrubbish\n{line}\n{{\"block\":{{\"read_bytes\":{most}}}}}\n{{\"block\":{{\"read_bytes\":-1}}}}\nno end"
        );
        File::from(to).write_all(text.as_bytes()).unwrap();
        let mut from = BufReader::new(pipe::Receiver::from_owned_fd(from).unwrap());
        let mut counters = EngineCounters::default();
        let mut refused = 0;
        while let Some(line) = next(&mut from).await {
            match serde_json::from_slice(&line) {
                Ok(line) => counters.add(&line),
                Err(_) => refused += 1,
            }
        }
        assert_eq!(refused, 2);
        write(&directory, counters).unwrap();
        let expected = EngineCounters {
            disk_read_bytes: u64::MAX,
            disk_written_bytes: 1024,
            disk_throttled: 4,
            vsock_bytes: 30,
            lost_log_lines: 2,
            ..EngineCounters::default()
        };
        assert_eq!(read(directory.path()), Some(expected));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_line_without_end_ends_it() {
        let (from, to) = rustix::pipe::pipe().unwrap();
        let mut from = BufReader::new(pipe::Receiver::from_owned_fd(from).unwrap());
        let writer = std::thread::spawn(move || {
            let mut to = File::from(to);
            while to.write_all(&[b'x'; 4096]).is_ok() {}
        });
        assert_eq!(next(&mut from).await, None);
        drop(from);
        writer.join().unwrap();
        assert_eq!(read(Path::new("/nonexistent")), None);
    }
}
