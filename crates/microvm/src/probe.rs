//! Whether microVMs of a kind work on this machine: not whether files exist, but whether a guest boots.
//!
//! ```text
//! binaries ─▶ version ─▶ kernel, initramfs ─▶ /dev/kvm ─▶ boot a VM to its guest's report ─▶ ProbeReport
//! ```
//!
//! The VM is started exactly as one with a container would be, and everything of it is gone afterwards. A KVM
//! that opens and boots nothing is common (nested clouds, some containers) and is recognised here. Nothing is
//! remembered: [`probe_key`] says what an answer depends on.

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use beta9_runtime::{Error, ErrorKind, Marks, Result, find_program};
use beta9_sys::cgroup::Cgroup;
use beta9_sys::reaper::Reaper;
use beta9_types::{ContainerId, QemuAccel, RuntimeKind, RuntimeSettings};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::engine::firecracker::Version;
use crate::engine::{Host, Process, VmDirectory, remove};
use crate::runtime::Microvm;
use crate::sandbox::{Accepting, Deadlines, Listeners, Sandbox};
use crate::sizing::VmSize;

/// A program that says its version takes no longer.
const VERSION_DEADLINE: Duration = Duration::from_secs(20);
/// Enough for any kernel and initramfs to reach init.
const PROBE_SIZE: VmSize = VmSize { cpus: 1, mem_mib: 256 };

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// The engine.
    pub kind: RuntimeKind,
    /// Its program, by its path.
    pub bin: PathBuf,
    /// The vsock device's program, by its path (QEMU).
    pub vsock_bin: Option<PathBuf>,
    /// What the engine calls its version.
    pub version: String,
    /// How guest code runs; never `Auto`. For QEMU, what settings with `auto` are to be replaced by.
    pub accel: QemuAccel,
    /// From the engine's start to the guest's report.
    pub boot_ms: u64,
    /// The guest's kernel release.
    pub kernel: String,
}

impl ProbeReport {
    /// The settings with what was found: programs by their paths, and how guest code runs.
    pub fn settings(&self, asked: &RuntimeSettings) -> RuntimeSettings {
        let mut settings = with_programs(asked, self.kind, &self.bin, self.vsock_bin.as_deref());
        if self.kind == RuntimeKind::Qemu {
            settings.qemu_accel = self.accel;
        }
        settings
    }
}

/// The VM's programs run without an environment, so nobody looks along `PATH` for them later.
fn with_programs(
    asked: &RuntimeSettings,
    kind: RuntimeKind,
    bin: &Path,
    vsock_bin: Option<&Path>,
) -> RuntimeSettings {
    let mut settings = asked.clone();
    match kind {
        RuntimeKind::Firecracker => bin.clone_into(&mut settings.firecracker_bin),
        _ => bin.clone_into(&mut settings.qemu_bin),
    }
    if let Some(bin) = vsock_bin {
        bin.clone_into(&mut settings.vhost_device_vsock_bin);
    }
    settings
}

impl std::fmt::Display for ProbeReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, version, accel, boot_ms, kernel, .. } = self;
        write!(f, "{} {version}, {}, booted Linux {kernel} in {boot_ms} ms", kind.title(), accel.as_str())
    }
}

