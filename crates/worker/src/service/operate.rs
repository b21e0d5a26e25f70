//! Operating containers: pausing, counting, listing, limiting.

use std::collections::HashMap;
use std::time::Duration;

use beta9_supervisor::{Answer, ContainerDirectory, Operation, Record, Refusal, StateFile, Supervisor};
use beta9_types::{ContainerState, DiskRate, LimitChange, MemoryBytes, ProcessInfo, RestartPolicy, Usage};
use tokio::task::JoinSet;

use crate::api;
use crate::error::{Error, ErrorKind, Result};
use crate::service::{Worker, network};

/// Readings that are under way at a time.
const MAX_READINGS: usize = 32;
/// The first round has nothing to compare itself with, so it is taken twice, so far apart.
const FIRST_SPAN: Duration = Duration::from_millis(500);

/// What of a container's limits is the host's alone to change, whatever runs it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct HostChange {
    pub(super) memory_reservation: Option<MemoryBytes>,
    pub(super) disk: DiskRate,
}

impl Worker {
    /// Freezes a container, or lets it go on.
    pub(super) async fn freeze(&self, container: &str, operation: Operation) -> Result<()> {
        let (directory, record) = self.find(container)?;
        self.operate(&directory, &record, operation).await.map(drop)
    }

    /// The processes of a running container.
    pub(super) async fn top(&self, container: &str) -> Result<Vec<ProcessInfo>> {
        let (directory, record) = self.find(container)?;
        match self.operate(&directory, &record, Operation::Processes).await? {
            Answer::Processes { processes } => Ok(processes),
            _ => Err(confused()),
        }
    }

    /// Changes limits, now if it runs and in what it is started with.
    pub(super) async fn update(
        &self,
        container: &str,
        change: LimitChange,
        host: HostChange,
        restart: Option<RestartPolicy>,
    ) -> Result<()> {
        let (directory, mut record) = self.find(container)?;
        if restart.is_some_and(|policy| policy != RestartPolicy::No) && record.request.auto_remove {
            let text = "a container that is removed when it ends (--rm) cannot have a restart policy";
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let change = Self::complete(&directory, change)?;
        if !self.is_over(&directory).await? {
            if !change.is_empty() {
                self.operate(&directory, &record, Operation::Update { change }).await?;
            }
            if let Some(reservation) = host.memory_reservation {
                let bytes = reservation.get();
                self.operate(&directory, &record, Operation::ReserveMemory { bytes }).await?;
            }
            if !host.disk.is_empty() {
                self.operate(&directory, &record, Operation::LimitDisks { rate: host.disk }).await?;
            }
            if let Some(policy) = restart {
                self.operate(&directory, &record, Operation::Restart { policy }).await?;
            }
        }
        let limits = &mut record.request.options.limits;
        limits.disk = host.disk.or(limits.disk);
        limits.memory_reservation = host.memory_reservation.or(limits.memory_reservation);
        if let Some(policy) = restart {
            record.request.options.life.restart = policy;
        }
        self.tell(&record, "update", &[]);
        self.remember_limits(&directory, record, change, host)
    }

    pub(super) async fn operate(
        &self,
        directory: &ContainerDirectory,
        record: &Record,
        operation: Operation,
    ) -> Result<Answer> {
        if self.is_over(directory).await? {
            return Err(not_running(record));
        }
        let outcome = Supervisor::of(directory.clone()).operate(operation).await?;
        outcome.map_err(|refusal| refused(record, refusal))
    }

    /// The containers that a user named, or all that run.
    pub(super) fn to_be_counted(&self, names: &[String]) -> Result<Vec<(ContainerDirectory, Record)>> {
        if !names.is_empty() {
            let found: Vec<_> = names.iter().map(|name| self.find(name)).collect::<Result<_>>()?;
            for (directory, record) in &found {
                if StateFile::read(directory)?.state.pid().is_none() {
                    return Err(not_running(record));
                }
            }
            return Ok(found);
        }
        let mut found = Vec::new();
        for id in self.ids()? {
            // One that is being removed is none that runs.
            if let Ok(Some((directory, record))) = self.by_id(&id)
                && StateFile::read(&directory).is_ok_and(|file| file.state.pid().is_some())
            {
                found.push((directory, record));
            }
        }
        found.sort_by_key(|(_, record)| record.created_us);
        Ok(found)
    }
}

/// The containers of one `stats`, with the readings that percentages are counted from.
pub(super) struct Rounds {
    names: Vec<String>,
    before: HashMap<String, Usage>,
}

impl Rounds {
    /// Takes the first reading, after which a round is worth something.
    pub(super) async fn begin(worker: &Worker, names: Vec<String>) -> Result<Self> {
        let mut rounds = Self { names, before: HashMap::new() };
        rounds.next(worker).await?;
        tokio::time::sleep(FIRST_SPAN).await;
        Ok(rounds)
    }

