//! Operating the container in a VM: the guest does it, and the host adds what only it knows.

use std::os::fd::OwnedFd;

use async_trait::async_trait;
use beta9_runtime::{Error, ErrorKind, Operations, Result};
use beta9_sys::cgroup::Cgroup;
use beta9_types::{CopyIn, CopyOut, DiskRate, LimitChange, ProcessInfo, Usage};
use beta9_wire::{Operation, Outcome};

use crate::knobs::Knobs;
use crate::sandbox::Sandbox;

pub(crate) struct GuestOperations {
    pub(crate) sandbox: Sandbox,
    pub(crate) cgroup: Cgroup,
    pub(crate) knobs: Knobs,
}

impl GuestOperations {
    async fn expect_done(&self, operation: Operation) -> Result<()> {
        match self.sandbox.operate(operation).await? {
            Outcome::Done => Ok(()),
            _ => Err(confused()),
        }
    }
}

fn confused() -> Error {
    Error::new(ErrorKind::Failed, "the guest answered something else than it was asked")
}

#[async_trait]
impl Operations for GuestOperations {
    async fn pause(&self) -> Result<()> {
        self.expect_done(Operation::Pause).await
    }

    async fn resume(&self) -> Result<()> {
        self.expect_done(Operation::Resume).await
    }

    async fn usage(&self) -> Result<Usage> {
        match self.sandbox.operate(Operation::Usage).await? {
            Outcome::Usage(usage) => Ok(Usage { vm_bytes: Some(self.cgroup.usage().memory_bytes), ..usage }),
            _ => Err(confused()),
        }
    }

    async fn processes(&self) -> Result<Vec<ProcessInfo>> {
        match self.sandbox.operate(Operation::Processes).await? {
            Outcome::Processes(processes) => Ok(processes),
            _ => Err(confused()),
        }
    }

    async fn update(&self, change: LimitChange) -> Result<()> {
        self.knobs.size.check(&change)?;
        self.expect_done(Operation::Update(change)).await?;
        match change.memory_bytes {
            Some(bytes) => self.knobs.leave_memory(bytes).await,
            None => Ok(()),
        }
    }

    async fn reserve_memory(&self, bytes: u64) -> Result<()> {
        let failed = |e| Error::caused(ErrorKind::Failed, "reserve memory for the VM", e);
        self.cgroup.reserve_memory(bytes).map_err(failed)?;
        self.knobs.leave_memory(bytes).await
    }

    async fn limit_disks(&self, rate: DiskRate) -> Result<()> {
        self.knobs.limit_disks(rate).await
    }

    async fn copy_out(&self, request: CopyOut, to: OwnedFd) -> Result<()> {
        self.sandbox.copy_out(request, to).await
    }

    async fn copy_in(&self, request: CopyIn, from: OwnedFd) -> Result<()> {
        self.sandbox.copy_in(request, from).await
    }
}
