//! From an image's configuration and a request to the OCI runtime spec of one container.
//!
//! The defaults are docker's: its capabilities, its system calls, its masked and read-only paths, its mounts. The same
//! spec goes to every runtime; what a runtime cannot do is refused by the name that the user typed.

mod capabilities;
mod devices;
mod exec;
mod files;
mod host;
mod init;
mod limits;
mod refusals;
mod seccomp;
mod user;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use beta9_types::{ContainerId, ContainerRequest, RuntimeKind, RuntimeSettings, SignalNumber};
use oci_spec::OciSpecError;
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{
    Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxNamespaceBuilder, LinuxNamespaceType,
    PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, ProcessBuilder, RootBuilder, Spec,
    SpecBuilder, UserBuilder,
};

use crate::error::{Error, ErrorKind, Result};
pub(crate) use exec::{ExecChoices, accounts_here, exec_process};
pub(crate) use files::GeneratedFile;
pub(crate) use host::HostLimits;
use user::Account;
pub(crate) use user::Accounts;

/// What runs where an image sets no `PATH`: docker's default.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

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

/// docker's grace between the stop signal and SIGKILL, in seconds.
const DEFAULT_GRACE: u32 = 10;

/// What a container will run, before a runtime sees it.
pub(crate) struct Plan {
    pub(crate) spec: Spec,
    pub(crate) args: Vec<String>,
    /// Files of the container's own directory that its mounts show.
    pub(crate) files: Vec<GeneratedFile>,
    /// The image's and the request's.
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) stop_signal: SignalNumber,
    pub(crate) stop_timeout: u32,
    /// What was asked for and cannot be had here, and is left out as docker leaves it out.
    pub(crate) warnings: Vec<String>,
}

/// Where a container is to run.
pub(crate) struct Place<'a> {
    pub(crate) id: &'a ContainerId,
    /// The worker's state directory.
    pub(crate) root: &'a Path,
    /// The container's own directory.
    pub(crate) directory: &'a Path,
    /// The image's unpacked root file system, where users and groups are looked up.
    pub(crate) tree: &'a Path,
    pub(crate) runtime: RuntimeKind,
    pub(crate) settings: &'a RuntimeSettings,
    pub(crate) host: &'a HostLimits,
}

/// Settles every choice.
pub(crate) fn plan(
    place: &Place<'_>,
    request: &ContainerRequest,
    image: &ImageConfiguration,
) -> Result<Plan> {
    refusals::check(place.runtime, request)?;
    let config = image.config().clone().unwrap_or_default();
    let args = arguments(request, &config)?;
    let account = match (&request.user, config.user().as_deref().filter(|user| !user.is_empty())) {
        (Some(user), _) => user::resolve(user, &request.options.process.groups, place.tree)?,
        (None, Some(user)) => user::resolve(&user.parse()?, &request.options.process.groups, place.tree)?,
        (None, None) => user::resolve(&"0".parse()?, &request.options.process.groups, place.tree)?,
    };
    let hostname = request.hostname.clone().unwrap_or_else(|| place.id.short().to_owned());
    check_hostname(&hostname)?;
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

    let mut warnings = Vec::new();
    let bounding = capabilities::bounding(&request.options.process, place.runtime);
    let seccomp = seccomp::filter(&request.options.process.seccomp, &bounding)?;
    let files = files::generated(request, &hostname)?;
    let devices = devices::of(&request.options.files.devices, place.runtime)?;
    let resources = limits::resources(request, place, &devices, &mut warnings)?;
    let failed = |e: OciSpecError| Error::internal("build the runtime spec", e);
    let process = process(request, &args, env, &cwd, &account, bounding).map_err(failed)?;
    let mut mounts = files::default_mounts(request).map_err(failed)?;
    mounts.extend(files::mounts(request, &files, place.directory, place.runtime).map_err(failed)?);
    let mut spec = SpecBuilder::default()
        .version("1.0.2")
        .root(
            RootBuilder::default()
                .path("rootfs")
                .readonly(request.options.files.read_only)
                .build()
                .map_err(failed)?,
        )
        .process(process)
        .hostname(hostname)
        .mounts(mounts)
        .linux(linux(request, place.id).map_err(failed)?)
        .build()
        .map_err(failed)?;
    if let Some(linux) = spec.linux_mut() {
        linux.set_seccomp(seccomp);
        linux.set_resources(Some(resources));
        linux.set_devices(
            (!devices.is_empty()).then(|| devices.iter().map(|device| device.node.clone()).collect()),
        );
    }
    if request.options.process.init {
        init::add(&mut spec, place)?;
    }
    let image_signal =
        config.stop_signal().as_deref().filter(|text| !text.is_empty()).map(str::parse).transpose()?;
    let life = &request.options.life;
    Ok(Plan {
        spec,
        args,
        files,
        labels: config.labels().clone().unwrap_or_default().into_iter().chain(life.labels.clone()).collect(),
        stop_signal: life.stop_signal.or(image_signal).unwrap_or(SignalNumber::TERM),
        stop_timeout: life.stop_timeout.unwrap_or(DEFAULT_GRACE),
        warnings,
    })
}

