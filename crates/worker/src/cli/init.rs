//! `init`: PID 1 of a pod. It reaps what is orphaned and keeps a worker serving, and does nothing else.
//!
//! A worker that dies is started again, and adopts the containers that went on without it. Being told to end is passed
//! on to the worker, whose end is then ours.

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use beta9_sys::command::CommandExtra;
use beta9_sys::reaper::{ChildExit, Reaper};
use beta9_sys::signalfd::SignalFd;
use clap::Args;
use rustix::process::{Signal, kill_process};

use crate::cli::{Failure, Outcome};
use crate::service::own_program;
use crate::terminal;

/// A worker that ends again so soon is started again only after a pause.
const TOO_SOON: Duration = Duration::from_secs(5);

#[derive(Args)]
pub(super) struct InitArgs {
    /// What to pass to `serve`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "SERVE ARGUMENT")]
    serve: Vec<OsString>,
}

enum Event {
    Ended(ChildExit),
    Terminate,
}

pub(super) fn run(args: InitArgs) -> Outcome {
    terminal::init_logging(1);
    let failure = |what: &str, e: &dyn std::error::Error| Failure::new(format!("{what}: {e}"));
    // Outside a pod it is still the one that inherits.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|e| failure("become a child subreaper", &e))?;
    let (sender, events) = mpsc::channel();
    // Blocked before the first other thread exists, so that they arrive here only.
    let signals = SignalFd::take(&[Signal::TERM, Signal::INT]).map_err(|e| failure("receive signals", &e))?;
    let reaper = Reaper::start().map_err(|e| failure("start the reaper", &e))?;
    let to_us = sender.clone();
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            if to_us.send(Event::Terminate).is_err() {
                return;
            }
        }
    });
    let mut is_ending = false;
    loop {
        let started = Instant::now();
        let mut command = own_program();
        // The worker takes its settings from the pod's environment.
        command.envs(std::env::vars_os()).arg("serve").args(&args.serve).default_signals();
        let ended = sender.clone();
        let worker = reaper
            .spawn(&mut command, move |exit| {
                let _ = ended.send(Event::Ended(exit));
            })
            .map_err(|e| failure("start the worker", &e))?;
        let exit = loop {
            match events.recv().map_err(|e| failure("wait for the worker", &e))? {
                Event::Ended(exit) => break exit,
                Event::Terminate => {
                    is_ending = true;
                    let _ = kill_process(worker.pid, Signal::TERM);
                }
            }
        };
        if is_ending {
            return Ok(match exit {
                ChildExit::Code(code) => ExitCode::from(code),
                ChildExit::Signal(number) => ExitCode::from(128u8.saturating_add(number)),
            });
        }
        tracing::warn!(?exit, "worker ended and is started again");
        if started.elapsed() < TOO_SOON {
            std::thread::sleep(TOO_SOON);
        }
    }
}
