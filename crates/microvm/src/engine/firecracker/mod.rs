//! Firecracker, driven over its API socket.
//!
//! With its jailer it runs in a jail ([`jail`]), as a user of its own that sees the VM's files and nothing else. Without
//! one it runs inside the VM's directory, as root: it has its own seccomp filter, the container's cgroup and network
//! namespace. In both cases every path it is told is short.

mod api;
mod client;
pub(crate) mod jail;
mod metrics;
mod version;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use async_trait::async_trait;
use beta9_runtime::{Error, ErrorKind, Result};
use beta9_types::{RuntimeSettings, VmId};
use rustix::fs::Mode;

use super::watchdog::{Pulse, watch};
use super::{
    Appearance, Balloon, CONSOLE_LOG, Change, Console, Controls, Engine, Host, Pace, Process, Stuck, Tail,
    VSOCK, Vm, VmConfig, drain,
};
use super::{COMMON_KERNEL_ARGS, GUEST_CID, VmDirectory};
use api::{
    Action, BalloonDevice, BalloonUpdate, BootSource, Drive, DriveUpdate, Entropy, MachineConfig,
    NetworkInterface, Vsock,
};
use client::Client;
use jail::Jail;

pub use metrics::EngineCounters;
pub(crate) use metrics::read as read_counters;
pub(crate) use version::Version;

const API_SOCKET: &str = "api.sock";
/// Firecracker writes its log into this pipe and never rotates anything; the file behind it has a cap.
const LOG_PIPE: &str = "log.pipe";
const FIRECRACKER_LOG: &str = "firecracker.log";
/// The same for its counters.
const METRICS_PIPE: &str = "metrics.pipe";
/// From the process's start to an answering API. Usually a few milliseconds.
const API_DEADLINE: Duration = Duration::from_secs(5);

/// How long it may take to answer when its guest runs.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

pub(crate) struct Firecracker {
    bin: PathBuf,
    pace: Pace,
    jail: Option<Jail>,
}

/// What a VM's files are called where Firecracker runs.
pub(super) struct Names {
    kernel: PathBuf,
    initrd: PathBuf,
    drives: Vec<PathBuf>,
    vsock: PathBuf,
}

impl Names {
    /// Their names on the host, seen from the VM's directory.
    fn on_host(config: &VmConfig) -> Self {
        Self {
            kernel: config.kernel.clone(),
            initrd: config.initrd.clone(),
            drives: config.drives.iter().map(|drive| drive.path.clone()).collect(),
            vsock: VSOCK.into(),
        }
    }
}

impl Firecracker {
    pub(crate) fn new(settings: &RuntimeSettings) -> Self {
        let bin = super::located(&settings.firecracker_bin);
        let jail = settings.is_jailed().then(|| Jail::new(&bin, settings));
        Self { bin, pace: Pace::of_kvm(), jail }
    }

    /// Starts the process, in its jail where it has one.
    async fn launch(&self, config: &VmConfig, host: &Host, console: &Tail) -> Result<Process> {
        let directory = &config.directory;
        let (name, command) = match &self.jail {
            Some(jail) => ("jailer", jail.command(config, host)?),
            None => {
                let mut command = Command::new(&self.bin);
                command.args(["--id", &config.id.to_string()]).args(arguments(Path::new("")));
                command.current_dir(directory.path()).env_clear();
                ("firecracker", command)
            }
        };
        let (process, outputs) = Process::spawn(host, name, command, Stdio::null())?;
        let file = directory.file(CONSOLE_LOG)?;
        let second =
            file.try_clone().map_err(|e| crate::failed("open", &directory.path().join(CONSOLE_LOG), e))?;
        drain(outputs.stdout, file, console.clone())?;
        drain(outputs.stderr, second, console.clone())?;
        match &self.jail {
            Some(jail) => jail.adopt(config, host, &process, console, self.pace).await,
            None => Ok(process),
        }
    }

    /// Waits for the API and configures and starts the VM.
    async fn drive(&self, config: &VmConfig, appearing: Appearance) -> Result<Client> {
        let deadline = self.pace.deadline(API_DEADLINE);
        let connected = tokio::time::timeout(deadline, async {
            appearing.wait().await?;
            Client::connect(&config.directory.reach(API_SOCKET), deadline).await
        });
        let mut client = connected.await.map_err(|_| {
            let seconds = deadline.as_secs();
            Error::new(ErrorKind::Timeout, format!("firecracker's API did not answer within {seconds} s"))
        })??;
        let version = client.version().await?;
        if !version.is_known() {
            tracing::warn!(%version, "this version of firecracker was not tested with this worker");
        }
        client.put("/machine-config", &MachineConfig::of(config)).await?;
        let names = match &self.jail {
            Some(_) => jail::names(config),
            None => Names::on_host(config),
        };
        client.put("/boot-source", &BootSource::of(&names, &kernel_arguments(config.console))).await?;
        for (index, (drive, path)) in config.drives.iter().zip(&names.drives).enumerate() {
            let id = drive_id(index);
            client.put(&format!("/drives/{id}"), &Drive::of(&id, path, drive, config.disk_limit)).await?;
        }
        if let Some(network) = &config.network {
            let interface = NetworkInterface::of(network);
            client.put(&format!("/network-interfaces/{}", interface.iface_id), &interface).await?;
        }
        client.put("/vsock", &Vsock { guest_cid: GUEST_CID, uds_path: &names.vsock }).await?;
        client.put("/entropy", &Entropy {}).await?;
        if config.balloon == Balloon::Present {
            client.put("/balloon", &BalloonDevice::of(version)).await?;
        }
        client.put("/actions", &Action::INSTANCE_START).await?;
        Ok(client)
    }
}

