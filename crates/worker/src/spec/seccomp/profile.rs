//! Profiles from files. docker's form has conditions that are settled here; without them it is OCI's.

use std::collections::HashSet;

use oci_spec::runtime::{
    Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompBuilder, LinuxSyscall,
    LinuxSyscallBuilder,
};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: LinuxSeccompAction,
    #[serde(default)]
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Vec<Arch>,
    #[serde(default)]
    arch_map: Option<Vec<ArchMap>>,
    #[serde(default)]
    syscalls: Option<Vec<Rule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: Arch,
    #[serde(default)]
    sub_architectures: Option<Vec<Arch>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    names: Vec<String>,
    /// docker's older form.
    #[serde(default)]
    name: Option<String>,
    action: LinuxSeccompAction,
    #[serde(default)]
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<LinuxSeccompArg>>,
    #[serde(default)]
    includes: Option<Conditions>,
    #[serde(default)]
    excludes: Option<Conditions>,
}

/// When a rule applies.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Conditions {
    caps: Vec<String>,
    arches: Vec<String>,
    min_kernel: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ProfileError {
    #[error("it is not a profile in JSON")]
    Json(#[from] serde_json::Error),
    #[error("action {0} is not supported in any runtime here")]
    Action(LinuxSeccompAction),
    #[error("a rule names no system call")]
    NoName,
    #[error("a condition is about argument {0}, and there are 0 to 5")]
    Argument(usize),
    #[error("it cannot be put into the runtime spec")]
    Build(#[from] oci_spec::OciSpecError),
}

/// Reads a profile and settles its conditions for a container with these capabilities on this machine.
pub(super) fn parse(json: &str, capabilities: &HashSet<Capability>) -> Result<LinuxSeccomp, ProfileError> {
    let profile: Profile = serde_json::from_str(json)?;
    let supported = |action: LinuxSeccompAction| match action {
        LinuxSeccompAction::ScmpActNotify => Err(ProfileError::Action(action)),
        action => Ok(action),
    };
    let mut calls = Vec::new();
    for rule in profile.syscalls.unwrap_or_default() {
        let applies = rule.includes.as_ref().is_none_or(|conditions| conditions.hold(capabilities))
            && !rule.excludes.as_ref().is_some_and(|conditions| conditions.hold_any(capabilities));
        if applies {
            calls.push(call(rule, supported)?);
        }
    }
    let architectures = match profile.arch_map {
        Some(map) => map
            .into_iter()
            .filter(|map| map.architecture == Arch::ScmpArchX86_64)
            .flat_map(|map| {
                std::iter::once(map.architecture).chain(map.sub_architectures.unwrap_or_default())
            })
            .collect(),
        None => profile.architectures,
    };
    let filter = LinuxSeccompBuilder::default()
        .default_action(supported(profile.default_action)?)
        .architectures(architectures)
        .syscalls(calls);
    Ok(match profile.default_errno_ret {
        Some(errno) => filter.default_errno_ret(errno).build()?,
        None => filter.build()?,
    })
}

fn call(
    rule: Rule,
    supported: impl Fn(LinuxSeccompAction) -> Result<LinuxSeccompAction, ProfileError>,
) -> Result<LinuxSyscall, ProfileError> {
    let names: Vec<String> = rule.names.into_iter().chain(rule.name).collect();
    if names.is_empty() {
        return Err(ProfileError::NoName);
    }
    let args = rule.args.unwrap_or_default();
    if let Some(bad) = args.iter().find(|arg| arg.index() > 5) {
        return Err(ProfileError::Argument(bad.index()));
    }
    let mut call = LinuxSyscallBuilder::default().names(names).action(supported(rule.action)?);
    if let Some(errno) = rule.errno_ret {
        call = call.errno_ret(errno);
    }
    if !args.is_empty() {
        call = call.args(args);
    }
    Ok(call.build()?)
}

impl Conditions {
    /// Whether all of them are met.
    fn hold(&self, capabilities: &HashSet<Capability>) -> bool {
        self.caps.iter().all(|name| has(capabilities, name))
            && (self.arches.is_empty() || self.arches.iter().any(|arch| is_ours(arch)))
            && self.min_kernel.as_deref().is_none_or(kernel_is_at_least)
    }

    /// Whether one of them is met.
    fn hold_any(&self, capabilities: &HashSet<Capability>) -> bool {
        self.caps.iter().any(|name| has(capabilities, name))
            || self.arches.iter().any(|arch| is_ours(arch))
            || self.min_kernel.as_deref().is_some_and(kernel_is_at_least)
    }
}

fn has(capabilities: &HashSet<Capability>, name: &str) -> bool {
    let name = name.strip_prefix("CAP_").unwrap_or(name);
    capabilities.iter().any(|capability| capability.to_string() == name)
}

fn is_ours(arch: &str) -> bool {
    matches!(arch, "amd64" | "x32" | "x86" | "x86_64")
}

fn kernel_is_at_least(version: &str) -> bool {
    let numbers = |text: &str| -> (u32, u32) {
        let mut parts =
            text.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or_default());
        (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
    };
    numbers(&rustix::system::uname().release().to_string_lossy()) >= numbers(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_settled() {
        let json = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,
            "archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]},
                       {"architecture":"SCMP_ARCH_AARCH64"}],
            "syscalls":[
                {"names":["read","write"],"action":"SCMP_ACT_ALLOW"},
                {"name":"chroot","action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_CHROOT"]}},
                {"names":["mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
                {"names":["clone3"],"action":"SCMP_ACT_ERRNO","errnoRet":38,"excludes":{"caps":["CAP_SYS_ADMIN"]}},
                {"names":["ptrace"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"4.8"}},
                {"names":["breakpoint"],"action":"SCMP_ACT_ALLOW","includes":{"arches":["arm"]}}]}"#;
        let filter = parse(json, &[Capability::SysChroot].into()).unwrap();
        let names: Vec<_> =
            filter.syscalls().clone().unwrap().iter().flat_map(|call| call.names().clone()).collect();
        assert_eq!(names, ["read", "write", "chroot", "clone3", "ptrace"]);
        assert_eq!(*filter.architectures(), Some(vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86]));
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "",
            "[]",
            r#"{"defaultAction":"SCMP_ACT_MAYBE"}"#,
            r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"action":"SCMP_ACT_ALLOW"}]}"#,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["x"],"action":"SCMP_ACT_ERRNO",
                "args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
        ] {
            assert!(parse(bad, &HashSet::new()).is_err(), "{bad} was accepted");
        }
    }
}
