//! [`Microvm`]: a [`Runtime`] whose containers are VMs.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use beta9_runtime::{
    Capabilities, Container, CreateRequest, Error, ErrorKind, Result, Rootfs, RootfsForm, Runtime,
};
use beta9_sys::cgroup::Cgroup;
use beta9_sys::reaper::Reaper;
use beta9_types::{ContainerId, DiskRate, Phase, RuntimeKind, RuntimeSettings};
use beta9_wire::{RootDisk, WritableLayer};
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use crate::OwnProgram;
use crate::container::{MicrovmContainer, end_processes};
use crate::engine::firecracker::{EngineCounters, Firecracker, read_counters};
use crate::engine::qemu::Qemu;
use crate::engine::{
    Balloon, Console, DiskLimit, Drive, DriveAccess, Engine, Host, NetworkDevice, VmConfig, VmDirectory,
    clear, remove,
};
use crate::guest_spec::{Stdin, refuse_unsupported, translate, translate_network};
use crate::knobs::Knobs;
use crate::place::{compete, place};
use crate::sandbox::{Accepting, Create, Deadlines, Listeners, Sandbox};
use crate::share::{Share, ShareProgram};
use crate::sizing::VmSize;

/// Processes and threads that the programs of one VM may have.
const MAX_TASKS: u64 = 512;
/// Memory of a file server, and of what the host's kernel keeps for the files that a guest knows.
const SHARE_MIB: u32 = 160;
/// Microseconds that processor time is dealt out in.
const CPU_PERIOD: u64 = 100_000;

/// What these runtimes can do.
pub const CAPABILITIES: Capabilities = Capabilities {
    checkpoint_restore: false,
    gpu: false,
    oom_events: true,
    join_existing_netns: true,
    cdi: false,
};

/// Containers in VMs of one engine.
pub struct Microvm {
    kind: RuntimeKind,
    settings: RuntimeSettings,
    reaper: Reaper,
    engine: Box<dyn Engine>,
    share: ShareProgram,
    this: OwnProgram,
}

impl Microvm {
    /// A runtime of kind `firecracker` or `qemu`; others are refused.
    ///
    /// `qemu_accel: auto` is for the caller to replace by what [`probe`](crate::probe) found; what is left of it
    /// here means TCG, which works everywhere.
    pub fn new(kind: RuntimeKind, settings: &RuntimeSettings, reaper: Reaper) -> Result<Self> {
        let engine: Box<dyn Engine> = match kind {
            RuntimeKind::Firecracker => Box::new(Firecracker::new(settings)),
            RuntimeKind::Qemu => Box::new(Qemu::new(settings)),
            RuntimeKind::Runc | RuntimeKind::Gvisor => {
                return Err(Error::new(ErrorKind::Unsupported, format!("{kind} does not run microVMs")));
            }
        };
        Ok(Self {
            kind,
            settings: settings.clone(),
            reaper,
            engine,
            share: ShareProgram::default(),
            this: OwnProgram::default(),
        })
    }

    /// Replaces the program that serves host directories, which is this one with the argument `share`. What it is
    /// started with goes to [`share::serve`](crate::share::serve).
    pub fn with_share_program(mut self, program: PathBuf, arguments: Vec<OsString>) -> Self {
        self.share = ShareProgram { program, arguments };
        self
    }

    /// Replaces the program that confines a VM's programs, which is this one with the argument `confine`. What it is
    /// started with goes to [`confine`](crate::confine).
    pub fn with_own_program(mut self, program: PathBuf) -> Self {
        self.this = OwnProgram::at(program);
        self
    }

    pub(crate) fn host(&self, cgroup: &Cgroup, network: Option<PathBuf>) -> Host {
        Host { reaper: self.reaper.clone(), cgroup: cgroup.clone(), network, this: self.this.clone() }
    }

    pub(crate) fn settings(&self) -> &RuntimeSettings {
        &self.settings
    }

    pub(crate) fn engine(&self) -> &dyn Engine {
        self.engine.as_ref()
    }

    pub(crate) fn root(&self) -> &Path {
        root_of(self.kind, &self.settings)
    }

