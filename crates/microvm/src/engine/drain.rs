//! Takes in what a program writes, so that it never blocks, and keeps a bounded part of it.
//!
//! A guest decides how much its console, and through error messages its VMM, has to say. So the file has a
//! cap, and memory holds the last [`TAIL`] bytes only.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use beta9_runtime::{Error, ErrorKind, Result};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::watch;

/// Bytes kept in memory.
const TAIL: usize = 16 << 10;
/// Bytes kept on disk.
const FILE_CAP: u64 = 1 << 20;
/// Longest excerpt in an error message.
const EXCERPT: usize = 600;
/// Lines of an excerpt when none of them stands out.
const EXCERPT_LINES: usize = 3;

/// The end of what a program wrote. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tail {
    bytes: Arc<Mutex<VecDeque<u8>>>,
    /// How many drains still fill it.
    open: Arc<watch::Sender<usize>>,
    /// Changes with every byte that comes in.
    grown: Arc<watch::Sender<()>>,
}

impl Tail {
    fn push(&self, bytes: &[u8]) {
        let mut kept = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(bytes);
        let excess = kept.len().saturating_sub(TAIL);
        kept.drain(..excess);
        drop(kept);
        self.grown.send_replace(());
    }

    /// Comes back when nothing more will be written.
    pub(crate) async fn ended(&self) {
        // The sender lives in `self`.
        let _ = self.open.subscribe().wait_for(|open| *open == 0).await;
    }

    /// Comes back when `line` is among what is kept.
    pub(crate) async fn says(&self, line: &str) {
        let mut grown = self.grown.subscribe();
        while !self.text().lines().any(|said| said == line) {
            // The sender lives in `self`.
            let _ = grown.changed().await;
        }
    }

    /// What is kept, as text without control characters.
    fn text(&self) -> String {
        let bytes: Vec<u8> =
            self.bytes.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        String::from_utf8_lossy(&bytes).chars().filter(|c| *c == '\n' || !c.is_control()).collect()
    }

    /// The part that tells what went wrong, on one line: the kernel's or init's own complaints if there are
    /// any, else the last lines. `None` when nothing was written.
    pub(crate) fn excerpt(&self) -> Option<String> {
        let text = self.text();
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let stands_out = |line: &&&str| line.contains("Kernel panic") || line.contains("beta9-vm-init:");
        let mut chosen: Vec<&str> = lines.iter().filter(stands_out).copied().collect();
        if chosen.is_empty() {
            chosen = lines;
        }
        let chosen = &chosen[chosen.len().saturating_sub(EXCERPT_LINES)..];
        let line = chosen.join(" | ");
        let skipped = line.chars().count().saturating_sub(EXCERPT);
        Some(line.chars().skip(skipped).collect::<String>()).filter(|line| !line.is_empty())
    }
}

/// Reads `from` until its end, into `tail` and, up to a cap, into `file`.
pub(crate) fn drain(from: OwnedFd, mut file: File, tail: Tail) -> Result<()> {
    let mut from = pipe::Receiver::from_owned_fd(from)
        .map_err(|e| Error::caused(ErrorKind::Failed, "read a program's output", e))?;
    tail.open.send_modify(|open| *open += 1);
    tokio::spawn(async move {
        let mut buffer = vec![0; 8 << 10];
        let mut room = FILE_CAP;
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            tail.push(&buffer[..count]);
            let fits = usize::try_from(room).map_or(count, |room| room.min(count));
            // A full disk costs the log, not the VM.
            if fits > 0 && file.write_all(&buffer[..fits]).is_err() {
                room = 0;
            }
            room = room.saturating_sub(fits as u64);
        }
        tail.open.send_modify(|open| *open -= 1);
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(text: &str) -> Tail {
        let tail = Tail::default();
        tail.push(text.as_bytes());
        tail
    }

    #[test]
    fn what_stands_out_is_preferred_and_everything_is_bounded() {
        assert_eq!(tail("").excerpt(), None);
        assert_eq!(tail("a\r\nb\n\nc\n\x1b[1md\n").excerpt().unwrap(), "b | c | [1md");
        let text = "noise\n[1.0] Kernel panic - not syncing: x\nmore\nnoise\nand\nnoise\n";
        assert_eq!(tail(text).excerpt().unwrap(), "[1.0] Kernel panic - not syncing: x");
        assert_eq!(tail(&"x".repeat(2 * TAIL)).excerpt().unwrap().len(), EXCERPT);
        assert_eq!(tail(&"x".repeat(2 * TAIL)).text().len(), TAIL);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_flood_ends_up_capped_on_disk_and_never_blocks_the_writer() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let tail = Tail::default();
        drain(read, file.reopen().unwrap(), tail.clone()).unwrap();
        let writer = std::thread::spawn(move || {
            let mut write = File::from(write);
            (0..4096).try_for_each(|_| write.write_all(&[b'x'; 1024])).unwrap();
        });
        tail.ended().await;
        writer.join().unwrap();
        assert_eq!(file.as_file().metadata().unwrap().len(), FILE_CAP);
        assert_eq!(tail.text().len(), TAIL);
    }
}
