//! A container's log: which part of it, and whether what follows, too.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use beta9_supervisor::{
    ContainerDirectory, ErrorKind as SupervisorErrorKind, LogEntry, Reads, StateFile, Stream, Supervisor,
    timestamp,
};
use beta9_types::ContainerState;
use tokio::time::{Instant, timeout_at};

use crate::error::Result;
use crate::service::Worker;
use crate::service::attach::{Again, Event, Output, look_again, require_started};

/// Which part of a log is asked for.
#[derive(Debug, Clone, Default)]
pub(super) struct Query {
    /// Also what comes later.
    pub(super) follow: bool,
    /// Nanoseconds since the Unix epoch.
    pub(super) since: Option<u64>,
    /// Nanoseconds since the Unix epoch.
    pub(super) until: Option<u64>,
    /// Lines at the end.
    pub(super) tail: Option<u64>,
}

/// The part that was asked for, piece by piece.
pub(super) struct Log {
    output: Option<Output>,
    window: Window,
    deadline: Option<Instant>,
}

impl Worker {
    /// Opens a container's log. That of one which was only created is empty, and cannot be followed.
    pub(super) async fn log(&self, container: &str, query: Query) -> Result<Log> {
        let (directory, record) = self.find(container)?;
        let window = Window::of(&query);
        if StateFile::read(&directory)?.state == ContainerState::Created {
            return if query.follow {
                require_started(&directory, &record).map(|()| Log { output: None, window, deadline: None })
            } else {
                Ok(Log { output: None, window, deadline: None })
            };
        }
        let from = match query.tail {
            Some(lines) => tail(&directory, lines, &window).await?,
            None => 0,
        };
        let reads = if query.follow { Reads::On } else { Reads::SoFar };
        let output = open(&directory, from, reads).await?;
        // The clock that stamps the lines is this machine's, too.
        let deadline = query.until.filter(|_| query.follow).map(|until| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            Instant::now() + Duration::from_nanos(until).saturating_sub(now).min(Duration::from_secs(1 << 32))
        });
        Ok(Log { output: Some(output), window, deadline })
    }
}

async fn open(directory: &ContainerDirectory, from: u64, reads: Reads) -> Result<Output> {
    let supervisor = Supervisor::of(directory.clone());
    let mut opened = supervisor.logs(from, reads).await;
    if let Some(error) = opened.as_ref().err().filter(|e| e.kind() == SupervisorErrorKind::Gone) {
        match look_again(directory, error).await? {
            Again::Ask => opened = supervisor.logs(from, reads).await,
            Again::Over(exit) => return Output::of_files(directory.clone(), from, exit),
        }
    }
    let (position, output) = opened?;
    Ok(Output::of_supervisor(directory.clone(), position, output))
}

/// Where the last `lines` lines begin of those that are in the window.
async fn tail(directory: &ContainerDirectory, lines: u64, window: &Window) -> Result<u64> {
    let mut output = open(directory, 0, Reads::SoFar).await?;
    let mut starts = VecDeque::new();
    // Whether each stream is in the middle of a line.
    let mut open_lines = [false; 2];
    while let Some(Event::Entries(entries)) = output.next().await? {
        for entry in entries.iter().filter(|entry| window.holds(entry)) {
            let open = &mut open_lines[usize::from(entry.stream == Stream::Stderr)];
            if !*open {
                starts.push_back(entry.position);
                if starts.len() as u64 > lines {
                    starts.pop_front();
                }
            }
            *open = !entry.ends_line();
        }
    }
    Ok(starts.pop_front().filter(|_| lines > 0).unwrap_or(output.position()))
}

impl Log {
    /// The next entries; `None` at the end of what was asked for.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<LogEntry>>> {
        let Some(output) = &mut self.output else { return Ok(None) };
        loop {
            let event = match self.deadline {
                Some(deadline) => match timeout_at(deadline, output.next()).await {
                    Ok(event) => event?,
                    Err(_) => return Ok(None),
                },
                None => output.next().await?,
            };
            let Some(Event::Entries(mut entries)) = event else { return Ok(None) };
            entries.retain(|entry| self.window.holds(entry));
            if !entries.is_empty() {
                return Ok(Some(entries));
            }
        }
    }
}

/// A span of time, as the log writes times, which sort as texts.
struct Window {
    since: Option<String>,
    until: Option<String>,
}

impl Window {
    fn of(query: &Query) -> Self {
        let text = |nanoseconds: u64| timestamp(UNIX_EPOCH + Duration::from_nanos(nanoseconds));
        Self { since: query.since.map(text), until: query.until.map(text) }
    }

    fn holds(&self, entry: &LogEntry) -> bool {
        self.since.as_ref().is_none_or(|since| entry.time >= *since)
            && self.until.as_ref().is_none_or(|until| entry.time <= *until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_has_both_of_its_ends() {
        let window = Window::of(&Query { since: Some(1), until: Some(1_000_000_000), ..Query::default() });
        let at = |nanoseconds| LogEntry {
            time: timestamp(UNIX_EPOCH + Duration::from_nanos(nanoseconds)),
            stream: Stream::Stdout,
            content: Vec::new(),
            position: 0,
        };
        let held = [0, 1, 2, 1_000_000_000, 1_000_000_001].map(|time| window.holds(&at(time)));
        assert_eq!(held, [false, true, true, true, false]);
    }
}
