//! The worker: what serves requests, whether in a daemon or inside the command that asks.
//!
//! It keeps nothing in memory that it could not read again: containers are directories, and their supervisors
//! answer for those that run. Two workers on one root see the same containers.

mod attach;
mod copy;
mod events;
mod exec;
mod find;
mod follow;
mod grpc;
mod images;
mod import;
mod launch;
mod lifecycle;
mod limits;
mod logs;
mod mounts;
mod names;
mod network;
mod operate;
mod options;
mod prune;
mod sizes;
mod streams;
mod view;
mod volumes;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use beta9_image::Store;
use beta9_supervisor::ContainerDirectory;

use crate::error::{Error, Result};
use crate::pools::Pools;
use crate::service::events::Events;

pub(crate) use grpc::router;
pub(crate) use import::take_in;
pub(crate) use launch::own_program;

/// One worker on one root directory.
pub(crate) struct Worker {
    root: PathBuf,
    store: Arc<Store>,
    pools: Pools,
    started_us: u64,
    /// Only where a worker serves.
    events: Option<Arc<Events>>,
}

impl Worker {
    /// Opens the state directory. Creates no runtime yet.
    pub(crate) fn open(root: &Path, pools: Pools) -> Result<Self> {
        for directory in
            [root.to_owned(), ContainerDirectory::all(root), root.join("names"), root.join("volumes")]
        {
            private_directory(&directory)
                .map_err(|e| Error::internal(format!("create {}", directory.display()), e))?;
        }
        crate::guest::refresh(root)?;
        let store = Store::open(root)
            .map_err(|e| Error::internal(format!("open the image store in {}", root.display()), e))?;
        Ok(Self { root: root.to_owned(), store: Arc::new(store), pools, started_us: now_us(), events: None })
    }

    /// Has what happens to containers told to whoever asks.
    pub(crate) fn with_events(mut self) -> Self {
        self.events = Some(Arc::default());
        self
    }

    /// The pools and their runtimes.
    pub(crate) fn pools(&self) -> &Pools {
        &self.pools
    }
}

fn private_directory(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Now, in microseconds since the Unix epoch.
pub(crate) fn now_us() -> u64 {
    micros(SystemTime::now())
}

/// Microseconds since the Unix epoch, which fit for another half a million years.
pub(crate) fn micros(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64
}

/// Runs work that blocks, where it may.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::internal("a step panicked", e))
}
