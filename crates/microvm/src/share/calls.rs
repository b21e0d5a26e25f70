//! The system calls that a file server makes once it serves: a list, and nothing else.
//!
//! There are two filters. The first is on the whole process from the moment that it gives up its rights, and refuses the
//! calls that would lead past the exports. The second is on each thread before it handles the first byte of a guest's:
//! no process, no thread, no socket, no mount, no name outside the exports can be had from then on.

use beta9_runtime::{Error, ErrorKind, Result};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use crate::guest_spec::call_number;

/// Calls that fail with EPERM whatever capabilities there are: open_by_handle_at(2) reaches every file of a file system
/// that one export is on.
const FORBIDDEN: [&str; 1] = ["open_by_handle_at"];

/// What a thread that serves calls: files and their attributes, in the name of the guest's users; memory; its
/// connection; and its own end.
const ALLOWED: [&str; 84] = [
    // Data.
    "read",
    "write",
    "readv",
    "writev",
    "pread64",
    "pwrite64",
    "preadv",
    "pwritev",
    "preadv2",
    "pwritev2",
    "lseek",
    "fsync",
    "fdatasync",
    "fallocate",
    "ftruncate",
    "copy_file_range",
    "memfd_create",
    // Files by descriptor, and by a name in a directory.
    "openat",
    "close",
    "dup",
    "fcntl",
    "fstat",
    "newfstatat",
    "statx",
    "fstatfs",
    "statfs",
    "getdents64",
    "mkdirat",
    "mknodat",
    "unlinkat",
    "linkat",
    "symlinkat",
    "readlinkat",
    "renameat2",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "fchownat",
    "utimensat",
    "faccessat",
    "faccessat2",
    "setxattr",
    "getxattr",
    "listxattr",
    "removexattr",
    "umask",
    // In whose name.
    "setresuid",
    "setresgid",
    "getuid",
    "geteuid",
    "getgid",
    "getegid",
    "capget",
    "capset",
    // The guest's connection.
    "recvfrom",
    "recvmsg",
    "sendto",
    "sendmsg",
    "shutdown",
    "poll",
    "ppoll",
    // Memory, threads among themselves, time, the end.
    "mmap",
    "munmap",
    "mremap",
    "mprotect",
    "madvise",
    "brk",
    "futex",
    "sched_yield",
    "clock_gettime",
    "clock_nanosleep",
    "nanosleep",
    "getrandom",
    "getpid",
    "gettid",
    "tgkill",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sigaltstack",
    "restart_syscall",
    "set_robust_list",
    "exit",
    "exit_group",
];

/// Refuses what would lead past the exports. Only this thread is filtered; those that it starts later inherit it.
pub(super) fn forbid() -> Result<()> {
    apply(&FORBIDDEN, SeccompAction::Allow, refuse())
}

/// Refuses everything to this thread that serving does not need.
pub(super) fn allow_serving() -> Result<()> {
    apply(&ALLOWED, refuse(), SeccompAction::Allow)
}

fn refuse() -> SeccompAction {
    SeccompAction::Errno(rustix::io::Errno::PERM.raw_os_error().unsigned_abs())
}

fn apply(calls: &[&str], others: SeccompAction, these: SeccompAction) -> Result<()> {
    let failed = |e: seccompiler::Error| Error::caused(ErrorKind::Failed, "filter system calls", e);
    let rules = calls.iter().filter_map(|name| Some((call_number(name)?, Vec::new()))).collect();
    let filter =
        SeccompFilter::new(rules, others, these, TargetArch::x86_64).map_err(|e| failed(e.into()))?;
    let program = BpfProgram::try_from(filter).map_err(|e| failed(e.into()))?;
    seccompiler::apply_filter(&program).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_one_of_the_kernels() {
        for name in ALLOWED.iter().chain(&FORBIDDEN) {
            assert!(call_number(name).is_some(), "{name}");
        }
    }

    #[test]
    fn files_cannot_be_opened_by_handle() {
        // Programs inherit the filter of the thread that starts them; perl is in every Debian.
        let errno = || {
            let script =
                format!("syscall({}, -1, 0, 0); print $! + 0", call_number("open_by_handle_at").unwrap());
            let mut perl = std::process::Command::new("perl");
            let mut child = perl.args(["-e", &script]).stdout(std::process::Stdio::piped()).spawn().unwrap();
            let mut said = String::new();
            std::io::Read::read_to_string(&mut child.stdout.take().unwrap(), &mut said).unwrap();
            // The reaper of another test may have collected it.
            let _ = child.wait();
            said.parse::<i32>().unwrap()
        };
        let refused = rustix::io::Errno::PERM.raw_os_error();
        assert_ne!(errno(), refused, "without the filter only the arguments are wrong");
        let filtered = std::thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            forbid().unwrap();
            errno()
        });
        assert_eq!(filtered.join().unwrap(), refused);
    }

    #[test]
    fn a_thread_that_serves_starts_nothing_and_connects_nowhere() {
        let refused = std::thread::spawn(|| {
            rustix::thread::set_no_new_privs(true).unwrap();
            allow_serving().unwrap();
            let refused = |error: std::io::Error| error.kind() == std::io::ErrorKind::PermissionDenied;
            let program = std::process::Command::new("/bin/true").spawn().err();
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").err();
            let by_path = rustix::fs::unlink("/nowhere").map_err(std::io::Error::from).err();
            // The library's own attribute call goes by a name in a directory, which serving needs.
            let file = std::fs::read("/dev/null").is_ok();
            (program.is_some_and(refused), socket.is_some_and(refused), by_path.is_some(), file)
        });
        assert_eq!(refused.join().unwrap(), (true, true, true, true));
    }
}
