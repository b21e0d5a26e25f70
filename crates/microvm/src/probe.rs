//! Whether VMs of one engine work on this machine, found out by booting one.
//!
//! ```text
//! programs ─▶ kernel ─▶ initramfs ─▶ /dev/kvm ─▶ a VM without disks, launched as for a container ─▶ Hello ─▶ gone
//! ```
//!
//! A file test is not enough: a KVM that opens and cannot boot a kernel is what many nested machines have. With
//! `qemu_accel: auto` KVM is tried first, and what it said is kept in the report of the software emulation that took
//! over.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use beta9_runtime::{Error, ErrorKind, Marks, Result, Runtime, find_program};
use beta9_sys::cgroup::Cgroup;
use beta9_sys::reaper::{ChildExit, Reaper};
use beta9_types::{ContainerId, QemuAccel, RuntimeKind, RuntimeSettings};
use rustix::process::{Signal, kill_process};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use crate::OwnProgram;
use crate::container::end_processes;
use crate::engine::firecracker::{Version, jail};
use crate::engine::{VmDirectory, remove};
use crate::runtime::Microvm;
use crate::sandbox::{Accepting, Deadlines, Listeners, Sandbox};
use crate::sizing::VmSize;

/// How long a program may take to say its version.
const VERSION_DEADLINE: Duration = Duration::from_secs(10);
/// Longest version text that is read.
const MAX_VERSION: u64 = 64 << 10;

/// A boot that worked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// The engine.
    pub kind: RuntimeKind,
    /// Its program, found.
    pub bin: PathBuf,
    /// The vsock device's program, found (QEMU).
    pub vsock_bin: Option<PathBuf>,
    /// The first line of what the program says about its version.
    pub version: String,
    /// How guest code runs.
    pub accel: QemuAccel,
    /// From the VM's start to its guest's report, in milliseconds.
    pub boot_ms: u64,
    /// `uname -r` of the guest.
    pub kernel: String,
    /// Why it is software emulation, where KVM was to be tried.
    pub kvm_failure: Option<String>,
    /// Firecracker's jailer, found; without one it is not jailed.
    #[serde(default)]
    pub jailer: Option<PathBuf>,
    /// What an operator should know of VMs that nevertheless work.
    #[serde(default)]
    pub warnings: Vec<String>,
}

impl ProbeReport {
    /// The settings with what the probe found and decided.
    pub fn settings(&self, asked: &RuntimeSettings) -> RuntimeSettings {
        let mut settings = asked.clone();
        match self.kind {
            RuntimeKind::Firecracker => {
                settings.firecracker_bin.clone_from(&self.bin);
                settings.firecracker_jailer =
                    self.jailer.clone().unwrap_or_else(|| RuntimeSettings::NO_JAILER.into());
            }
            _ => {
                settings.qemu_bin.clone_from(&self.bin);
                settings.qemu_accel = self.accel;
                if let Some(bin) = &self.vsock_bin {
                    settings.vhost_device_vsock_bin.clone_from(bin);
                }
            }
        }
        settings
    }
}

impl std::fmt::Display for ProbeReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (accel, ms) = (self.accel.as_str(), self.boot_ms);
        let jail = match (self.kind, &self.jailer) {
            (RuntimeKind::Firecracker, Some(_)) => ", jailed",
            (RuntimeKind::Firecracker, None) => ", NOT JAILED",
            _ => "",
        };
        write!(f, "{}, {accel}{jail}, booted Linux {} in {ms} ms", self.version, self.kernel)
    }
}

/// Boots one VM to its init, exactly as a container's VM is started, and takes it away again.
pub async fn probe(kind: RuntimeKind, settings: &RuntimeSettings, reaper: &Reaper) -> Result<ProbeReport> {
    probe_as(&OwnProgram::default(), kind, settings, reaper).await
}

/// The same by a process that is not the worker's program; `program` takes its part of confining the VM's programs, as
/// in [`Microvm::with_own_program`].
pub async fn probe_with(
    program: PathBuf,
    kind: RuntimeKind,
    settings: &RuntimeSettings,
    reaper: &Reaper,
) -> Result<ProbeReport> {
    probe_as(&OwnProgram::at(program), kind, settings, reaper).await
}

