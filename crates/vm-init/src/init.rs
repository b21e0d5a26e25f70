//! A container's init, where it asked for one: runs the command, passes signals on to it, reaps what it orphans, and ends
//! as it ended.
//!
//! The program is `beta9-vm-init -- COMMAND…`, in a guest and, mounted into the container, outside of one.

use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use beta9_sys::command::CommandExtra;
use beta9_sys::signalfd::SignalFd;
use beta9_sys::signals::MAX_SIGNAL;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, wait};

/// Runs the command. Returns its exit code, 128+n for a signal, 126 or 127 where it cannot be executed.
pub(crate) fn run(command: &[&str]) -> ExitCode {
    let [program, arguments @ ..] = command else {
        eprintln!("beta9-init: no command");
        return ExitCode::from(127);
    };
    // Faults are this process's own, and what stops it would stop everything.
    let own = [Signal::FPE, Signal::ILL, Signal::SEGV, Signal::BUS, Signal::ABORT, Signal::TRAP, Signal::SYS];
    let kept = [Signal::KILL, Signal::STOP, Signal::TTIN, Signal::TTOU];
    let signals: Vec<Signal> = (1..=MAX_SIGNAL)
        .filter_map(Signal::from_named_raw)
        .filter(|signal| !own.contains(signal) && !kept.contains(signal))
        .collect();
    let taken = match SignalFd::take(&signals) {
        Ok(taken) => taken,
        Err(error) => {
            eprintln!("beta9-init: {}", beta9_types::chain(&error));
            return ExitCode::from(125);
        }
    };
    let mut child = Command::new(program);
    // What is taken over here is not to be blocked there.
    child.args(arguments).default_signals();
    // In a group of its own a terminal's keys reach it once, from the kernel, and not a second time from here.
    let has_terminal = std::io::stdin().is_terminal();
    if has_terminal {
        child.process_group(0);
    }
    let child = match child.spawn() {
        Ok(child) => child,
        Err(error) => {
            eprintln!("beta9-init: execute {program:?}: {error}");
            let missing = error.kind() == std::io::ErrorKind::NotFound;
            return ExitCode::from(if missing { 127 } else { 126 });
        }
    };
    let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else {
        return ExitCode::from(125);
    };
    if has_terminal {
        // SIGTTOU is for a group in the background, which this one is from here on.
        let _ = rustix::termios::tcsetpgrp(rustix::stdio::stdin(), pid);
    }
    loop {
        match taken.wait() {
            Ok(number) if number == Signal::CHILD.as_raw() => {
                if let Some(code) = reap(pid) {
                    return ExitCode::from(code);
                }
            }
            Ok(number) => {
                // It may just have ended, which the next signal says.
                let _ = beta9_sys::signals::send(pid, number);
            }
            Err(error) => {
                eprintln!("beta9-init: {}", beta9_types::chain(&error));
                return ExitCode::from(125);
            }
        }
    }
}

/// Collects every process that has ended; `Some` when the command is among them.
fn reap(command: Pid) -> Option<u8> {
    let mut code = None;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if pid == command {
            code = Some(code_of(status));
        }
    }
    code
}

/// As a shell reports it.
fn code_of(status: WaitStatus) -> u8 {
    let code = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => signal + 128,
        (None, None) => 125,
    };
    u8::try_from(code).unwrap_or(u8::MAX)
}
