//! What a VMM is kept from.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use beta9_types::RuntimeKind;
use rustix::process::Pid;

use super::at;
use super::vmm::vmm;
use crate::processes;
use crate::site::JAIL;
use crate::{Site, World};

/// Looked at from inside: through the VMM's own root, credentials, namespaces and cgroup.
pub(super) fn sees_nothing(runtime: RuntimeKind) -> Result<()> {
    let is_jailed = runtime == RuntimeKind::Qemu || std::env::var_os(JAIL).is_none_or(|jail| jail != "off");
    if !is_jailed {
        println!("skipped: {runtime} is told to run without a jail");
        return Ok(());
    }
    at(Site::prepare()?, |site| {
        let world = World::new(site, runtime, "confined");
        let container = world.detach_ready(&["-m", "128m"], "echo ready; sleep 1000")?;
        let process = vmm(runtime, &container.id)?.context("there is no VMM")?;
        let mut users = BTreeSet::from([looks_at(runtime, process, &container.id)?]);
        if runtime == RuntimeKind::Qemu {
            let of_vsock = |(_, line): &(Pid, String)| line.contains("vhost-device-vsock");
            let all = processes::of_container(&container.id)?;
            let (device, _) = all.into_iter().find(of_vsock).context("there is no vsock device")?;
            users.insert(looks_at(runtime, device, &container.id)?);
        }
        ensure!(users.len() == 1, "one VM has several users: {users:?}");
        let other = world.detach_ready(&[], "echo ready; sleep 1000")?;
        let process = vmm(runtime, &other.id)?.context("there is no VMM")?;
        ensure!(users.insert(looks_at(runtime, process, &other.id)?), "two VMs share a user");
        Ok(())
    })
}