async fn probe_as(
    this: &OwnProgram,
    kind: RuntimeKind,
    settings: &RuntimeSettings,
    reaper: &Reaper,
) -> Result<ProbeReport> {
    let mut settings = settings.clone();
    let vsock_bin = find_programs(kind, &mut settings)?;
    let (jailer, warnings) = match kind {
        RuntimeKind::Firecracker => prepare_jail(&mut settings, reaper).await?,
        _ => (None, Vec::new()),
    };
    let (bin, kernel, initrd) = match kind {
        RuntimeKind::Firecracker => {
            (&settings.firecracker_bin, &settings.firecracker_kernel, settings.firecracker_initrd())
        }
        _ => (&settings.qemu_bin, &settings.qemu_kernel, settings.qemu_initrd()),
    };
    check_kernel(kernel)?;
    check_initrd(&initrd)?;
    let version = version(bin, reaper).await?;
    let (accel, kvm_failure, booted) = match (kind, settings.qemu_accel) {
        (RuntimeKind::Firecracker, _) | (_, QemuAccel::Kvm) => {
            check_kvm()?;
            let settings = RuntimeSettings { qemu_accel: QemuAccel::Kvm, ..settings.clone() };
            let booted =
                boot(kind, &settings, reaper, this).await.map_err(|error| kvm_cannot_boot(&error))?;
            (QemuAccel::Kvm, None, booted)
        }
        (_, QemuAccel::Tcg) => {
            (QemuAccel::Tcg, None, boot(kind, &settings, reaper, this).await.map_err(cannot_boot)?)
        }
        (_, QemuAccel::Auto) => boot_best(kind, &settings, reaper, this).await?,
    };
    Ok(ProbeReport {
        kind,
        bin: bin.clone(),
        vsock_bin,
        version,
        accel,
        boot_ms: booted.ms,
        kernel: booted.kernel,
        kvm_failure,
        jailer,
        warnings,
    })
}

/// The jailer that Firecracker runs under with these settings, or why it runs without one.
pub fn find_jailer(settings: &RuntimeSettings) -> std::result::Result<PathBuf, String> {
    let bin = find_program(&settings.firecracker_bin);
    let bin = bin.ok_or_else(|| format!("{} was not found", settings.firecracker_bin.display()))?;
    jail::usable(settings, &bin)
}

/// What is known against a jailer that calls itself this.
pub fn jailer_flaws(version: &str) -> Option<String> {
    version.split_whitespace().find_map(|word| Version::parse(word).ok()).and_then(jail::known_flaws)
}

/// Decides whether Firecracker will be jailed, before anything boots in the same way.
async fn prepare_jail(
    settings: &mut RuntimeSettings,
    reaper: &Reaper,
) -> Result<(Option<PathBuf>, Vec<String>)> {
    match jail::decide(settings, &settings.firecracker_bin)? {
        Ok(jailer) => {
            settings.firecracker_jailer.clone_from(&jailer);
            let flaws = jailer_flaws(&version(&jailer, reaper).await?);
            Ok((Some(jailer), flaws.into_iter().collect()))
        }
        Err(reason) => {
            settings.firecracker_jailer = RuntimeSettings::NO_JAILER.into();
            let text = format!("firecracker runs as root and without a jail: {reason}");
            Ok((None, vec![text]))
        }
    }
}

/// KVM where it boots a kernel, else software emulation with the reason.
async fn boot_best(
    kind: RuntimeKind,
    settings: &RuntimeSettings,
    reaper: &Reaper,
    this: &OwnProgram,
) -> Result<(QemuAccel, Option<String>, Booted)> {
    let with = |accel| RuntimeSettings { qemu_accel: accel, ..settings.clone() };
    let kvm = match check_kvm() {
        Ok(()) => boot(kind, &with(QemuAccel::Kvm), reaper, this).await,
        Err(error) => Err(error),
    };
    match kvm {
        Ok(booted) => Ok((QemuAccel::Kvm, None, booted)),
        Err(error) => {
            let booted = boot(kind, &with(QemuAccel::Tcg), reaper, this).await.map_err(cannot_boot)?;
            Ok((QemuAccel::Tcg, Some(error.chain()), booted))
        }
    }
}

fn find_programs(kind: RuntimeKind, settings: &mut RuntimeSettings) -> Result<Option<PathBuf>> {
    let found = |bin: &mut PathBuf, key: &str, remedy: &str| match find_program(bin) {
        Some(path) => {
            *bin = path;
            Ok(())
        }
        None => {
            let text =
                format!("{} was not found or cannot be executed: {remedy}, or set {key}", bin.display());
            Err(Error::new(ErrorKind::Unavailable, text))
        }
    };
    match kind {
        RuntimeKind::Firecracker => {
            let remedy = "install a Firecracker release (1.13.1 to 1.16.1) into PATH";
            found(&mut settings.firecracker_bin, "firecracker_bin", remedy)?;
            Ok(None)
        }
        RuntimeKind::Qemu => {
            let remedy = "install QEMU (Debian: apt-get install qemu-system-x86)";
            found(&mut settings.qemu_bin, "qemu_bin", remedy)?;
            let remedy = "install it (cargo install vhost-device-vsock)";
            found(&mut settings.vhost_device_vsock_bin, "vhost_device_vsock_bin", remedy)?;
            Ok(Some(settings.vhost_device_vsock_bin.clone()))
        }
        RuntimeKind::Runc | RuntimeKind::Gvisor => {
            Err(Error::new(ErrorKind::Unsupported, format!("{kind} does not run microVMs")))
        }
    }
}

