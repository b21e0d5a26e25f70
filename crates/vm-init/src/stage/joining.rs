//! A process that joins a running container, before it executes its program.

use std::convert::Infallible;
use std::fs;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use beta9_sys::program::take_passed_descriptor;
use beta9_wire::{Process, write_message};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::terminal::{self, Console};
use super::{Answer, inside, program};
use crate::failure::{Context, Result};

/// Runs as the process. Returns only when there is no program to become.
pub(crate) fn join(socket: RawFd, container: RawFd) -> ExitCode {
    let taken = take_passed_descriptor(socket)
        .and_then(|socket| Ok((UnixStream::from(socket), take_passed_descriptor(container)?)));
    let (mut socket, container) = match taken {
        Ok(taken) => taken,
        Err(error) => {
            eprintln!("beta9-vm-init: join without its descriptors: {error}");
            return ExitCode::FAILURE;
        }
    };
    let Err(failure) = become_process(&mut socket, container);
    // PID 1 may have given up; then there is no one to tell.
    let _ = write_message(&mut socket, &Answer::Failed(failure));
    ExitCode::FAILURE
}

fn become_process(socket: &mut UnixStream, container: OwnedFd) -> Result<Infallible> {
    let process: Process = inside::receive(socket)?;
    // Until it is a program of the container's, nobody in there may look into it.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context(|| "close itself to others")?;
    rustix::process::setsid().context(|| "lead a session")?;
    // PID 1 is spared by the kernel's memory killer, and its children inherited that.
    fs::write("/proc/self/oom_score_adj", "0").context(|| "write /proc/self/oom_score_adj")?;
    let kinds = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::CONTROL_GROUP;
    // With the mount namespace come the container's root and its working directory.
    move_into_thread_name_spaces(container.as_fd(), kinds).context(|| "enter the container")?;
    drop(container);
    if let Some(size) = process.terminal {
        terminal::make(socket, size, Console::Absent)?;
    }
    inside::assume(&process)?;
    program::execute(&process)
}
