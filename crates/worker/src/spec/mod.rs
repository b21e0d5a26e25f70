//! From an image's configuration and a request to the OCI runtime spec of one container.
//!
//! The defaults are docker's: its capabilities, its masked and read-only paths, its mounts. The same spec goes to
//! every runtime.

mod exec;
mod user;

use std::path::Path;

use beta9_types::{BindMount, ContainerId, ContainerRequest, MountAccess};
use oci_spec::OciSpecError;
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{
    Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxDeviceCgroupBuilder, LinuxMemoryBuilder,
    LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResourcesBuilder, Mount, MountBuilder, ProcessBuilder,
    RootBuilder, Spec, SpecBuilder, UserBuilder,
};

use crate::error::{Error, ErrorKind, Result};
pub(crate) use exec::{ExecChoices, exec_process};
use user::Account;

/// What runs where an image sets no `PATH`: docker's default.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const CAPABILITIES: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

const MASKED: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What a container will run, before a runtime sees it.
pub(crate) struct Plan {
    pub(crate) spec: Spec,
    pub(crate) args: Vec<String>,
}

/// Settles every choice. `tree` is the image's unpacked root file system, where users and groups are looked up.
pub(crate) fn plan(
    id: &ContainerId,
    request: &ContainerRequest,
    image: &ImageConfiguration,
    tree: &Path,
) -> Result<Plan> {
    let config = image.config().clone().unwrap_or_default();
    let args = command_line(
        &request.command,
        config.entrypoint().as_deref().unwrap_or_default(),
        config.cmd().as_deref().unwrap_or_default(),
    )
    .ok_or_else(|| {
        let text = format!("image {} has no command of its own: give one after the image", request.image);
        Error::new(ErrorKind::Invalid, text)
    })?;
    let account = match (&request.user, config.user().as_deref().filter(|user| !user.is_empty())) {
        (Some(user), _) => user::resolve(user, tree)?,
        (None, Some(user)) => user::resolve(&user.parse()?, tree)?,
        (None, None) => user::resolve(&"0".parse()?, tree)?,
    };
    let hostname = request.hostname.clone().unwrap_or_else(|| id.short().to_owned());
    let env = environment(config.env().as_deref().unwrap_or_default(), &request.env, &hostname, &account)?;
    let mut env = env;
    if request.terminal.is_some() && !env.iter().any(|variable| variable.starts_with("TERM=")) {
        env.push(exec::TERMINAL_TYPE.to_owned());
    }
    let cwd = request.cwd.clone().or(config.working_dir().clone()).filter(|cwd| !cwd.is_empty());
    let cwd = cwd.unwrap_or_else(|| "/".to_owned());
    if !cwd.starts_with('/') {
        let text = format!("working directory {cwd:?} is not absolute: start it with /");
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    let spec = build(id, request, &args, env, &cwd, &account, &hostname)
        .map_err(|e| Error::internal("build the runtime spec", e))?;
    Ok(Plan { spec, args })
}

/// docker's rule: a command replaces the image's command and is appended to the image's entrypoint.
fn command_line(command: &[String], entrypoint: &[String], cmd: &[String]) -> Option<Vec<String>> {
    let tail = if command.is_empty() { cmd } else { command };
    let args: Vec<String> = entrypoint.iter().chain(tail).cloned().collect();
    (!args.is_empty()).then_some(args)
}

/// The image's variables, then the request's over them, then what every container has.
fn environment(
    image: &[String],
    request: &[String],
    hostname: &str,
    account: &Account,
) -> Result<Vec<String>> {
    let mut env =
        vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={hostname}"), format!("HOME={}", account.home)];
    for entry in image.iter().chain(request) {
        set_variable(&mut env, entry.clone())?;
    }
    Ok(env)
}

/// Sets a variable, in the place of an earlier one of its name.
fn set_variable(env: &mut Vec<String>, entry: String) -> Result<()> {
    fn name(entry: &str) -> &str {
        entry.split_once('=').map_or(entry, |(name, _)| name)
    }
    if name(&entry).is_empty() || !entry.contains('=') || entry.contains('\0') {
        let text = format!("environment variable {:?} is not NAME=value", name(&entry));
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    match env.iter_mut().find(|kept| name(kept) == name(&entry)) {
        Some(kept) => *kept = entry,
        None => env.push(entry),
    }
    Ok(())
}

fn build(
    id: &ContainerId,
    request: &ContainerRequest,
    args: &[String],
    env: Vec<String>,
    cwd: &str,
    account: &Account,
    hostname: &str,
) -> std::result::Result<Spec, OciSpecError> {
    let bounding: std::collections::HashSet<Capability> = CAPABILITIES.into_iter().collect();
    // What the kernel leaves to a user who is not root when a program is executed. gVisor takes the sets of the first
    // process as they are, so they must say so themselves.
    let permitted = if account.uid == 0 { bounding.clone() } else { std::collections::HashSet::new() };
    let process = ProcessBuilder::default()
        .terminal(request.terminal.is_some())
        .args(args)
        .env(env)
        .cwd(cwd)
        .user(
            UserBuilder::default()
                .uid(account.uid)
                .gid(account.gid)
                .additional_gids(account.groups.clone())
                .build()?,
        )
        .capabilities(
            LinuxCapabilitiesBuilder::default()
                .bounding(bounding)
                .permitted(permitted.clone())
                .effective(permitted)
                .inheritable(std::collections::HashSet::new())
                .ambient(std::collections::HashSet::new())
                .build()?,
        )
        .rlimits(Vec::new())
        .no_new_privileges(false)
        .build()?;

    let namespace = |kind| LinuxNamespaceBuilder::default().typ(kind).build();
    let mut resources = LinuxResourcesBuilder::default()
        .devices(vec![LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build()?]);
    if let Some(memory) = request.memory {
        // Within i64 by its own rule.
        let limit = memory.get() as i64;
        resources = resources.memory(LinuxMemoryBuilder::default().limit(limit).build()?);
    }
    let linux = LinuxBuilder::default()
        .namespaces(vec![
            namespace(LinuxNamespaceType::Pid)?,
            namespace(LinuxNamespaceType::Network)?,
            namespace(LinuxNamespaceType::Ipc)?,
            namespace(LinuxNamespaceType::Uts)?,
            namespace(LinuxNamespaceType::Mount)?,
            namespace(LinuxNamespaceType::Cgroup)?,
        ])
        .resources(resources.build()?)
        .cgroups_path(beta9_supervisor::cgroup_oci_path(id))
        .masked_paths(MASKED.map(str::to_owned).to_vec())
        .readonly_paths(READ_ONLY.map(str::to_owned).to_vec())
        .build()?;

    let mut mounts = default_mounts()?;
    for mount in &request.mounts {
        mounts.push(bind_mount(mount)?);
    }
    SpecBuilder::default()
        .version("1.0.2")
        .root(RootBuilder::default().path("rootfs").readonly(false).build()?)
        .process(process)
        .hostname(hostname)
        .mounts(mounts)
        .linux(linux)
        .build()
}

fn default_mounts() -> std::result::Result<Vec<Mount>, OciSpecError> {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| {
        MountBuilder::default()
            .destination(destination)
            .typ(kind)
            .source(source)
            .options(options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
            .build()
    };
    Ok(vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"])?,
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"])?,
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        )?,
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"])?,
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"])?,
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"])?,
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"])?,
    ])
}

fn bind_mount(mount: &BindMount) -> std::result::Result<Mount, OciSpecError> {
    let access = match mount.access {
        MountAccess::ReadOnly => "ro",
        MountAccess::ReadWrite => "rw",
    };
    MountBuilder::default()
        .destination(&mount.target)
        .typ("bind")
        .source(&mount.source)
        .options(vec!["rbind".to_owned(), "rprivate".to_owned(), access.to_owned()])
        .build()
}

#[cfg(test)]
mod tests;