fn check_kernel(path: &Path) -> Result<()> {
    beta9_guest::check_file(path).map_err(|e| {
        let text = "there is no kernel to boot: `beta9-worker kernel install` puts one there";
        Error::caused(ErrorKind::Unavailable, text, e)
    })
}

fn check_initrd(path: &Path) -> Result<()> {
    File::open(path).map(drop).map_err(|e| {
        let text =
            format!("initramfs {} cannot be read: put one there that holds beta9-vm-init", path.display());
        Error::caused(ErrorKind::Unavailable, text, e)
    })
}

fn check_kvm() -> Result<()> {
    OpenOptions::new().read(true).write(true).open("/dev/kvm").map(drop).map_err(|e| {
        let text =
            "/dev/kvm cannot be opened: load the kvm module, turn on virtualisation or pass the device in";
        Error::caused(ErrorKind::Unavailable, text, e)
    })
}

fn kvm_cannot_boot(error: &Error) -> Error {
    let text = format!(
        "/dev/kvm opens, but a VM did not boot with it ({}): use a host whose KVM runs kernels, or the qemu runtime",
        error.chain()
    );
    Error::new(ErrorKind::Unavailable, text)
}

fn cannot_boot(error: Error) -> Error {
    let text =
        "a VM did not boot, in software: check that kernel and initramfs are those that belong together";
    Error::caused(ErrorKind::Unavailable, text, error)
}

struct Booted {
    ms: u64,
    kernel: String,
}

async fn boot(
    kind: RuntimeKind,
    settings: &RuntimeSettings,
    reaper: &Reaper,
    this: &OwnProgram,
) -> Result<Booted> {
    let microvm = Microvm::new(kind, settings, reaper.clone())?.with_own_program(this.path());
    let id = ContainerId::parse(&format!("probe-{}", ContainerId::random()))
        .map_err(|e| Error::caused(ErrorKind::Failed, "name a probe", e))?;
    let cgroup = Cgroup::at(Path::new("beta9").join(id.as_str()));
    let directory = VmDirectory::create(microvm.root(), &id)?;
    let path = directory.path().to_owned();
    let booted = boot_in(&microvm, id, directory, &cgroup).await;
    let mut undone = end_processes(&cgroup).await.and_then(|()| remove(&path));
    if let Err(error) = cgroup.remove() {
        undone = undone.and(Err(Error::caused(ErrorKind::Failed, "take the probe's cgroup away", error)));
    }
    let booted = booted?;
    undone?;
    Ok(booted)
}

async fn boot_in(
    microvm: &Microvm,
    id: ContainerId,
    directory: VmDirectory,
    cgroup: &Cgroup,
) -> Result<Booted> {
    let failed = |e| Error::caused(ErrorKind::Failed, "make the probe's cgroup", e);
    cgroup.create().map_err(failed)?;
    let size = VmSize::of_settings(microvm.kind(), microvm.settings());
    microvm.limit(cgroup, size, 0);
    let host = microvm.host(cgroup, None);
    let directory = microvm.engine().settle(directory, &id.vm_id())?;
    let Listeners { control, stream, copy, share: _ } = Listeners::bind(&directory)?;
    let started = Instant::now();
    let vm = microvm.engine().start(&microvm.vm_config(&id, directory, size, Vec::new()), &host).await?;
    let deadlines = Deadlines::at(microvm.engine().pace());
    let accepting = Accepting { control, stream, copy };
    let (sandbox, kernel) =
        Sandbox::open(vm, accepting, id, cgroup.clone(), deadlines, &Marks::default()).await?;
    let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    sandbox.stop().await?;
    Ok(Booted { ms, kernel: kernel.0 })
}

