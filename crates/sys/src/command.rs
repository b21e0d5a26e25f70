//! What a child does between fork and exec, as safe additions to [`Command`].

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::thread::LinkNameSpaceType;

use crate::cgroup::CgroupEntrance;

/// Namespaces a child is moved into before it executes its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespace {
    /// Mounts.
    Mount,
    /// Network.
    Network,
    /// System V and POSIX shared memory, queues and semaphores.
    Ipc,
}

/// Additions to [`Command`] that run in the child. Every one is async-signal-safe: it allocates nothing and takes no
/// lock, because another thread may hold one at the moment of the fork.
pub trait CommandExtra {
    /// The child leads a session of its own, so a terminal's signals and hang-up do not reach it.
    fn new_session(&mut self) -> &mut Self;
    /// No signal is blocked or ignored in the child. `std` passes this process's mask on.
    fn default_signals(&mut self) -> &mut Self;
    /// The child is killed when the thread that spawned it ends.
    ///
    /// It is bound to the *thread*: only call this from one that lives as long as the process.
    fn die_with_parent(&mut self) -> &mut Self;
    /// The child gets new namespaces of these kinds.
    fn unshare(&mut self, namespaces: &[Namespace]) -> &mut Self;
    /// The child enters a cgroup, so that not even its first instruction runs outside.
    fn enter_cgroup(&mut self, entrance: CgroupEntrance) -> &mut Self;
    /// The child joins the network namespace that `namespace` is an open file of.
    fn join_network(&mut self, namespace: OwnedFd) -> &mut Self;
}

impl CommandExtra for Command {
    fn new_session(&mut self) -> &mut Self {
        // SAFETY: the closure makes one system call and allocates nothing.
        unsafe { self.pre_exec(|| rustix::process::setsid().map(drop).map_err(io::Error::from)) }
    }

    fn default_signals(&mut self) -> &mut Self {
        let reset = || {
            crate::signals::reset_all();
            Ok(())
        };
        // SAFETY: the closure makes system calls and allocates nothing.
        unsafe { self.pre_exec(reset) }
    }

    fn die_with_parent(&mut self) -> &mut Self {
        let kill = Some(rustix::process::Signal::KILL);
        // SAFETY: the closure makes one system call and allocates nothing.
        unsafe {
            self.pre_exec(move || {
                rustix::process::set_parent_process_death_signal(kill).map_err(io::Error::from)
            })
        }
    }

    fn unshare(&mut self, namespaces: &[Namespace]) -> &mut Self {
        let flags = namespaces.iter().fold(0, |flags, namespace| {
            flags
                | match namespace {
                    Namespace::Mount => libc::CLONE_NEWNS,
                    Namespace::Network => libc::CLONE_NEWNET,
                    Namespace::Ipc => libc::CLONE_NEWIPC,
                }
        });
        let enter = move || {
            // SAFETY: `unshare` takes a flag word and no pointers.
            match unsafe { libc::unshare(flags) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        };
        // SAFETY: the closure makes one system call and allocates nothing.
        unsafe { self.pre_exec(enter) }
    }

    fn enter_cgroup(&mut self, entrance: CgroupEntrance) -> &mut Self {
        // `0` means the process that writes.
        let enter = move || entrance.files.iter().try_for_each(|mut file| file.write_all(b"0"));
        // SAFETY: the closure only writes to files that are open, and allocates nothing.
        unsafe { self.pre_exec(enter) }
    }

    fn join_network(&mut self, namespace: OwnedFd) -> &mut Self {
        let join = move || {
            rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(io::Error::from)
        };
        // SAFETY: the closure makes one system call and allocates nothing.
        unsafe { self.pre_exec(join) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_leads_its_own_session() {
        let child =
            Command::new("sh").args(["-c", "cut -d' ' -f1,6 /proc/$$/stat"]).new_session().output().unwrap();
        let text = String::from_utf8(child.stdout).unwrap();
        let (pid, session) = text.trim().split_once(' ').unwrap();
        assert_eq!(pid, session);
    }
    #[test]
    fn a_child_blocks_no_signal_that_its_parent_blocks() {
        std::thread::spawn(|| {
            let _taken = crate::signalfd::SignalFd::take(&[rustix::process::Signal::TERM]).unwrap();
            // Not through a shell, which clears the mask itself.
            let mut command = Command::new("grep");
            command.args(["SigBlk", "/proc/self/status"]);
            let blocked =
                |command: &mut Command| String::from_utf8(command.output().unwrap().stdout).unwrap();
            assert_eq!(blocked(&mut command).trim_end(), "SigBlk:\t0000000000004000", "inherited by itself");
            assert_eq!(blocked(command.default_signals()).trim_end(), "SigBlk:\t0000000000000000");
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_child_is_in_its_cgroup_and_network_before_its_program_starts() {
        let group = tempfile::NamedTempFile::new().unwrap();
        let files = vec![group.reopen().unwrap()];
        let network = std::fs::File::open("/proc/self/ns/net").unwrap();
        let status =
            Command::new("true").enter_cgroup(CgroupEntrance { files }).join_network(network.into()).status();
        match status {
            Ok(status) => assert!(status.success()),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return eprintln!("skipped: joining a namespace needs root");
            }
            Err(error) => panic!("{error}"),
        }
        assert_eq!(std::fs::read(group.path()).unwrap(), b"0");
    }
}