/// An entrypoint of the request takes the image's command away with the image's entrypoint.
fn arguments(request: &ContainerRequest, config: &oci_spec::image::Config) -> Result<Vec<String>> {
    let of_image =
        (config.entrypoint().as_deref().unwrap_or_default(), config.cmd().as_deref().unwrap_or_default());
    let (entrypoint, cmd) = match &request.options.process.entrypoint {
        Some(entrypoint) => (entrypoint.as_slice(), [].as_slice()),
        None => of_image,
    };
    command_line(&request.command, entrypoint, cmd).ok_or_else(|| {
        let text = format!("image {} has no command of its own: give one after the image", request.image);
        Error::new(ErrorKind::Invalid, text)
    })
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
/// What fits into the kernel's field, and into a line of `/etc/hosts` as one word.
fn check_hostname(name: &str) -> Result<()> {
    let is_plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_');
    if name.len() <= 63 && name.bytes().all(is_plain) && name.starts_with(|c: char| c.is_ascii_alphanumeric())
    {
        return Ok(());
    }
    let text = format!(
        "invalid host name {name:?}: begin it with a letter or digit, and use those, dots, hyphens and underscores, at most 63"
    );
    Err(Error::new(ErrorKind::Invalid, text))
}

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

fn process(
    request: &ContainerRequest,
    args: &[String],
    env: Vec<String>,
    cwd: &str,
    account: &Account,
    bounding: HashSet<Capability>,
) -> std::result::Result<Process, OciSpecError> {
    // What the kernel leaves to a user who is not root when a program is executed. gVisor takes the sets of the first
    // process as they are, so they must say so themselves.
    let permitted = if account.uid == 0 { bounding.clone() } else { HashSet::new() };
    ProcessBuilder::default()
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
                .inheritable(HashSet::new())
                .ambient(HashSet::new())
                .build()?,
        )
        .rlimits(rlimits(request)?)
        .no_new_privileges(request.options.process.no_new_privileges)
        .build()
}

/// The last one of a name counts.
fn rlimits(request: &ContainerRequest) -> std::result::Result<Vec<PosixRlimit>, OciSpecError> {
    let kind = |name: &str| match name {
        "cpu" => PosixRlimitType::RlimitCpu,
        "fsize" => PosixRlimitType::RlimitFsize,
        "data" => PosixRlimitType::RlimitData,
        "stack" => PosixRlimitType::RlimitStack,
        "core" => PosixRlimitType::RlimitCore,
        "rss" => PosixRlimitType::RlimitRss,
        "nproc" => PosixRlimitType::RlimitNproc,
        "memlock" => PosixRlimitType::RlimitMemlock,
        "locks" => PosixRlimitType::RlimitLocks,
        "sigpending" => PosixRlimitType::RlimitSigpending,
        "msgqueue" => PosixRlimitType::RlimitMsgqueue,
        "nice" => PosixRlimitType::RlimitNice,
        "rtprio" => PosixRlimitType::RlimitRtprio,
        "rttime" => PosixRlimitType::RlimitRttime,
        _ => PosixRlimitType::RlimitNofile,
    };
    let mut limits: BTreeMap<&str, PosixRlimit> = BTreeMap::new();
    for limit in &request.options.process.ulimits {
        let (name, soft, hard) = limit.parts();
        limits.insert(name, PosixRlimitBuilder::default().typ(kind(name)).soft(soft).hard(hard).build()?);
    }
    Ok(limits.into_values().collect())
}

fn linux(
    request: &ContainerRequest,
    id: &ContainerId,
) -> std::result::Result<oci_spec::runtime::Linux, OciSpecError> {
    let namespace = |kind| LinuxNamespaceBuilder::default().typ(kind).build();
    let unmasked = request.options.process.unmasked;
    let paths = |paths: &[&str]| -> Vec<String> {
        if unmasked { Vec::new() } else { paths.iter().map(|path| (*path).to_owned()).collect() }
    };
    let linux = LinuxBuilder::default()
        .namespaces(vec![
            namespace(LinuxNamespaceType::Pid)?,
            namespace(LinuxNamespaceType::Network)?,
            namespace(LinuxNamespaceType::Ipc)?,
            namespace(LinuxNamespaceType::Uts)?,
            namespace(LinuxNamespaceType::Mount)?,
            namespace(LinuxNamespaceType::Cgroup)?,
        ])
        .cgroups_path(beta9_supervisor::cgroup_oci_path(id))
        .masked_paths(paths(&MASKED))
        .readonly_paths(paths(&READ_ONLY));
    let sysctls: std::collections::HashMap<String, String> = request
        .options
        .files
        .sysctls
        .iter()
        .map(|sysctl| sysctl.parts())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    if sysctls.is_empty() { linux.build() } else { linux.sysctl(sysctls).build() }
}

#[cfg(test)]
mod tests;
