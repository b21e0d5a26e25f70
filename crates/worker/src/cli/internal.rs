//! The hidden commands: processes that the worker and the supervisors start.

use std::ffi::OsString;
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use beta9_sys::cgroup::Cgroup;
use beta9_sys::reaper::Reaper;
use beta9_types::{RuntimeKind, RuntimeSettings};

use crate::cli::{Failure, Outcome};
use crate::error::chain;
use crate::runtimes::Answer;
use crate::terminal;

/// How long what a probe left may take to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// Longest description of a runtime that a probe reads.
const MAX_SETTINGS: u64 = 1 << 20;

pub(super) fn supervise(directory: PathBuf) -> Outcome {
    terminal::init_logging(1);
    beta9_supervisor::supervise(directory).map_err(|e| Failure::new(chain(&e)))?;
    Ok(ExitCode::SUCCESS)
}

/// Boots one VM as a supervisor would. The settings come on stdin, the answer goes to stdout.
pub(super) fn probe(kind: RuntimeKind) -> Outcome {
    terminal::init_logging(1);
    let failure = |what: &str, e: &dyn std::error::Error| Failure::new(format!("{what}: {}", chain(e)));
    let mut text = Vec::new();
    std::io::stdin().take(MAX_SETTINGS).read_to_end(&mut text).map_err(|e| failure("read settings", &e))?;
    let settings: RuntimeSettings =
        serde_json::from_slice(&text).map_err(|e| failure("read settings", &e))?;

    beta9_sys::namespaces::enter_private_mounts().map_err(|e| failure("start a probe", &e))?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|e| failure("become a child subreaper", &e))?;
    let reaper = Reaper::start().map_err(|e| failure("start the reaper", &e))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| failure("start an event loop", &e))?;
    let cgroup = Cgroup::at(format!("beta9/probe-{}", std::process::id()));
    cgroup.create().map_err(|e| failure("start a probe", &e))?;
    let answer = match runtime.block_on(beta9_microvm::probe(kind, &settings, &reaper, &cgroup)) {
        Ok(report) => Answer::Booted(report),
        Err(error) => Answer::Failed(error.chain()),
    };
    let emptied = cgroup.kill(KILL_DEADLINE);
    if let Err(error) = cgroup.remove() {
        tracing::warn!(emptied, error = chain(&error), "the probe's cgroup could not be removed");
    }
    Cgroup::at("beta9").remove_if_empty();
    terminal::line(&serde_json::to_string(&answer).map_err(|e| failure("answer", &e))?)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn share(args: Vec<OsString>) -> Outcome {
    terminal::init_logging(0);
    beta9_microvm::share::serve(args.into_iter()).map_err(|e| Failure::new(chain(&e)))?;
    Ok(ExitCode::SUCCESS)
}