    /// Kernel and initramfs.
    pub(crate) fn kernel(&self) -> (PathBuf, PathBuf) {
        match self.kind {
            RuntimeKind::Firecracker => {
                (self.settings.firecracker_kernel.clone(), self.settings.firecracker_initrd())
            }
            _ => (self.settings.qemu_kernel.clone(), self.settings.qemu_initrd()),
        }
    }

    pub(crate) fn vm_config(
        &self,
        id: &ContainerId,
        directory: VmDirectory,
        size: VmSize,
        drives: Vec<Drive>,
    ) -> VmConfig {
        let (kernel, initrd) = self.kernel();
        let console = if self.settings.debug { Console::Verbose } else { Console::Quiet };
        VmConfig {
            id: id.vm_id(),
            directory,
            kernel,
            initrd,
            cpus: size.cpus,
            mem_mib: size.mem_mib,
            drives,
            network: None,
            disk_limit: DiskLimit::of(DiskRate::default(), &self.settings),
            balloon: Balloon::of(&self.settings),
            console,
        }
    }

    /// Keeps the VM's programs to what they need, so that a guest cannot make them take the host's memory.
    pub(crate) fn limit(&self, cgroup: &Cgroup, size: VmSize, more_mib: u32) {
        let memory = u64::from(size.mem_mib + self.engine.overhead_mib() + more_mib) << 20;
        // The VMM's own threads have a processor to themselves beside those of the guest.
        let processors = (u64::from(size.cpus) + 1) * CPU_PERIOD;
        let limits = [
            cgroup.limit_memory(memory),
            cgroup.limit_pids(MAX_TASKS),
            cgroup.limit_cpu(processors, CPU_PERIOD),
        ];
        for limited in limits {
            if let Err(error) = limited {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "a microvm runs without a limit of its cgroup");
            }
        }
    }

    async fn build(
        &self,
        request: CreateRequest,
        directory: VmDirectory,
        drives: Vec<Drive>,
        root: RootDisk,
        size: VmSize,
    ) -> Result<MicrovmContainer> {
        let CreateRequest { id, dir, spec, mounts, stdio, cgroup, marks, network, disk, .. } = request;
        let stdin = if stdio.stdin.is_some() { Stdin::Open } else { Stdin::Closed };
        let mut guest_spec = translate(&spec, &mounts, &dir.join("files"), stdin)?;
        guest_spec.process.terminal = stdio.terminal;
        guest_spec.network = network.as_ref().map(translate_network);
        let host = self.host(&cgroup, network_of(&spec));
        let directory = self.engine.settle(directory, &id.vm_id())?;
        let listeners = Listeners::bind(&directory)?;
        let mut config = self.vm_config(&id, directory.clone(), size, drives);
        config.disk_limit = DiskLimit::of(disk, &self.settings);
        config.network = network.and_then(|end| end.tap.map(|tap| NetworkDevice { tap, mac: end.mac }));
        let vm = self.engine.start(&config, &host).await?;
        marks.reach(Phase::EngineStarted);
        let pid = vm.vmm.pid();
        let knobs = Knobs::new(size, vm.controls.clone(), config.disk_limit, config.balloon);
        let Listeners { control, stream, copy, share: share_listener } = listeners;
        // It gets ready while the guest boots.
        let share = if mounts.is_empty() {
            None
        } else {
            let dialer = vm.dialer;
            Some(Share::start(&self.share, &host, &directory, &id, dialer, &mounts, share_listener)?)
        };
        let deadlines = Deadlines::at(self.engine.pace());
        let accepting = Accepting { control, stream, copy };
        let (sandbox, _kernel) =
            Sandbox::open(vm, accepting, id.clone(), cgroup.clone(), deadlines, &marks).await?;
        if let Some(share) = &share {
            share.ready().await?;
        }
        let container = MicrovmContainer::new(sandbox, id, pid, directory, cgroup, share, knobs);
        container.sandbox().create(Create { root, spec: guest_spec, stdio }).await?;
        marks.reach(Phase::Created);
        Ok(container)
    }
}