/// Checks everything that a microVM of `kind` needs and boots one. The VM's programs live in `cgroup`, which exists
/// and is the probe's alone.
///
/// Errors are of kind `Unavailable` and say what is missing and what to do about it.
pub async fn probe(
    kind: RuntimeKind,
    settings: &RuntimeSettings,
    reaper: &Reaper,
    cgroup: &Cgroup,
) -> Result<ProbeReport> {
    let host = Host { reaper: reaper.clone(), cgroup: cgroup.clone(), network: None };
    let (bin, vsock_bin, version) = match kind {
        RuntimeKind::Firecracker => {
            let bin = program(&settings.firecracker_bin, "firecracker_bin")?;
            let said = first_line(&host, &bin).await?;
            let number = said.strip_prefix("Firecracker ").unwrap_or(&said);
            let version = Version::parse(number)?;
            if !version.is_known() {
                tracing::warn!(%version, "this version of firecracker was not tested with this worker");
            }
            (bin, None, version.to_string())
        }
        RuntimeKind::Qemu => {
            let vsock_bin = program(&settings.vhost_device_vsock_bin, "vhost_device_vsock_bin")?;
            let bin = program(&settings.qemu_bin, "qemu_bin")?;
            let said = first_line(&host, &bin).await?;
            let version = said.strip_prefix("QEMU emulator version ").unwrap_or(&said).to_owned();
            (bin, Some(vsock_bin), version)
        }
        RuntimeKind::Runc | RuntimeKind::Gvisor => {
            return Err(Error::new(ErrorKind::Unsupported, format!("{kind} does not run microVMs")));
        }
    };
    let settings = &with_programs(settings, kind, &bin, vsock_bin.as_deref());
    let (kernel, initrd) = Microvm::new(kind, settings, reaper.clone())?.kernel();
    check_kernel(&kernel, kind)?;
    check_initrd(&initrd, kind)?;
    let accel = match (kind, settings.qemu_accel) {
        (RuntimeKind::Firecracker, _) => QemuAccel::Kvm,
        (_, accel) => accel,
    };
    let (accel, boot) = match accel {
        QemuAccel::Tcg => (accel, boot(kind, settings, accel, &host).await?),
        QemuAccel::Kvm => (accel, boot_with_kvm(kind, settings, &host).await?),
        QemuAccel::Auto => match boot_with_kvm(kind, settings, &host).await {
            Ok(boot) => (QemuAccel::Kvm, boot),
            Err(error) => {
                tracing::info!(error = error.chain(), "kvm is not usable, qemu runs its guests in software");
                (QemuAccel::Tcg, boot(kind, settings, QemuAccel::Tcg, &host).await?)
            }
        },
    };
    let boot_ms = u64::try_from(boot.took.as_millis()).unwrap_or(u64::MAX);
    Ok(ProbeReport { kind, bin, vsock_bin, version, accel, boot_ms, kernel: boot.kernel })
}

fn unavailable(text: String) -> Error {
    Error::new(ErrorKind::Unavailable, text)
}

fn program(name: &Path, key: &str) -> Result<PathBuf> {
    find_program(name).ok_or_else(|| {
        let name = name.display();
        unavailable(format!("there is no program {name}; install it or set container_runtime_config.{key}"))
    })
}

/// The first line that `bin --version` says.
async fn first_line(host: &Host, bin: &Path) -> Result<String> {
    let failed = |e| Error::caused(ErrorKind::Unavailable, format!("run {} --version", bin.display()), e);
    let mut command = Command::new(bin);
    command.arg("--version").env_clear();
    let (process, outputs) = Process::spawn(host, "version check", command, Stdio::null())?;
    let mut stdout = pipe::Receiver::from_owned_fd(outputs.stdout).map_err(failed)?.take(4096);
    let mut text = String::new();
    let read = tokio::time::timeout(VERSION_DEADLINE, stdout.read_to_string(&mut text)).await;
    process.end().await?;
    match read {
        Ok(read) => read.map_err(failed)?,
        Err(_) => {
            let seconds = VERSION_DEADLINE.as_secs();
            return Err(unavailable(format!("{} --version said nothing for {seconds} s", bin.display())));
        }
    };
    let line = text.lines().next().unwrap_or_default().trim();
    if line.is_empty() {
        return Err(unavailable(format!(
            "{} --version printed nothing; is it the right program?",
            bin.display()
        )));
    }
    Ok(line.to_owned())
}

