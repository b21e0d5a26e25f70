//! The one place in a process that waits for children.
//!
//! A supervisor and the guest's PID 1 inherit processes they did not start, so they must wait for *any* child;
//! a second waiter (tokio's, or `Child::wait`) would steal exit codes from the first. So every child of such
//! a process is started by [`Reaper::spawn`], and its exit arrives at the callback given there.
//!
//! ```text
//! spawn ──▶ registered ──exit──▶ callback runs once, on the reaper's thread
//! adopt(pid of an orphan) ──▶ registered, or its status is already kept ──▶ callback
//! ```
//!
//! The reaper waits with `WNOWAIT` outside its lock and collects inside it, and `spawn` holds that lock until the
//! child is registered: no exit can be collected before its callback exists.

use std::collections::HashMap;
use std::io;
use std::process::{ChildStderr, ChildStdin, ChildStdout, Command};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, WaitId, WaitIdOptions, WaitOptions, WaitStatus};

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChildExit {
    /// It returned this code.
    Code(u8),
    /// This signal ended it.
    Signal(u8),
}

impl ChildExit {
    fn from_status(status: WaitStatus) -> Option<Self> {
        // The kernel gives 8 bits of code and 7 bits of signal; neither conversion can fail.
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => u8::try_from(code).ok().map(Self::Code),
            (_, Some(signal)) => u8::try_from(signal).ok().map(Self::Signal),
            _ => None,
        }
    }

    /// Whether it returned 0.
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }
}

/// A child that was started: its pid and the pipes that were asked for.
#[derive(Debug)]
pub struct Spawned {
    /// Its process id; it stays valid until the exit callback runs.
    pub pid: Pid,
    /// Its stdin, if piped.
    pub stdin: Option<ChildStdin>,
    /// Its stdout, if piped.
    pub stdout: Option<ChildStdout>,
    /// Its stderr, if piped.
    pub stderr: Option<ChildStderr>,
}

type OnExit = Box<dyn FnOnce(ChildExit) + Send>;

#[derive(Default)]
struct Table {
    waiting: HashMap<Pid, OnExit>,
    /// Exits of children nobody has asked for yet: orphans whose pid becomes known later.
    unclaimed: Vec<(Pid, ChildExit)>,
}

struct Shared {
    table: Mutex<Table>,
    may_have_children: Condvar,
}

/// Owns every child of this process. Cheap to clone.
#[derive(Clone)]
pub struct Reaper {
    shared: Arc<Shared>,
}

impl Reaper {
    /// Exits of unknown children that are remembered: enough for an init that dies before it is adopted.
    const MAX_UNCLAIMED: usize = 256;

    /// Starts the reaper's thread. One per process.
    pub fn start() -> io::Result<Self> {
        let shared = Arc::new(Shared { table: Mutex::default(), may_have_children: Condvar::new() });
        let reaper = Self { shared: Arc::clone(&shared) };
        std::thread::Builder::new().name("reaper".to_owned()).spawn(move || Self::run(&shared))?;
        Ok(reaper)
    }

    /// Starts a child; `on_exit` is called once when it has ended.
    ///
    /// What comes back has its pipes and no way to wait: the status is the reaper's.
    pub fn spawn(
        &self,
        command: &mut Command,
        on_exit: impl FnOnce(ChildExit) + Send + 'static,
    ) -> io::Result<Spawned> {
        let mut table = self.lock();
        let mut child = command.spawn()?;
        let pid = Pid::from_child(&child);
        // An older child of the same number is long gone if the kernel could hand the number out again.
        table.unclaimed.retain(|(unclaimed, _)| *unclaimed != pid);
        table.waiting.insert(pid, Box::new(on_exit));
        self.shared.may_have_children.notify_all();
        Ok(Spawned {
            pid,
            stdin: child.stdin.take(),
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
        })
    }

    /// Asks for the exit of a child that this process inherited as a subreaper.
    pub fn adopt(&self, pid: Pid, on_exit: impl FnOnce(ChildExit) + Send + 'static) {
        let mut table = self.lock();
        if let Some(index) = table.unclaimed.iter().position(|(unclaimed, _)| *unclaimed == pid) {
            let (_, exit) = table.unclaimed.swap_remove(index);
            drop(table);
            on_exit(exit);
        } else {
            table.waiting.insert(pid, Box::new(on_exit));
            self.shared.may_have_children.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // A panic in a callback cannot leave the table half-changed: callbacks run outside the lock.
        self.shared.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(shared: &Shared) {
        loop {
            let seen = rustix::process::waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
            let mut table = shared.table.lock().unwrap_or_else(PoisonError::into_inner);
            match seen {
                Ok(_) => {
                    for (on_exit, exit) in Self::collect(&mut table) {
                        drop(table);
                        on_exit(exit);
                        table = shared.table.lock().unwrap_or_else(PoisonError::into_inner);
                    }
                }
                // No children at all. One could have been spawned before the lock was taken, hence the timeout.
                Err(rustix::io::Errno::CHILD) => {
                    let _ = shared.may_have_children.wait_timeout(table, Duration::from_millis(200));
                }
                Err(_) => {}
            }
        }
    }

    /// Collects every child that has ended; returns the callbacks to run.
    fn collect(table: &mut Table) -> Vec<(OnExit, ChildExit)> {
        let mut ended = Vec::new();
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let Some(exit) = ChildExit::from_status(status) else { continue };
            if let Some(on_exit) = table.waiting.remove(&pid) {
                ended.push((on_exit, exit));
            } else {
                if table.unclaimed.len() == Self::MAX_UNCLAIMED {
                    table.unclaimed.remove(0);
                }
                table.unclaimed.push((pid, exit));
            }
        }
        ended
    }
}
