//! Which system calls a container may make: docker's default profile, or one in docker's or OCI's JSON.

mod default;
mod profile;

use std::collections::HashSet;

use beta9_types::SeccompChoice;
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompBuilder, LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

use crate::error::{Error, ErrorKind, Result};

/// What a call gets that is not there, so that a C library falls back to the older one.
const ENOSYS: u32 = 38;
/// What a forbidden call gets.
const EPERM: u32 = 1;

/// The filter of a container with these capabilities; `None` is no filter.
pub(super) fn filter(
    choice: &SeccompChoice,
    capabilities: &HashSet<Capability>,
) -> Result<Option<LinuxSeccomp>> {
    match choice {
        SeccompChoice::Unconfined => Ok(None),
        SeccompChoice::Default => default_filter(capabilities)
            .map(Some)
            .map_err(|e| Error::internal("build the default seccomp profile", e)),
        SeccompChoice::Profile(json) => profile::parse(json, capabilities).map(Some).map_err(|e| {
            let text = "the seccomp profile cannot be used: write one as docker's default.json, or as linux.seccomp of OCI";
            Error::caused(ErrorKind::Invalid, text, e)
        }),
    }
}

fn default_filter(capabilities: &HashSet<Capability>) -> std::result::Result<LinuxSeccomp, OciSpecError> {
    let has = |name: &str| capabilities.iter().any(|capability| capability.to_string() == name);
    let mut names: Vec<String> = default::ALLOWED.iter().map(|name| (*name).to_owned()).collect();
    for (capability, more) in default::BY_CAPABILITY {
        if has(capability) {
            names.extend(
                more.iter().filter(|name| !default::ALLOWED.contains(name)).map(|name| (*name).to_owned()),
            );
        }
    }
    names.sort_unstable();
    names.dedup();
    let mut calls = vec![allow(names, Vec::new())?];
    for value in default::PERSONALITIES {
        calls.push(allow(
            vec!["personality".to_owned()],
            vec![compare(0, value, LinuxSeccompOperator::ScmpCmpEq)?],
        )?);
    }
    calls.push(allow(
        vec!["socket".to_owned()],
        vec![compare(0, default::AF_VSOCK, LinuxSeccompOperator::ScmpCmpNe)?],
    )?);
    if !has("SYS_ADMIN") {
        // The mask is the value, and the second value what must be left of the argument under it.
        let flags = LinuxSeccompArgBuilder::default()
            .index(0_usize)
            .value(default::NAMESPACE_FLAGS)
            .value_two(0_u64)
            .op(LinuxSeccompOperator::ScmpCmpMaskedEq)
            .build()?;
        calls.push(allow(vec!["clone".to_owned()], vec![flags])?);
        // Its flags are in memory, where a filter cannot look.
        calls.push(
            LinuxSyscallBuilder::default()
                .names(vec!["clone3".to_owned()])
                .action(LinuxSeccompAction::ScmpActErrno)
                .errno_ret(ENOSYS)
                .build()?,
        );
    }
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(EPERM)
        .architectures(vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32])
        .syscalls(calls)
        .build()
}

fn allow(names: Vec<String>, args: Vec<LinuxSeccompArg>) -> std::result::Result<LinuxSyscall, OciSpecError> {
    let call = LinuxSyscallBuilder::default().names(names).action(LinuxSeccompAction::ScmpActAllow);
    if args.is_empty() { call.build() } else { call.args(args).build() }
}

fn compare(
    index: usize,
    value: u64,
    op: LinuxSeccompOperator,
) -> std::result::Result<LinuxSeccompArg, OciSpecError> {
    LinuxSeccompArgBuilder::default().index(index).value(value).op(op).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(capabilities: &[Capability]) -> Vec<String> {
        let filter =
            filter(&SeccompChoice::Default, &capabilities.iter().copied().collect()).unwrap().unwrap();
        filter.syscalls().clone().unwrap()[0].names().clone()
    }

    #[test]
    fn a_capability_brings_its_calls() {
        let has = |list: &[String], name: &str| list.iter().any(|known| known == name);
        let plain = allowed(&[]);
        assert!(has(&plain, "openat") && !has(&plain, "mount") && !has(&plain, "chroot"));
        assert!(!has(&plain, "keyctl") && !has(&plain, "io_uring_setup") && !has(&plain, "userfaultfd"));
        let admin = allowed(&[Capability::SysAdmin]);
        assert!(has(&admin, "mount") && has(&admin, "clone3"));
        assert!(has(&allowed(&[Capability::SysChroot]), "chroot"));
    }

    #[test]
    fn no_filter_is_no_filter() {
        assert!(filter(&SeccompChoice::Unconfined, &HashSet::new()).unwrap().is_none());
        assert!(filter(&SeccompChoice::Profile("{".to_owned()), &HashSet::new()).is_err());
    }
}
