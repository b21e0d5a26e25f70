//! `serve`: the daemon.

use std::fs;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use beta9_logging::Format;
use beta9_sys::cgroup::Cgroup;
use beta9_types::chain;
use clap::Args;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;

use crate::cli::{Failure, Global, Outcome};
use crate::client::{self, SOCKET};
use crate::error::{Error, ErrorKind, Result};
use crate::metrics;
use crate::pools::Setup;
use crate::service::{self, Worker};

const EXAMPLES: &str = "\
Examples:
  beta9-worker serve --config /etc/beta9/worker.yaml
  CONTAINER_RUNTIME=gvisor beta9-worker serve
  beta9-worker serve --config worker.yaml --pool untrusted --log-format json

Containers outlive the worker: stop it, kill it or replace it, and the next one adopts them.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ServeArgs {
    /// Serve only these pools of the configuration; all of them where absent.
    #[arg(long = "pool", value_name = "NAME", num_args = 1..)]
    pools: Vec<String>,
    /// How log lines are written to stderr: text or json.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: Format,
    /// Serve metrics for Prometheus at http://ADDRESS/metrics; not served where absent.
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,
}

pub(super) async fn run(global: &Global, args: ServeArgs) -> Outcome {
    let setup = Setup::load(global)?;
    let level = if setup.config.debug_mode() || global.verbose > 0 {
        tracing::Level::DEBUG
    } else {
        tracing::Level::INFO
    };
    beta9_logging::init(args.log_format, level).map_err(|e| Failure::new(e.to_string()))?;
    leave_root_cgroup();
    // Before anybody can know that we serve: being told to stop is never missed.
    let stop = stop_signal()?;
    let (root, network) = (setup.root.clone(), setup.config.network().clone());
    let worker = Arc::new(Worker::open(&root, setup.into_pools(&args.pools)?)?.with_events());
    let listener = listen(&root).await?;
    worker.adopt().await?;
    tokio::spawn(Arc::clone(&worker).keep_rules());
    // Requests are accepted meanwhile; one for a pool that is being created waits for it.
    let preparing = Arc::clone(&worker);
    tokio::spawn(async move { preparing.pools().prepare().await });
    tracing::info!(socket = %root.join(SOCKET).display(), "worker is serving");
    if let Some(address) = args.metrics {
        metrics::serve(address, Arc::clone(&worker)).await?;
    }
    service::router(worker)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop)
        .await
        .map_err(|e| Failure::new(format!("serve: {}", crate::error::chain(&e))))?;
    let _ = fs::remove_file(root.join(SOCKET));
    // Whoever starts a container next makes it again.
    if let Err(error) = beta9_network::remove_unused(&network, &beta9_network::Nft::new(None)) {
        tracing::warn!(error = chain(&error), "the bridge of the containers could not be removed");
    }
    tracing::info!("worker has stopped; containers go on");
    Ok(ExitCode::SUCCESS)
}

/// One worker per root: the socket of one that lives is respected, the socket of one that died is replaced.
/// In a container of its own the worker sits in the group that it sees as the root, where no container could be limited.
fn leave_root_cgroup() {
    match Cgroup::leave_root("beta9.worker") {
        Ok(0) => {}
        Ok(processes) => tracing::info!(processes, "moved out of the root cgroup to make limits possible"),
        Err(error) => tracing::warn!(error = chain(&error), "limits of containers may not work"),
    }
}

async fn listen(root: &Path) -> Result<UnixListener> {
    let path = root.join(SOCKET);
    if client::connect(root).await?.is_some() {
        let text = format!("another worker serves {}: stop it, or choose another --root", root.display());
        return Err(Error::new(ErrorKind::Precondition, text));
    }
    let failed = |e| Error::internal(format!("listen on {}", path.display()), e);
    let directory = fs::File::open(root).map_err(failed)?;
    let short = format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd());
    match fs::remove_file(&short) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    let listener = UnixListener::bind(&short).map_err(failed)?;
    fs::set_permissions(&short, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

fn stop_signal() -> std::result::Result<impl Future<Output = ()>, Failure> {
    let failure = |e| Failure::new(format!("receive signals: {e}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(failure)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failure)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
