//! System calls that no program of a VM makes.

use beta9_runtime::{Error, ErrorKind, Result};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use crate::guest_spec::system_call_number;

/// They mount, trace, load code into the kernel, leave namespaces or reach past file permissions; or they are large and
/// young parts of the kernel. QEMU's own filter comes on top; `vhost-device-vsock` has no other.
const FORBIDDEN: [&str; 36] = [
    "acct",
    "add_key",
    "bpf",
    "chroot",
    "delete_module",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "mount",
    "mount_setattr",
    "move_mount",
    "name_to_handle_at",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pivot_root",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "reboot",
    "request_key",
    "setns",
    "swapon",
    "umount2",
    "unshare",
    "userfaultfd",
];

/// Makes them fail with EPERM, in this thread and what it executes.
pub(super) fn forbid() -> Result<()> {
    let failed = |e: seccompiler::Error| Error::caused(ErrorKind::Failed, "filter system calls", e);
    let rules = FORBIDDEN.iter().filter_map(|name| system_call_number(name)).map(|n| (n, Vec::new()));
    let refuse = SeccompAction::Errno(rustix::io::Errno::PERM.raw_os_error().unsigned_abs());
    let filter = SeccompFilter::new(rules.collect(), SeccompAction::Allow, refuse, TargetArch::x86_64)
        .map_err(|e| failed(e.into()))?;
    let program = BpfProgram::try_from(filter).map_err(|e| failed(e.into()))?;
    seccompiler::apply_filter(&program).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_has_a_number() {
        for name in FORBIDDEN {
            assert!(system_call_number(name).is_some(), "{name}");
        }
    }
}