/// A VM that runs, by its API.
struct Running {
    client: Client,
    /// How many disks it has.
    drives: usize,
}

#[async_trait]
impl Pulse for Running {
    async fn beat(&mut self) -> Result<()> {
        self.client.describe_instance().await
    }

    async fn change(&mut self, change: Change) -> Result<()> {
        match change {
            Change::Disks(limit) => {
                for index in 0..self.drives {
                    let id = drive_id(index);
                    self.client.patch(&format!("/drives/{id}"), &DriveUpdate::of(&id, limit)).await?;
                }
                Ok(())
            }
            Change::Balloon { taken, .. } => {
                self.client.patch("/balloon", &BalloonUpdate { amount_mib: taken }).await
            }
        }
    }
}

fn drive_id(index: usize) -> String {
    format!("d{index}")
}

#[async_trait]
impl Engine for Firecracker {
    fn pace(&self) -> Pace {
        self.pace
    }

    fn overhead_mib(&self) -> u32 {
        64
    }

    fn settle(&self, directory: VmDirectory, id: &VmId) -> Result<VmDirectory> {
        match &self.jail {
            Some(jail) => jail.settle(directory, id),
            None => Ok(directory),
        }
    }

    async fn start(&self, config: &VmConfig, host: &Host) -> Result<Vm> {
        let directory = &config.directory;
        let log_pipe = open_pipe(directory, LOG_PIPE)?;
        metrics::take_in(open_pipe(directory, METRICS_PIPE)?, directory.clone())?;
        let appearing = Appearance::of(directory, API_SOCKET)?;
        let (console, log) = (Tail::default(), Tail::default());
        drain(log_pipe, directory.file(FIRECRACKER_LOG)?, log.clone())?;
        let vmm = self.launch(config, host, &console).await?;
        let dialer = vmm.pid();
        let (stuck, controls) = (Stuck::default(), Controls::none());
        let mut vm = Vm { vmm, helpers: Vec::new(), dialer, console, log, stuck, controls };
        let driven = tokio::select! {
            biased;
            (who, exit) = vm.ended() => {
                let text = format!("{who} {} before the VM was started", super::describe(exit));
                Err(Error::new(ErrorKind::Failed, text))
            }
            driven = self.drive(config, appearing) => driven,
        };
        match driven {
            Ok(client) => {
                let running = Running { client, drives: config.drives.len() };
                let deadline = self.pace.deadline(ANSWER_DEADLINE);
                (vm.stuck, vm.controls) = watch(vm.vmm.reach(), running, deadline);
                Ok(vm)
            }
            Err(error) => {
                vm.stop(Duration::ZERO).await?;
                vm.settle().await;
                Err(Error::new(error.kind(), vm.with_last_words(error.chain())))
            }
        }
    }
}

/// What Firecracker is told by its command line; `workplace` is the directory of its sockets, as it sees it.
fn arguments(workplace: &Path) -> Vec<String> {
    let place = |name: &str| workplace.join(name).to_string_lossy().into_owned();
    let mut arguments = vec!["--api-sock".to_owned(), place(API_SOCKET), "--log-path".to_owned()];
    arguments.push(place(LOG_PIPE));
    // Each question to its API is a line at the level below.
    arguments.extend(["--level", "Warn", "--show-level", "--metrics-path"].map(str::to_owned));
    arguments.push(place(METRICS_PIPE));
    arguments
}

/// Makes a pipe and opens our end, which never blocks and outlives writers.
fn open_pipe(directory: &VmDirectory, name: &str) -> Result<std::os::fd::OwnedFd> {
    use rustix::fs::{CWD, FileType, OFlags};
    let path = directory.workplace().join(name);
    rustix::fs::mknodat(CWD, directory.reach(name), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
        .map_err(|e| crate::failed("create", &path, e.into()))?;
    directory.hand_over(name)?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(directory.reach(name), flags, Mode::empty())
        .map_err(|e| crate::failed("open", &path, e.into()))
}

/// `reboot=k`: a guest that restarts through the keyboard controller ends the VMM. Modules stay allowed, because
/// a distribution's kernel has its virtio drivers in modules.
fn kernel_arguments(console: Console) -> String {
    let console = console.kernel_args();
    format!(
        "{console} reboot=k panic=1 8250.nr_uarts=1 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce {COMMON_KERNEL_ARGS}"
    )
}

#[cfg(test)]
mod tests;
