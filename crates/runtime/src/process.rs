use std::sync::Arc;

use async_trait::async_trait;
use beta9_types::{ExecId, Exit, TerminalSize};
use oci_spec::runtime::Process;

use crate::{ContainerStdio, Result};

/// Another process for a running container.
pub struct ExecRequest {
    /// Its identity, unique in the container.
    pub id: ExecId,
    /// What runs, as whom and with which rights. Whether it has a terminal is said by `stdio`.
    pub process: Process,
    /// Its ends of its streams.
    pub stdio: ContainerStdio,
}

/// What can be done with the processes of a running container while somebody else waits for its end. Calls do not wait
/// for each other.
#[async_trait]
pub trait Processes: Send + Sync {
    /// Starts another process; returns when its program has been executed.
    async fn exec(&self, request: ExecRequest) -> Result<Arc<dyn Execution>>;

    /// Changes the size of the main process's terminal.
    async fn resize(&self, size: TerminalSize) -> Result<()>;
}

/// A process beside a container's main one. It ends with the container at the latest.
#[async_trait]
pub trait Execution: Send + Sync {
    /// Waits for its end. Everything that it wrote is in its stdout and stderr by then.
    async fn exit(&self) -> Exit;

    /// Sends it signal `number`.
    async fn signal(&self, number: i32) -> Result<()>;

    /// Changes the size of its terminal.
    async fn resize(&self, size: TerminalSize) -> Result<()>;
}