/// Checks one process; returns its user.
fn looks_at(runtime: RuntimeKind, process: Pid, id: &str) -> Result<u32> {
    let of = |name: &str| format!("/proc/{process}/{name}");
    let status = fs::read_to_string(of("status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::trim).map(str::to_owned).with_context(|| format!("no {name} in\n{status}"))
    };
    let users: BTreeSet<u32> = field("Uid:")?.split_whitespace().flat_map(str::parse).collect();
    let groups: BTreeSet<u32> = field("Gid:")?.split_whitespace().flat_map(str::parse).collect();
    let user = *users.first().context("no user")?;
    ensure!(users.len() == 1 && groups == users && user != 0, "wrong users or groups in\n{status}");
    ensure!(field("Groups:")?.is_empty(), "it is in groups\n{status}");
    for set in ["CapPrm:", "CapEff:", "CapInh:", "CapAmb:"] {
        ensure!(field(set)?.bytes().all(|digit| digit == b'0'), "it has capabilities\n{status}");
    }
    if runtime == RuntimeKind::Qemu {
        ensure!(field("NoNewPrivs:")? == "1" && field("Seccomp:")? == "2", "it has no filter\n{status}");
        ensure!(field("CapBnd:")?.bytes().all(|digit| digit == b'0'), "it could get capabilities\n{status}");
    }

    for kind in ["mnt", "net", "ipc"] {
        // Firecracker's jailer leaves the IPC namespace to who starts it, which gives it one.
        ensure!(
            fs::read_link(of(&format!("ns/{kind}")))? != fs::read_link(format!("/proc/self/ns/{kind}"))?,
            "it shares this {kind} namespace"
        );
    }
    if runtime == RuntimeKind::Firecracker {
        ensure!(
            fs::read_link(of("ns/pid"))? != fs::read_link("/proc/self/ns/pid")?,
            "it shares this PID namespace"
        );
    }

    let root = Path::new(&of("root")).to_owned();
    for name in ["etc/passwd", "etc/shadow", "home", "var", "proc/1", "proc/self", "sys/kernel", "tmp"] {
        ensure!(fs::symlink_metadata(root.join(name)).is_err(), "it sees /{name}");
    }
    let devices: BTreeSet<_> = names(&root.join("dev"))?.into_iter().collect();
    let allowed = ["null", "urandom", "kvm", "net", "userfaultfd"].map(str::to_owned);
    ensure!(devices.is_subset(&BTreeSet::from(allowed)), "it sees the devices {devices:?}");

    // A directory that is open is a way out of any root.
    for entry in fs::read_dir(of("fd"))? {
        let entry = entry?;
        // One that was closed meanwhile.
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let text = target.to_string_lossy().into_owned();
        let is_own = ["socket:", "pipe:", "anon_inode:", "/memfd:"].iter().any(|kind| text.starts_with(kind));
        let is_directory = fs::metadata(entry.path()).is_ok_and(|file| file.is_dir());
        ensure!(is_own || !is_directory, "it has the directory {text} open");
        ensure!(!text.starts_with("/proc") && !text.starts_with("/sys"), "it has {text} open");
    }
    let mounts = fs::read_to_string(of("mountinfo"))?;
    let writable = mounts.lines().filter(|line| {
        let options = line.split(' ').nth(5).unwrap_or_default();
        options.split(',').any(|option| option == "rw")
    });
    for line in writable {
        let options = line.split(' ').nth(5).unwrap_or_default();
        let place = line.split(' ').nth(4).unwrap_or_default();
        let is_bounded = options.contains("nosuid") || place == "/" || place.starts_with("/dev");
        ensure!(is_bounded, "it could leave programs with rights of others: {line}");
    }

    let cgroup = fs::read_to_string(of("cgroup"))?;
    let is_inside = |line: &str| line.ends_with(&format!("/beta9/{id}"));
    ensure!(cgroup.lines().any(is_inside), "it is not in the container's cgroup\n{cgroup}");
    let limited =
        ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"].map(|mount| Path::new(mount).join("beta9").join(id));
    let limit =
        limited.iter().flat_map(|group| ["memory.limit_in_bytes", "memory.max"].map(|name| group.join(name)));
    let limit =
        limit.filter_map(|file| fs::read_to_string(file).ok()).next().context("there is no memory limit")?;
    ensure!(
        limit.trim().parse::<u64>().is_ok_and(|bytes| bytes < 2 << 30),
        "its memory is not limited: {limit}"
    );
    // The namespaces' own tables, as it would read them if it had a /proc.
    let interfaces = fs::read_to_string(of("net/dev"))?;
    let physical = interfaces.lines().skip(2).filter_map(|line| line.split(':').next()).map(str::trim);
    let physical: Vec<_> =
        physical.filter(|name| name.starts_with("eth") || name.starts_with("en")).collect();
    ensure!(physical.len() <= 1, "it sees the host's network: {interfaces}");
    Ok(user)
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

/// Socket addresses hold 108 bytes.
pub(super) fn at_the_end_of_a_long_path(runtime: RuntimeKind) -> Result<()> {
    let place = tempfile::Builder::new().prefix("b9-long-").tempdir_in("/var/tmp")?;
    let deep = place.path().join("d".repeat(120)).join("e".repeat(120));
    let setting = format!("{}_root: {}", runtime.as_str(), deep.display());
    at(Site::with_settings("", &setting)?, |site| {
        let world = World::new(site, runtime, "long");
        world.shell("exit 37")?.ends_with(37)?;
        Ok(())
    })?;
    ensure!(names(&deep)?.is_empty(), "something is left in {}", deep.display());
    Ok(())
}

pub(super) fn without_a_jailer() -> Result<()> {
    let settings = "firecracker_jailer: /nonexistent/jailer\nrequire_jailer: true";
    at(Site::with_settings("", settings)?, |site| {
        let run = ["run", "--rm", "--runtime", "firecracker", "busybox", "true"];
        let words = ["require_jailer", "/nonexistent/jailer was not found"];
        site.command(run).finish()?.ends_with(125)?.complains_of(&words)?;
        Ok(())
    })
}
