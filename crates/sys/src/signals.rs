//! Signals by the kernel's number, real-time ones included.

use std::io;
use std::mem::MaybeUninit;

use rustix::process::Pid;

/// Highest signal number of Linux.
pub const MAX_SIGNAL: i32 = 64;

/// Sends signal `number` to one process. A number that does not exist is `EINVAL`.
pub fn send(pid: Pid, number: i32) -> io::Result<()> {
    // SAFETY: `kill` takes two numbers and no pointers; a `Pid` is positive, so it names one process.
    match unsafe { libc::kill(pid.as_raw_nonzero().get(), number) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives every signal its default action and unblocks all of them, as a freshly started program expects.
///
/// Only for a process that is about to execute another program: handlers that a library installed are gone.
pub fn reset_all() {
    // The kernel's `struct sigaction` is at most this long; all zeros is SIG_DFL without flags. The C library's own
    // function is not used because it keeps two numbers to itself, and a parent may have ignored those too.
    let default = [0u64; 4];
    for number in 1..=MAX_SIGNAL {
        // SAFETY: the kernel reads one `struct sigaction`, which the array covers, and writes nothing; no handler of
        // ours can run in a signal context by this. SIGKILL and SIGSTOP are refused, and have their default anyway.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                number,
                default.as_ptr(),
                std::ptr::null_mut::<u64>(),
                8usize,
            )
        };
    }
    let mut empty = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the pointer is valid for a write of its type.
    unsafe { libc::sigemptyset(empty.as_mut_ptr()) };
    // SAFETY: the set was initialised above, and no old set is asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, empty.as_ptr(), std::ptr::null_mut()) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_real_time_signal_ends_a_process() {
        use std::os::unix::process::ExitStatusExt;
        let mut child = Command::new("sleep").arg("20").spawn().unwrap();
        send(Pid::from_child(&child), 40).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(40));
        assert_eq!(send(rustix::process::getpid(), 65).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn nothing_stays_ignored_or_blocked() {
        // Rust programs ignore SIGPIPE; this is the whole test process, which nothing here sends one.
        reset_all();
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
        assert_eq!(field("SigBlk:"), "0000000000000000");
        assert_eq!(field("SigIgn:"), "0000000000000000");
    }
}
