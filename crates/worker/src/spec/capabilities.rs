//! The capabilities that a container may come to have.

use std::collections::HashSet;

use beta9_types::{CapabilityName, ProcessOptions, RuntimeKind};
use oci_spec::runtime::Capability;
use rustix::thread::{CapabilitySet, capability_is_in_bounding_set};

/// docker's default set.
const DEFAULT: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// docker's rule: the default set, less what is dropped, and then what is added. `ALL` is every one that there is to
/// give: in a VM all of its kernel's, else those of the worker.
pub(super) fn bounding(process: &ProcessOptions, runtime: RuntimeKind) -> HashSet<Capability> {
    let all = || {
        let given = CapabilityName::KNOWN.iter().enumerate().filter(|(number, _)| {
            runtime.is_microvm()
                || capability_is_in_bounding_set(CapabilitySet::from_bits_retain(1 << number))
                    .unwrap_or(false)
        });
        given.filter_map(|(_, name)| name.parse().ok())
    };
    let named = |names: &[CapabilityName]| -> Vec<Capability> {
        names.iter().filter_map(|name| name.as_ref().parse().ok()).collect()
    };
    let has_all = |names: &[CapabilityName]| names.iter().any(CapabilityName::is_all);
    let mut set: HashSet<Capability> = match (has_all(&process.cap_add), has_all(&process.cap_drop)) {
        (true, _) => all().collect(),
        (false, true) => HashSet::new(),
        (false, false) => DEFAULT.iter().filter_map(|name| name.parse().ok()).collect(),
    };
    for capability in named(&process.cap_drop) {
        set.remove(&capability);
    }
    set.extend(named(&process.cap_add));
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(add: &[&str], drop: &[&str]) -> HashSet<Capability> {
        let names = |list: &[&str]| list.iter().map(|name| name.parse().unwrap()).collect();
        let process =
            ProcessOptions { cap_add: names(add), cap_drop: names(drop), ..ProcessOptions::default() };
        bounding(&process, RuntimeKind::Qemu)
    }

    #[test]
    fn sets_are_combined_as_docker_combines_them() {
        assert_eq!(set(&[], &[]).len(), 14);
        assert_eq!(set(&[], &["ALL"]), HashSet::new());
        assert_eq!(set(&["NET_ADMIN"], &["ALL"]), [Capability::NetAdmin].into());
        assert_eq!(set(&["ALL"], &[]).len(), 41);
        assert_eq!(set(&["ALL"], &["SYS_ADMIN"]).len(), 40);
        assert!(!set(&[], &["CHOWN"]).contains(&Capability::Chown));
        assert!(set(&["SYS_TIME"], &[]).contains(&Capability::SysTime));
    }
}