/// The first line of `program --version`.
async fn version(program: &Path, reaper: &Reaper) -> Result<String> {
    let run = format!("run {} --version", program.display());
    let failed = |e| Error::caused(ErrorKind::Unavailable, run.clone(), e);
    let (sender, ended) = oneshot::channel::<ChildExit>();
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).env_clear();
    let child = reaper
        .spawn(&mut command, move |exit| {
            let _ = sender.send(exit);
        })
        .map_err(failed)?;
    let Ok(ended) = tokio::time::timeout(VERSION_DEADLINE, ended).await else {
        let _ = kill_process(child.pid, Signal::KILL);
        let text =
            format!("{} --version did not end within {} s", program.display(), VERSION_DEADLINE.as_secs());
        return Err(Error::new(ErrorKind::Timeout, text));
    };
    let mut text = String::new();
    if let Some(stdout) = child.stdout {
        // It has ended, so a pipe's worth is all there is.
        stdout.take(MAX_VERSION).read_to_string(&mut text).map_err(failed)?;
    }
    match text.lines().next() {
        Some(line) if ended.is_ok_and(ChildExit::success) => Ok(line.trim().to_owned()),
        _ => {
            let text = format!("{} --version failed: reinstall it", program.display());
            Err(Error::new(ErrorKind::Unavailable, text))
        }
    }
}

/// Names everything a boot's success depends on, so that a remembered success is worth something: programs, kernel and
/// initramfs by identity, settings, host kernel, processor and microcode, this boot of the host, and KVM's parameters.
pub fn probe_key(kind: RuntimeKind, settings: &RuntimeSettings) -> String {
    let mut facts = format!("{kind} {}\n", env!("CARGO_PKG_VERSION"));
    let mut fact = |name: &str, value: &str| {
        let _ = writeln!(facts, "{name}={value}");
    };
    let files = match kind {
        RuntimeKind::Firecracker => {
            vec![
                find_program(&settings.firecracker_bin),
                find_program(&settings.firecracker_jailer),
                Some(settings.firecracker_kernel.clone()),
                Some(settings.firecracker_initrd()),
            ]
        }
        _ => vec![
            find_program(&settings.qemu_bin),
            find_program(&settings.vhost_device_vsock_bin),
            Some(settings.qemu_kernel.clone()),
            Some(settings.qemu_initrd()),
        ],
    };
    for file in files.into_iter().flatten() {
        let identity = fs::metadata(&file)
            .map(|m| format!("{}:{}:{}:{}.{}", m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec()))
            .unwrap_or_default();
        fact(&file.to_string_lossy(), &identity);
    }
    fact("settings", &serde_json::to_string(settings).unwrap_or_default());
    fact("kernel", &rustix::system::uname().release().to_string_lossy());
    fact("boot", &fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default());
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    for line in
        processor.lines().filter(|l| l.starts_with("model name") || l.starts_with("microcode")).take(2)
    {
        fact("processor", line);
    }
    for module in ["kvm", "kvm_intel", "kvm_amd"] {
        let parameters =
            fs::read_dir(format!("/sys/module/{module}/parameters")).into_iter().flatten().flatten();
        let mut values: Vec<_> = parameters
            .map(|entry| (entry.file_name(), fs::read_to_string(entry.path()).unwrap_or_default()))
            .collect();
        values.sort();
        for (name, value) in values {
            fact(&format!("{module}.{}", name.to_string_lossy()), &value);
        }
    }
    let mut key = String::new();
    for byte in Sha256::digest(facts.as_bytes()).iter().take(16) {
        let _ = write!(key, "{byte:02x}");
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_parts_are_named_with_their_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("vmlinux");
        assert!(check_kernel(&missing).unwrap_err().chain().contains("`beta9-worker kernel install`"));
        fs::write(&missing, "MZ compressed").unwrap();
        assert!(check_kernel(&missing).unwrap_err().chain().contains("it is neither a kernel"));
        let mut settings =
            RuntimeSettings { firecracker_bin: "/nowhere/firecracker".into(), ..Default::default() };
        let error = find_programs(RuntimeKind::Firecracker, &mut settings).unwrap_err();
        assert!(error.chain().contains("/nowhere/firecracker") && error.chain().contains("firecracker_bin"));
    }

    #[test]
    fn a_replaced_kernel_is_another_key() {
        let directory = tempfile::tempdir().unwrap();
        let kernel = directory.path().join("vmlinux");
        fs::write(&kernel, "one").unwrap();
        let settings = RuntimeSettings { qemu_kernel: kernel.clone(), ..Default::default() };
        let before = probe_key(RuntimeKind::Qemu, &settings);
        assert_eq!(before, probe_key(RuntimeKind::Qemu, &settings));
        fs::write(&kernel, "another").unwrap();
        assert_ne!(before, probe_key(RuntimeKind::Qemu, &settings));
    }
}
