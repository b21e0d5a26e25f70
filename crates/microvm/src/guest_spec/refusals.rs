//! What a microVM's guest does not do.

use beta9_runtime::Result;
use oci_spec::runtime::{Hooks, Linux, LinuxNamespaceType, LinuxResources, Process, Spec};

use super::unsupported;

/// Refuses a spec that asks for something that would be missing in the guest, by its name in the spec.
pub(crate) fn refuse_unsupported(spec: &Spec) -> Result<()> {
    let mut refusals = Refusals(None);
    refusals.check("domainname", spec.domainname().is_some());
    refusals.check("hooks", spec.hooks().as_ref().is_some_and(has_hooks));
    refusals.check("uidMappings on the root", spec.uid_mappings().as_ref().is_some_and(|m| !m.is_empty()));
    match spec.process() {
        Some(process) => refuse_process(process, &mut refusals),
        None => refusals.check("a spec without process", true),
    }
    if let Some(linux) = spec.linux() {
        refuse_linux(linux, &mut refusals);
    }
    match refusals.0 {
        Some(name) => Err(unsupported(&name)),
        None => Ok(()),
    }
}

/// The same for another process of a container.
pub(crate) fn refuse_unsupported_process(process: &Process) -> Result<()> {
    let mut refusals = Refusals(None);
    refuse_process(process, &mut refusals);
    match refusals.0 {
        Some(name) => Err(unsupported(&name)),
        None => Ok(()),
    }
}

/// Keeps the first.
struct Refusals(Option<String>);

impl Refusals {
    fn check(&mut self, name: &str, asked_for: bool) {
        if asked_for && self.0.is_none() {
            self.0 = Some(name.to_owned());
        }
    }
}

fn has_hooks(hooks: &Hooks) -> bool {
    [
        hooks.prestart(),
        hooks.create_runtime(),
        hooks.create_container(),
        hooks.start_container(),
        hooks.poststart(),
        hooks.poststop(),
    ]
    .into_iter()
    .any(|hooks| hooks.as_ref().is_some_and(|hooks| !hooks.is_empty()))
}

fn refuse_process(process: &Process, refusals: &mut Refusals) {
    refusals.check("process.apparmorProfile", process.apparmor_profile().is_some());
    refusals.check("process.selinuxLabel", process.selinux_label().is_some());
    refusals.check("process.oomScoreAdj", process.oom_score_adj().is_some_and(|adjustment| adjustment != 0));
    refusals.check("process.scheduler", process.scheduler().is_some());
    refusals.check("process.ioPriority", process.io_priority().is_some());
    refusals.check("process.execCPUAffinity", process.exec_cpu_affinity().is_some());
}

fn refuse_linux(linux: &Linux, refusals: &mut Refusals) {
    refusals.check("linux.uidMappings", linux.uid_mappings().as_ref().is_some_and(|m| !m.is_empty()));
    refusals.check("linux.gidMappings", linux.gid_mappings().as_ref().is_some_and(|m| !m.is_empty()));
    refusals.check("linux.mountLabel", linux.mount_label().as_ref().is_some_and(|label| !label.is_empty()));
    refusals.check("linux.intelRdt", linux.intel_rdt().is_some());
    refusals.check("linux.memoryPolicy", linux.memory_policy().is_some());
    refusals.check("linux.personality", linux.personality().is_some());
    refusals.check("linux.timeOffsets", linux.time_offsets().as_ref().is_some_and(|t| !t.is_empty()));
    refusals.check("linux.netDevices", linux.net_devices().as_ref().is_some_and(|d| !d.is_empty()));
    let propagation = linux.rootfs_propagation().as_deref().unwrap_or("private");
    refusals.check("shared linux.rootfsPropagation", propagation.contains("shared"));
    for namespace in linux.namespaces().iter().flatten() {
        let name = namespace.typ().to_string();
        match namespace.typ() {
            LinuxNamespaceType::User | LinuxNamespaceType::Time => {
                refusals.check(&format!("a {name} namespace"), true);
            }
            LinuxNamespaceType::Network => {}
            // The guest has a kernel of its own, which cannot enter anything of the host's.
            _ => refusals.check(&format!("joining a {name} namespace"), namespace.path().is_some()),
        }
    }
    if let Some(resources) = linux.resources() {
        refuse_resources(resources, refusals);
    }
}

fn refuse_resources(resources: &LinuxResources, refusals: &mut Refusals) {
    if let Some(memory) = resources.memory() {
        refusals.check("memory.swappiness", memory.swappiness().is_some());
        refusals.check("memory.disableOOMKiller", memory.disable_oom_killer().unwrap_or(false));
    }
    if let Some(cpu) = resources.cpu() {
        refusals.check("cpu.realtimeRuntime", cpu.realtime_runtime().is_some());
        refusals.check("cpu.idle", cpu.idle().is_some_and(|idle| idle != 0));
        refusals.check("cpu.burst", cpu.burst().is_some_and(|burst| burst != 0));
    }
    refusals.check(
        "resources.hugepageLimits",
        resources.hugepage_limits().as_ref().is_some_and(|limits| !limits.is_empty()),
    );
    refusals.check("resources.network", resources.network().is_some());
    refusals.check("resources.rdma", resources.rdma().as_ref().is_some_and(|rdma| !rdma.is_empty()));
    refusals.check("resources.unified", resources.unified().as_ref().is_some_and(|u| !u.is_empty()));
}
