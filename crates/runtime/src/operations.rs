use std::os::fd::OwnedFd;

use async_trait::async_trait;
use beta9_types::{CopyIn, CopyOut, DiskRate, LimitChange, ProcessInfo, Usage};

use crate::Result;

/// What an operator does to a running container while somebody else waits for its end. Calls do not wait for each other.
#[async_trait]
pub trait Operations: Send + Sync {
    /// Freezes every process.
    async fn pause(&self) -> Result<()>;

    /// Lets frozen processes go on.
    async fn resume(&self) -> Result<()>;

    /// What the container uses.
    async fn usage(&self) -> Result<Usage>;

    /// The container's processes, ordered by their ids.
    async fn processes(&self) -> Result<Vec<ProcessInfo>>;

    /// Changes limits, or refuses what cannot be changed, by name. Where it fails, limits before the failure may have
    /// been changed.
    async fn update(&self, change: LimitChange) -> Result<()>;

    /// Changes how much memory it keeps when the host runs short. The rest of a VM's is taken back at once, where its pool
    /// says so, and given again when it is needed.
    async fn reserve_memory(&self, bytes: u64) -> Result<()>;

    /// Changes what it may do on its own disks. What `rate` does not say stays as it is.
    async fn limit_disks(&self, rate: DiskRate) -> Result<()>;

    /// Writes an archive of files of the container to `to`. Nothing of the container is executed.
    async fn copy_out(&self, request: CopyOut, to: OwnedFd) -> Result<()>;

    /// Unpacks an archive from `from` in the container. Nothing of the container is executed.
    async fn copy_in(&self, request: CopyIn, from: OwnedFd) -> Result<()>;
}
