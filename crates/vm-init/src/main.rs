//! `beta9-vm-init`: PID 1 of a microVM.
//!
//! It mounts what a container needs, dials the host over vsock, and then does what the host says: create, start and
//! signal containers, carry their streams, report their exits. It decides nothing itself and refuses what it does not
//! understand. Everything here is synchronous: a thread per container and per stream, one reaper for all children.
//!
//! ```text
//! boot ──▶ dial, Hello/Welcome ──▶ serve ──Shutdown, or the host is gone──▶ kill, sync, restart the machine
//!                                    │
//!                                    ├─ container (one thread each): see `container`
//!                                    └─ a failure of the machine itself: one line on the console, restart
//! ```
//!
//! The same program, executed again with `stage` as its argument, is a container's first process, and with `join` another
//! one of it: see `stage`. With `--` and a command it is a container's init: see `init`.

mod boot;
mod container;
mod control;
mod failure;
mod init;
mod machine;
mod modules;
mod network;
mod operate;
mod report;
mod stage;
mod timeline;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse().unwrap_or(-1);
    match words[..] {
        ["--", ref command @ ..] => init::run(command),
        ["stage", socket] => stage::run(number(socket)),
        ["join", socket, container] => stage::join(number(socket), number(container)),
        _ if rustix::process::getpid().is_init() => machine::run(),
        _ => {
            eprintln!("beta9-vm-init: this is the init of a microVM's guest, run by its kernel");
            ExitCode::FAILURE
        }
    }
}