fn check_kernel(kernel: &Path, kind: RuntimeKind) -> Result<()> {
    let remedy =
        format!("set container_runtime_config.{kind}_kernel to an uncompressed ELF kernel (vmlinux)");
    let mut magic = [0; 4];
    match fs::File::open(kernel).and_then(|mut file| file.read_exact(&mut magic)) {
        Ok(()) if &magic == b"\x7fELF" => Ok(()),
        Ok(()) => Err(unavailable(format!("kernel {} is not an ELF file; {remedy}", kernel.display()))),
        Err(e) => {
            let text = format!("the guest kernel {} cannot be read; {remedy}", kernel.display());
            Err(Error::caused(ErrorKind::Unavailable, text, e))
        }
    }
}

fn check_initrd(initrd: &Path, kind: RuntimeKind) -> Result<()> {
    let remedy = format!("build it with the worker, or set container_runtime_config.{kind}_initrd");
    match fs::metadata(initrd) {
        Ok(meta) if meta.is_file() && meta.len() > 0 => Ok(()),
        Ok(_) => Err(unavailable(format!("the initramfs {} is empty; {remedy}", initrd.display()))),
        Err(e) => {
            let text = format!("there is no initramfs {}; {remedy}", initrd.display());
            Err(Error::caused(ErrorKind::Unavailable, text, e))
        }
    }
}

struct Boot {
    took: Duration,
    kernel: String,
}

async fn boot_with_kvm(kind: RuntimeKind, settings: &RuntimeSettings, host: &Host) -> Result<Boot> {
    const DEVICE: &str = "/dev/kvm";
    OpenOptions::new().read(true).write(true).open(DEVICE).map_err(|e| {
        let remedy = match e.kind() {
            std::io::ErrorKind::NotFound => "this machine has no hardware virtualization turned on",
            std::io::ErrorKind::PermissionDenied => "this user may not use it",
            _ => "the kvm module may not be loaded",
        };
        let text = format!("{DEVICE} cannot be opened: {remedy}; {}", alternative(kind));
        Error::caused(ErrorKind::Unavailable, text, e)
    })?;
    boot(kind, settings, QemuAccel::Kvm, host).await.map_err(|e| {
        let text = format!("{DEVICE} opens, but no guest booted with it; {}", alternative(kind));
        Error::caused(ErrorKind::Unavailable, text, e)
    })
}

fn alternative(kind: RuntimeKind) -> &'static str {
    match kind {
        RuntimeKind::Firecracker => "use a machine with working (nested) virtualization, or the qemu runtime",
        _ => "use a machine with working (nested) virtualization, or qemu_accel: tcg",
    }
}

/// Boots a VM without a container and takes it away again.
async fn boot(kind: RuntimeKind, settings: &RuntimeSettings, accel: QemuAccel, host: &Host) -> Result<Boot> {
    let settings = RuntimeSettings { qemu_accel: accel, ..settings.clone() };
    let microvm = Microvm::new(kind, &settings, host.reaper.clone())?;
    let random = ContainerId::random();
    let id = ContainerId::parse(&format!("probe-{}", random.last8()))
        .map_err(|e| Error::caused(ErrorKind::Failed, "name the probe's VM", e))?;
    let directory = VmDirectory::create(microvm.root(), &id)?;
    let path = directory.path().to_owned();
    let booted = boot_in(&microvm, id, directory, host).await;
    let removed = remove(&path);
    let boot = booted.map_err(|e| match e.kind() {
        ErrorKind::Unavailable => e,
        _ => Error::caused(
            ErrorKind::Unavailable,
            format!("a probe VM of {} did not boot", microvm.engine().describe()),
            e,
        ),
    })?;
    removed.map(|()| boot)
}

async fn boot_in(microvm: &Microvm, id: ContainerId, directory: VmDirectory, host: &Host) -> Result<Boot> {
    let began = Instant::now();
    let Listeners { control, stream, share: _ } = Listeners::bind(&directory)?;
    let config = microvm.vm_config(&id, directory, PROBE_SIZE, Vec::new());
    let vm = microvm.engine().start(&config, host).await?;
    let deadlines = Deadlines::at(microvm.engine().pace());
    let accepting = Accepting { control, stream };
    let marks = Marks::default();
    let (sandbox, kernel) = Sandbox::open(vm, accepting, id, host.cgroup.clone(), deadlines, &marks).await?;
    let took = began.elapsed();
    sandbox.stop().await?;
    Ok(Boot { took, kernel: kernel.0 })
}

