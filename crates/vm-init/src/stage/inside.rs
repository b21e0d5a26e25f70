//! The stage itself: from a copy of PID 1's program to the container's program.

use std::convert::Infallible;
use std::fs;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use beta9_sys::program::{set_resource_limit, take_passed_descriptor};
use beta9_wire::{Frame, Process, decode, read_frame, write_message};
use rustix::fs::Mode;
use rustix::process::umask;

use super::terminal::{self, Console};
use super::{Answer, Execute, Orders, identity, mounts, program, tree};
use crate::failure::{Context, Failure, Result};

/// The mask of a process whose image and request name none.
const DEFAULT_UMASK: u32 = 0o022;

/// Runs as the stage. Returns only when there is no program to become.
pub(crate) fn run(descriptor: RawFd) -> ExitCode {
    let mut socket = match take_passed_descriptor(descriptor) {
        Ok(socket) => UnixStream::from(socket),
        Err(error) => {
            eprintln!("beta9-vm-init: stage without its socket: {error}");
            return ExitCode::FAILURE;
        }
    };
    let Err(failure) = become_container(&mut socket);
    // PID 1 may have given up; then there is no one to tell.
    let _ = write_message(&mut socket, &Answer::Failed(failure));
    ExitCode::FAILURE
}

fn become_container(socket: &mut UnixStream) -> Result<Infallible> {
    let orders: Orders = receive(socket)?;
    prepare(&orders, socket)?;
    write_message(socket, &Answer::Prepared).context(|| "tell PID 1")?;
    let Execute = receive(socket)?;
    program::execute(&orders.spec.process)
}

pub(super) fn receive<T: serde::de::DeserializeOwned>(socket: &mut UnixStream) -> Result<T> {
    match read_frame(socket).context(|| "hear PID 1")? {
        Frame::Message(body) => decode("stage", &body).context(|| "understand PID 1"),
        Frame::Data(_) => Err(Failure::refused("PID 1 is confused")),
    }
}

/// Everything up to the exec. What needs the machine's `/proc` comes before the pivot, what needs rights before the
/// identity.
fn prepare(orders: &Orders, socket: &mut UnixStream) -> Result<()> {
    let spec = &orders.spec;
    let process = &spec.process;
    // Modes are meant as they are written, those of device nodes above all.
    umask(Mode::empty());
    rustix::process::setsid().context(|| "lead a session")?;
    beta9_sys::machine::enter_container_namespaces().context(|| "enter new namespaces")?;
    rustix::system::sethostname(spec.hostname.as_bytes()).context(|| "set the host name")?;

    tree::keep_private()?;
    let root = tree::open_root(&orders.root)?;
    mounts::mount_all(&root, orders)?;
    for (name, value) in &spec.sysctls {
        set_sysctl(name, value)?;
    }
    program::make_working_directory(&root, &process.cwd)?;
    tree::protect(&root, spec)?;

    // PID 1 is spared by the kernel's memory killer, and its children inherited that.
    fs::write("/proc/self/oom_score_adj", "0").context(|| "write /proc/self/oom_score_adj")?;
    tree::enter(root)?;
    if let Some(size) = process.terminal {
        terminal::make(socket, size, Console::Shown)?;
    }
    assume(process)
}

/// The limits, the identity and the place of a process. The last steps before its program.
pub(super) fn assume(process: &Process) -> Result<()> {
    for limit in &process.rlimits {
        set_resource_limit(limit.resource, limit.soft, limit.hard)
            .context(|| format!("set resource limit {}", limit.resource))?;
    }
    umask(Mode::from_raw_mode(process.identity.umask.unwrap_or(DEFAULT_UMASK) & 0o777));
    identity::assume(process)?;
    std::env::set_current_dir(&process.cwd).context(|| format!("enter {}", process.cwd))?;
    Ok(())
}

fn set_sysctl(name: &str, value: &str) -> Result<()> {
    let path =
        sysctl_path(name).ok_or_else(|| Failure::refused(format!("a kernel setting named {name:?}")))?;
    fs::write(&path, value).context(|| format!("set {name}"))
}

/// `a.b.c`, or `a/b.c/d` where a part has a dot in itself, below `/proc/sys`.
fn sysctl_path(name: &str) -> Option<String> {
    let path = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    let allowed = |part: &str| {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
        !part.is_empty() && part != "." && part != ".." && part.bytes().all(known)
    };
    path.split('/').all(allowed).then(|| format!("/proc/sys/{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_setting_stays_below_proc_sys() {
        assert_eq!(sysctl_path("net.ipv4.ip_forward").as_deref(), Some("/proc/sys/net/ipv4/ip_forward"));
        assert_eq!(sysctl_path("net/ipv4/conf/a.b/x").as_deref(), Some("/proc/sys/net/ipv4/conf/a.b/x"));
        for bad in ["", "..", "a/../../x", "/etc/passwd", "a//b", "a b"] {
            assert_eq!(sysctl_path(bad), None, "{bad}");
        }
    }
}