    /// One line for each container that runs. One that ends meanwhile has none.
    pub(super) async fn next(&mut self, worker: &Worker) -> Result<Vec<api::Stats>> {
        let counted = match worker.to_be_counted(&self.names) {
            // After the first round one may have ended.
            Err(_) if !self.before.is_empty() => {
                let each = self
                    .names
                    .iter()
                    .filter_map(|name| worker.to_be_counted(std::slice::from_ref(name)).ok());
                each.flatten().collect()
            }
            other => other?,
        };
        let order: Vec<String> = counted.iter().map(|(_, record)| record.id.to_string()).collect();
        let mut waiting = counted.into_iter();
        let mut readings = JoinSet::new();
        let mut lines = HashMap::new();
        let mut failure = None;
        loop {
            while readings.len() < MAX_READINGS
                && let Some((directory, record)) = waiting.next()
            {
                readings.spawn(async move {
                    let traffic = network::traffic(&directory, &record);
                    let answer = Supervisor::of(directory).operate(Operation::Usage).await;
                    (record, traffic, answer)
                });
            }
            match readings.join_next().await {
                None => break,
                Some(Ok((record, traffic, Ok(Ok(Answer::Usage { usage }))))) => {
                    let before = self.before.insert(record.id.to_string(), usage);
                    lines.insert(record.id.to_string(), line(record, usage, traffic, before));
                }
                Some(Ok((record, _, Ok(Err(refusal))))) => failure = Some(refused(&record, refusal)),
                // It has ended.
                Some(_) => {}
            }
        }
        self.before.retain(|id, _| lines.contains_key(id));
        match failure {
            Some(error) if lines.is_empty() && !self.names.is_empty() => Err(error),
            _ => Ok(order.iter().filter_map(|id| lines.remove(id)).collect()),
        }
    }
}

fn line(record: Record, usage: Usage, traffic: Option<(u64, u64)>, before: Option<Usage>) -> api::Stats {
    api::Stats {
        id: record.id.to_string(),
        name: record.request.name.map(String::from).unwrap_or_default(),
        runtime: record.runtime.to_string(),
        cpu_percent: before.map_or(0.0, |before| percent(before, usage)),
        cpu_ns: usage.cpu_ns,
        memory_bytes: usage.memory_bytes,
        memory_limit_bytes: usage.memory_limit_bytes,
        pids: usage.pids,
        pids_limit: usage.pids_limit,
        block_read_bytes: usage.block_read_bytes,
        block_write_bytes: usage.block_write_bytes,
        vm_bytes: usage.vm_bytes,
        network_received_bytes: traffic.map(|(received, _)| received),
        network_sent_bytes: traffic.map(|(_, sent)| sent),
    }
}

/// Processor time over time, in hundredths of one processor. A guest says what it likes, so nothing may overflow.
fn percent(before: Usage, now: Usage) -> f64 {
    let span = now.at_ns.saturating_sub(before.at_ns);
    let used = now.cpu_ns.saturating_sub(before.cpu_ns);
    if span == 0 { 0.0 } else { used as f64 / span as f64 * 100.0 }
}

pub(super) fn not_running(record: &Record) -> Error {
    let text = format!("container {} is not running: start it first", record.id.short());
    Error::new(ErrorKind::Precondition, text)
}

pub(super) fn refused(record: &Record, refusal: Refusal) -> Error {
    let kind = if refusal.is_missing { ErrorKind::NotFound } else { ErrorKind::Precondition };
    Error::new(kind, format!("container {}: {}", record.id.short(), refusal.message))
}

fn confused() -> Error {
    Error::new(ErrorKind::Internal, "the container's supervisor answered something else than it was asked")
}

impl From<ProcessInfo> for api::Process {
    fn from(info: ProcessInfo) -> Self {
        let ProcessInfo { pid, parent, uid, cpu_ms, command } = info;
        Self { pid, parent, uid, cpu_ms, command }
    }
}

/// Whether anything of a container is there to be operated on.
pub(super) fn is_alive(state: &ContainerState) -> bool {
    matches!(state, ContainerState::Starting | ContainerState::Running { .. } | ContainerState::Paused { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_survive_any_counter() {
        let usage = |at_ns, cpu_ns| Usage { at_ns, cpu_ns, ..Usage::default() };
        assert_eq!(percent(usage(1_000, 0), usage(2_000, 1_500)), 150.0);
        assert_eq!(percent(usage(5, 5), usage(5, 9)), 0.0);
        assert_eq!(percent(usage(9, 9), usage(1, 1)), 0.0);
        assert_eq!(percent(usage(0, 0), usage(u64::MAX, u64::MAX)), 100.0);
    }
}
