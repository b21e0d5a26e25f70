//! The process: arguments, identity, rights, limits.

use beta9_runtime::Result;
use beta9_wire::{Capabilities, Identity, Process, Rlimit};
use oci_spec::runtime::{Capability, LinuxCapabilities, PosixRlimit, PosixRlimitType, Process as OciProcess};

use super::{Stdin, absolute, invalid};

/// Translates a process. Whether it has a terminal depends on its streams, which are not in the spec.
pub(crate) fn translate(process: &OciProcess, stdin: Stdin) -> Result<Process> {
    let args = process.args().clone().unwrap_or_default();
    let env = process.env().clone().unwrap_or_default();
    if args.first().is_none_or(String::is_empty) {
        return Err(invalid("the spec has no program to run (process.args)"));
    }
    if let Some(bad) = args.iter().chain(&env).find(|text| text.contains('\0')) {
        return Err(invalid(&format!("an argument or variable contains a NUL: {bad:?}")));
    }
    if let Some(bad) = env.iter().find(|variable| variable.find('=').is_none_or(|at| at == 0)) {
        return Err(invalid(&format!("variable {bad:?} is not NAME=value")));
    }
    let user = process.user();
    Ok(Process {
        args,
        env,
        cwd: absolute(process.cwd())?,
        identity: Identity {
            uid: user.uid(),
            gid: user.gid(),
            groups: user.additional_gids().clone().unwrap_or_default(),
            umask: user.umask(),
        },
        capabilities: process.capabilities().as_ref().map_or(NO_CAPABILITIES, capabilities),
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        rlimits: process.rlimits().iter().flatten().map(rlimit).collect(),
        stdin: stdin == Stdin::Open,
        terminal: None,
        seccomp: Vec::new(),
        init: false,
    })
}

const NO_CAPABILITIES: Capabilities =
    Capabilities { bounding: 0, effective: 0, inheritable: 0, permitted: 0, ambient: 0 };

fn capabilities(sets: &LinuxCapabilities) -> Capabilities {
    let mask = |set: &Option<std::collections::HashSet<Capability>>| {
        set.iter().flatten().fold(0, |mask, capability| mask | 1 << number(*capability))
    };
    Capabilities {
        bounding: mask(sets.bounding()),
        effective: mask(sets.effective()),
        inheritable: mask(sets.inheritable()),
        permitted: mask(sets.permitted()),
        ambient: mask(sets.ambient()),
    }
}

/// The kernel's number (`capability.h`).
fn number(capability: Capability) -> u32 {
    match capability {
        Capability::Chown => 0,
        Capability::DacOverride => 1,
        Capability::DacReadSearch => 2,
        Capability::Fowner => 3,
        Capability::Fsetid => 4,
        Capability::Kill => 5,
        Capability::Setgid => 6,
        Capability::Setuid => 7,
        Capability::Setpcap => 8,
        Capability::LinuxImmutable => 9,
        Capability::NetBindService => 10,
        Capability::NetBroadcast => 11,
        Capability::NetAdmin => 12,
        Capability::NetRaw => 13,
        Capability::IpcLock => 14,
        Capability::IpcOwner => 15,
        Capability::SysModule => 16,
        Capability::SysRawio => 17,
        Capability::SysChroot => 18,
        Capability::SysPtrace => 19,
        Capability::SysPacct => 20,
        Capability::SysAdmin => 21,
        Capability::SysBoot => 22,
        Capability::SysNice => 23,
        Capability::SysResource => 24,
        Capability::SysTime => 25,
        Capability::SysTtyConfig => 26,
        Capability::Mknod => 27,
        Capability::Lease => 28,
        Capability::AuditWrite => 29,
        Capability::AuditControl => 30,
        Capability::Setfcap => 31,
        Capability::MacOverride => 32,
        Capability::MacAdmin => 33,
        Capability::Syslog => 34,
        Capability::WakeAlarm => 35,
        Capability::BlockSuspend => 36,
        Capability::AuditRead => 37,
        Capability::Perfmon => 38,
        Capability::Bpf => 39,
        Capability::CheckpointRestore => 40,
    }
}

fn rlimit(limit: &PosixRlimit) -> Rlimit {
    // Numbers of the generic ABI (`asm-generic/resource.h`), which x86 uses.
    let resource = match limit.typ() {
        PosixRlimitType::RlimitCpu => 0,
        PosixRlimitType::RlimitFsize => 1,
        PosixRlimitType::RlimitData => 2,
        PosixRlimitType::RlimitStack => 3,
        PosixRlimitType::RlimitCore => 4,
        PosixRlimitType::RlimitRss => 5,
        PosixRlimitType::RlimitNproc => 6,
        PosixRlimitType::RlimitNofile => 7,
        PosixRlimitType::RlimitMemlock => 8,
        PosixRlimitType::RlimitAs => 9,
        PosixRlimitType::RlimitLocks => 10,
        PosixRlimitType::RlimitSigpending => 11,
        PosixRlimitType::RlimitMsgqueue => 12,
        PosixRlimitType::RlimitNice => 13,
        PosixRlimitType::RlimitRtprio => 14,
        PosixRlimitType::RlimitRttime => 15,
    };
    Rlimit { resource, soft: limit.soft(), hard: limit.hard() }
}
