//! Firecracker, driven over its API socket.
//!
//! It runs inside the VM's directory, so that every path it is told is short and relative. It is not jailed:
//! it has its own seccomp filter, the container's cgroup and network namespace, and nothing else.

mod api;
mod client;
mod version;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use async_trait::async_trait;
use beta9_runtime::{Error, ErrorKind, Result};
use beta9_types::RuntimeSettings;
use rustix::fs::Mode;

use super::{
    Appearance, CONSOLE_LOG, Console, Engine, Host, Pace, Process, Tail, VSOCK, Vm, VmConfig, drain,
};
use super::{COMMON_KERNEL_ARGS, GUEST_CID, VmDirectory};
use api::{Action, BootSource, Drive, Entropy, MachineConfig, NetworkInterface, Vsock};
use client::Client;

pub(crate) use version::Version;

const API_SOCKET: &str = "api.sock";
/// Firecracker writes its log into this pipe and never rotates anything; the file behind it has a cap.
const LOG_PIPE: &str = "log.pipe";
const FIRECRACKER_LOG: &str = "firecracker.log";
/// From the process's start to an answering API. Usually a few milliseconds.
const API_DEADLINE: Duration = Duration::from_secs(5);

pub(crate) struct Firecracker {
    bin: PathBuf,
    pace: Pace,
}

impl Firecracker {
    pub(crate) fn new(settings: &RuntimeSettings) -> Self {
        Self { bin: super::located(&settings.firecracker_bin), pace: Pace::of_kvm() }
    }

    fn command(&self, config: &VmConfig) -> Command {
        let mut command = Command::new(&self.bin);
        command.args(["--id", &config.id.to_string(), "--api-sock", API_SOCKET]);
        command.args(["--log-path", LOG_PIPE, "--level", "Info", "--show-level"]);
        command.current_dir(config.directory.path()).env_clear();
        command
    }

    /// Waits for the API and configures and starts the VM.
    async fn drive(&self, config: &VmConfig, appearing: Appearance) -> Result<()> {
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
        client.put("/boot-source", &BootSource::of(config, &kernel_arguments(config.console))).await?;
        for (index, drive) in config.drives.iter().enumerate() {
            let id = format!("d{index}");
            client.put(&format!("/drives/{id}"), &Drive::of(&id, drive)).await?;
        }
        if let Some(network) = &config.network {
            let interface = NetworkInterface::of(network);
            client.put(&format!("/network-interfaces/{}", interface.iface_id), &interface).await?;
        }
        client.put("/vsock", &Vsock { guest_cid: GUEST_CID, uds_path: VSOCK }).await?;
        client.put("/entropy", &Entropy {}).await?;
        client.put("/actions", &Action::INSTANCE_START).await
    }
}

#[async_trait]
impl Engine for Firecracker {
    fn pace(&self) -> Pace {
        self.pace
    }

    fn overhead_mib(&self) -> u32 {
        64
    }

    async fn start(&self, config: &VmConfig, host: &Host) -> Result<Vm> {
        let directory = &config.directory;
        let log_pipe = open_log_pipe(directory)?;
        let appearing = Appearance::of(directory, API_SOCKET)?;
        let (vmm, outputs) = Process::spawn(host, "firecracker", self.command(config), Stdio::null())?;
        let (console, log) = (Tail::default(), Tail::default());
        let file = directory.file(CONSOLE_LOG)?;
        let second =
            file.try_clone().map_err(|e| crate::failed("open", &directory.path().join(CONSOLE_LOG), e))?;
        drain(outputs.stdout, file, console.clone())?;
        drain(outputs.stderr, second, console.clone())?;
        drain(log_pipe, directory.file(FIRECRACKER_LOG)?, log.clone())?;
        let dialer = vmm.pid();
        let vm = Vm { vmm, helpers: Vec::new(), dialer, console, log };
        let driven = tokio::select! {
            biased;
            (who, exit) = vm.ended() => {
                let text = format!("{who} {} before the VM was started", super::describe(exit));
                Err(Error::new(ErrorKind::Failed, text))
            }
            driven = self.drive(config, appearing) => driven,
        };
        match driven {
            Ok(()) => Ok(vm),
            Err(error) => {
                vm.stop(Duration::ZERO).await?;
                vm.settle().await;
                Err(Error::new(error.kind(), vm.with_last_words(error.chain())))
            }
        }
    }
}

/// Makes the log's pipe and opens our end, which never blocks and outlives writers.
fn open_log_pipe(directory: &VmDirectory) -> Result<std::os::fd::OwnedFd> {
    use rustix::fs::{CWD, FileType, OFlags};
    let path = directory.path().join(LOG_PIPE);
    rustix::fs::mknodat(CWD, directory.reach(LOG_PIPE), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
        .map_err(|e| crate::failed("create", &path, e.into()))?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(directory.reach(LOG_PIPE), flags, Mode::empty())
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