/// Where VMs of `kind` live.
fn root_of(kind: RuntimeKind, settings: &RuntimeSettings) -> &Path {
    match kind {
        RuntimeKind::Firecracker => &settings.firecracker_root,
        _ => &settings.qemu_root,
    }
}

/// Removes what a failed start left for its reader: call it when the container's record is removed.
pub fn forget(kind: RuntimeKind, settings: &RuntimeSettings, id: &ContainerId) -> Result<()> {
    remove(&VmDirectory::of(root_of(kind, settings), id))
}

/// What the engine of a container's VM has counted, where it counts: Firecracker does, once a minute.
pub fn engine_counters(
    kind: RuntimeKind,
    settings: &RuntimeSettings,
    id: &ContainerId,
) -> Option<EngineCounters> {
    read_counters(&VmDirectory::of(root_of(kind, settings), id))
}

/// The namespace that the spec wants the container in. The VMM joins it.
fn network_of(spec: &Spec) -> Option<PathBuf> {
    let namespaces = spec.linux().as_ref()?.namespaces().as_ref()?;
    let network = namespaces.iter().find(|namespace| namespace.typ() == LinuxNamespaceType::Network)?;
    network.path().clone()
}

/// The drives of a root file system, and what the guest is told about them.
fn drives_of(rootfs: &Rootfs, spec: &Spec, size: VmSize) -> Result<(Vec<Drive>, RootDisk)> {
    let Rootfs::Block { image, format, scratch, memory_layer_bytes } = rootfs else {
        return Err(Error::new(ErrorKind::Unsupported, "a microVM takes its root file system as an image"));
    };
    let mut drives = vec![Drive { path: image.clone(), access: DriveAccess::ReadOnly }];
    let writable = match scratch {
        Some(path) => {
            drives.push(Drive { path: path.clone(), access: DriveAccess::Scratch });
            WritableLayer::Drive(1)
        }
        None => {
            let half = u64::from(size.mem_mib) << 19;
            let limit = memory_layer_bytes.or_else(|| crate::guest_spec::memory_limit(spec));
            WritableLayer::Memory(limit.unwrap_or(half))
        }
    };
    for drive in &drives {
        drive.path.metadata().map_err(|e| crate::failed("open disk", &drive.path, e))?;
    }
    Ok((drives, RootDisk { drive: 0, format: format.clone(), writable }))
}

#[async_trait]
impl Runtime for Microvm {
    fn kind(&self) -> RuntimeKind {
        self.kind
    }

    /// No checkpoint, GPU or CDI: none of them exists for these VMs yet. Out-of-memory is reported by the guest
    /// from its own kernel's count. A namespace that exists is joined by the VMM.
    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn rootfs_form(&self) -> RootfsForm {
        RootfsForm::Block
    }

    fn prepare(&self, spec: &mut Spec) -> Result<()> {
        refuse_unsupported(spec)?;
        VmSize::of(spec, self.kind, &self.settings).map(drop)
    }

    async fn create(&self, request: CreateRequest) -> Result<Box<dyn Container>> {
        let size = VmSize::of(&request.spec, self.kind, &self.settings)?;
        let (drives, root) = drives_of(&request.rootfs, &request.spec, size)?;
        let mut request = request;
        let id = request.id.clone();
        place(&mut request.cgroup, &request.spec)?;
        let cgroup = request.cgroup.clone();
        let directory = VmDirectory::create(self.root(), &id)?;
        self.limit(&cgroup, size, if request.mounts.is_empty() { 0 } else { SHARE_MIB });
        compete(&cgroup, &request.spec);
        let path = directory.path().to_owned();
        match self.build(request, directory, drives, root, size).await {
            Ok(container) => Ok(Box::new(container)),
            Err(error) => {
                let undone = end_processes(&cgroup).await.and_then(|()| clear(&path));
                if let Err(left) = undone {
                    tracing::warn!(container = %id, error = left.chain(), "a failed create could not be undone");
                }
                Err(error)
            }
        }
    }

    async fn clean(&self, id: &ContainerId, _: &Path, cgroup: &Cgroup) -> Result<()> {
        end_processes(cgroup).await?;
        clear(&VmDirectory::of(self.root(), id))
    }
}