/// A hash of everything that decides what [`probe`] finds. While it stays the same, so does a success.
pub fn probe_key(kind: RuntimeKind, settings: &RuntimeSettings) -> String {
    let mut parts = vec![kind.as_str().to_owned(), env!("CARGO_PKG_VERSION").to_owned()];
    let files = match kind {
        RuntimeKind::Firecracker => vec![
            settings.firecracker_bin.clone(),
            settings.firecracker_kernel.clone(),
            settings.firecracker_initrd(),
        ],
        _ => {
            parts.push(format!("{:?}", settings.qemu_accel));
            vec![
                settings.qemu_bin.clone(),
                settings.vhost_device_vsock_bin.clone(),
                settings.qemu_kernel.clone(),
                settings.qemu_initrd(),
            ]
        }
    };
    for file in files {
        parts.push(identity(&find_program(&file).unwrap_or(file)));
    }
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    parts.push(read("/proc/version"));
    parts.push(read("/proc/sys/kernel/random/boot_id"));
    let processor = read("/proc/cpuinfo");
    let tells = |line: &&str| line.starts_with("model name") || line.starts_with("microcode");
    parts.extend(processor.lines().filter(tells).take(2).map(str::to_owned));
    for module in ["kvm", "kvm_intel", "kvm_amd"] {
        parts.extend(parameters(&Path::new("/sys/module").join(module).join("parameters")));
    }
    let mut hash = Sha256::new();
    for part in parts {
        // The length keeps neighbours apart.
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn identity(file: &Path) -> String {
    match fs::metadata(file) {
        Ok(meta) => format!(
            "{} {} {}.{} {}:{}",
            file.display(),
            meta.len(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.dev(),
            meta.ino()
        ),
        Err(_) => format!("{} missing", file.display()),
    }
}

fn parameters(directory: &Path) -> Vec<String> {
    let mut found: Vec<_> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| {
            let value = fs::read_to_string(entry.path()).unwrap_or_default();
            format!("{}={}", entry.path().display(), value.trim())
        })
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_follows_the_files_and_the_settings() {
        let directory = tempfile::tempdir().unwrap();
        let kernel = directory.path().join("vmlinux");
        let settings = RuntimeSettings { qemu_kernel: kernel.clone(), ..RuntimeSettings::default() };
        let missing = probe_key(RuntimeKind::Qemu, &settings);
        assert_eq!(missing, probe_key(RuntimeKind::Qemu, &settings));
        fs::write(&kernel, "one").unwrap();
        let present = probe_key(RuntimeKind::Qemu, &settings);
        assert_ne!(missing, present);
        let tcg = RuntimeSettings { qemu_accel: QemuAccel::Tcg, ..settings };
        assert_ne!(present, probe_key(RuntimeKind::Qemu, &tcg));
        assert_ne!(present, probe_key(RuntimeKind::Firecracker, &tcg));
    }

    #[test]
    fn a_kernel_must_be_an_elf_file() {
        let directory = tempfile::tempdir().unwrap();
        let kernel = directory.path().join("vmlinuz");
        let complaint = |kernel: &Path| check_kernel(kernel, RuntimeKind::Qemu).unwrap_err().to_string();
        assert!(complaint(&kernel).contains("cannot be read; set container_runtime_config.qemu_kernel"));
        fs::write(&kernel, "MZ compressed").unwrap();
        assert!(complaint(&kernel).contains("is not an ELF file"));
        fs::write(&kernel, b"\x7fELF...").unwrap();
        check_kernel(&kernel, RuntimeKind::Qemu).unwrap();
    }
}
