//! The hidden commands: processes that the worker and the supervisors start.

use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use beta9_supervisor::Purpose;
use beta9_sys::reaper::Reaper;
use beta9_types::{ImageReference, RuntimeKind, RuntimeSettings};

use crate::cli::{Failure, Outcome};
use crate::error::chain;
use crate::runtimes::Answer;
use crate::terminal;

/// Longest description of a runtime that a probe reads.
const MAX_SETTINGS: u64 = 1 << 20;

pub(super) fn supervise(directory: PathBuf, purpose: Purpose) -> Outcome {
    terminal::init_logging(1);
    beta9_supervisor::supervise(directory, purpose).map_err(|e| Failure::new(chain(&e)))?;
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
    let answer = match runtime.block_on(beta9_microvm::probe(kind, &settings, &reaper)) {
        Ok(report) => Answer::Booted(report),
        Err(error) => Answer::Failed(error.chain()),
    };
    terminal::line(&serde_json::to_string(&answer).map_err(|e| failure("answer", &e))?)?;
    Ok(ExitCode::SUCCESS)
}

/// Serves host directories to a guest. Its stderr and exit code go to the supervisor that started it.
pub(super) fn share(arguments: Vec<OsString>) -> Outcome {
    beta9_microvm::share::serve(arguments.into_iter()).map_err(|e| Failure::new(e.chain()))?;
    Ok(ExitCode::SUCCESS)
}

/// Takes an image in, in a process that can be killed when its source does not answer.
pub(super) fn take_in(root: &Path, path: &Path, tag: Option<&ImageReference>) -> Outcome {
    terminal::init_logging(0);
    // Whoever asked is gone when nobody reads, and the image is wanted all the same.
    crate::service::take_in(root, path, tag, |line| drop(terminal::line(line)));
    Ok(ExitCode::SUCCESS)
}

/// Becomes a program of a VM. What goes wrong is said on stderr, which is kept with what the program says.
pub(super) fn confine(arguments: Vec<OsString>) -> Outcome {
    match beta9_microvm::confine(arguments.into_iter()) {
        Ok(never) => match never {},
        Err(error) => Err(Failure::new(error.chain())),
    }
}
