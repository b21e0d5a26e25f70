//! What a child does between fork and exec, as safe additions to [`Command`].

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Namespaces a child is moved into before it executes its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespace {
    /// Mounts.
    Mount,
    /// Network.
    Network,
}

/// Additions to [`Command`] that run in the child. Every one is async-signal-safe: it allocates nothing and takes no
/// lock, because another thread may hold one at the moment of the fork.
pub trait CommandExtra {
    /// The child leads a session of its own, so a terminal's signals and hang-up do not reach it.
    fn new_session(&mut self) -> &mut Self;
    /// The child is killed when the thread that spawned it ends.
    ///
    /// It is bound to the *thread*: only call this from one that lives as long as the process.
    fn die_with_parent(&mut self) -> &mut Self;
    /// The child gets new namespaces of these kinds.
    fn unshare(&mut self, namespaces: &[Namespace]) -> &mut Self;
}

impl CommandExtra for Command {
    fn new_session(&mut self) -> &mut Self {
        // SAFETY: the closure makes one system call and allocates nothing.
        unsafe { self.pre_exec(|| rustix::process::setsid().map(drop).map_err(io::Error::from)) }
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
}
