//! QEMU's `microvm` machine, with KVM or in software (TCG).
//!
//! The guest's vsock device is a second program, `vhost-device-vsock`, which gives it the same Unix sockets as
//! Firecracker's: the host's own vhost_vsock module is not needed, and one host protocol serves both engines.
//! It shares the guest's memory (a memfd), has to be there before QEMU, and is ended with it.
//!
//! Both are confined ([`confine`]): to a root of their own that holds the VM's files and what they need to be executed,
//! to a user of the VM's own, without rights. QEMU puts its own system call filter on top.

mod command;
mod confine;
mod monitor;

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use beta9_runtime::{Error, ErrorKind, Result};
use beta9_sys::processor::TscSample;
use beta9_types::{QemuAccel, RuntimeSettings, UidRange, VmId};

use super::watchdog::watch;
use super::{Appearance, CONSOLE_LOG, Engine, Host, Pace, Process, Tail, Vm, VmConfig, VmDirectory, drain};

use monitor::Monitor;

pub(crate) use command::Accel;

/// Where QEMU finds the vsock device, in the VM's directory.
const VHOST_SOCKET: &str = "vhost.sock";
/// Where QEMU listens for its monitor's protocol, in the VM's directory.
const QMP_SOCKET: &str = "qmp.sock";
const QEMU_LOG: &str = "qemu.log";
const VSOCK_LOG: &str = "vsock.log";
/// How long QEMU may take to answer when its guest runs.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// How long the vsock program may take to listen.
const VSOCK_DEADLINE: Duration = Duration::from_secs(5);

pub(crate) struct Qemu {
    bin: PathBuf,
    vsock_bin: PathBuf,
    users: UidRange,
    accel: Accel,
    /// When this engine was made: with a second sample at a VM's start it gives the host's TSC rate.
    first_sample: Option<TscSample>,
}

impl Qemu {
    /// `Auto` is for a probe to decide. Undecided it is TCG, which works everywhere.
    pub(crate) fn new(settings: &RuntimeSettings) -> Self {
        let accel = match settings.qemu_accel {
            QemuAccel::Kvm => Accel::Kvm(Pace::of_kvm()),
            QemuAccel::Tcg | QemuAccel::Auto => Accel::Tcg,
        };
        Self {
            bin: super::located(&settings.qemu_bin),
            vsock_bin: super::located(&settings.vhost_device_vsock_bin),
            users: settings.jail_uids.clone(),
            accel,
            first_sample: TscSample::now(),
        }
    }

    /// The host's TSC rate, which the emulated counter has too.
    ///
    /// Under TCG the guest's kernel cannot calibrate it on a busy host, and then hangs in early boot.
    async fn tsc_khz(&self) -> Option<u64> {
        if self.accel != Accel::Tcg {
            return None;
        }
        let first = self.first_sample?;
        let missing = TscSample::MIN_DISTANCE.saturating_sub(first.until(TscSample::now()?));
        if !missing.is_zero() {
            // A clock can only be measured by letting time pass.
            tokio::time::sleep(missing + Duration::from_millis(1)).await;
        }
        first.khz(TscSample::now()?)
    }

    /// Starts the vsock device's program and waits until it listens.
    async fn start_vsock(&self, config: &VmConfig, host: &Host) -> Result<Process> {
        let directory = &config.directory;
        let listening = Appearance::of(directory, VHOST_SOCKET)?;
        let command = confine::vsock_command(&self.vsock_bin, config, host)?;
        let (process, outputs) = Process::spawn(host, "vhost-device-vsock", command, Stdio::null())?;
        let tail = Tail::default();
        let log = directory.file(VSOCK_LOG)?;
        let second =
            log.try_clone().map_err(|e| crate::failed("open", &directory.path().join(VSOCK_LOG), e))?;
        drain(outputs.stdout, log, tail.clone())?;
        drain(outputs.stderr, second, tail.clone())?;
        let outcome = self.await_vsock(&process, listening, &tail).await;
        if outcome.is_err() {
            process.end().await?;
        }
        outcome.map(|()| process)
    }

    async fn await_vsock(&self, process: &Process, listening: Appearance, tail: &Tail) -> Result<()> {
        let said = || tail.excerpt().map(|text| format!(": {text}")).unwrap_or_default();
        tokio::select! {
            biased;
            exit = process.ended() => {
                let how = super::describe(exit);
                let text = format!("{} {how} before it listened{}", self.vsock_bin.display(), said());
                Err(Error::new(ErrorKind::Unavailable, text))
            }
            appeared = tokio::time::timeout(VSOCK_DEADLINE, listening.wait()) => match appeared {
                Ok(appeared) => appeared,
                Err(_) => {
                    let seconds = VSOCK_DEADLINE.as_secs();
                    let text = format!("{} did not listen within {seconds} s{}", self.vsock_bin.display(), said());
                    Err(Error::new(ErrorKind::Timeout, text))
                }
            },
        }
    }
}

#[async_trait]
impl Engine for Qemu {
    fn pace(&self) -> Pace {
        match self.accel {
            Accel::Kvm(pace) => pace,
            Accel::Tcg => Pace::Emulated,
        }
    }

    fn overhead_mib(&self) -> u32 {
        match self.accel {
            Accel::Kvm(_) => 192,
            // Translated code is most of it.
            Accel::Tcg => 192 + command::TRANSLATED_CODE_MIB,
        }
    }

    fn settle(&self, directory: VmDirectory, _: &VmId) -> Result<VmDirectory> {
        confine::settle(directory, &self.users)
    }

    async fn start(&self, config: &VmConfig, host: &Host) -> Result<Vm> {
        let (vsock, tsc_khz) = tokio::join!(self.start_vsock(config, host), self.tsc_khz());
        let vsock = vsock?;
        let started = confine::qemu_command(&self.bin, config, self.accel, tsc_khz, host)
            .and_then(|command| Process::spawn(host, "qemu", command, Stdio::null()));
        let (vmm, outputs) = match started {
            Ok(started) => started,
            Err(error) => {
                vsock.end().await?;
                return Err(error);
            }
        };
        let (console, log) = (Tail::default(), Tail::default());
        drain(outputs.stdout, config.directory.file(CONSOLE_LOG)?, console.clone())?;
        drain(outputs.stderr, config.directory.file(QEMU_LOG)?, log.clone())?;
        let dialer = vsock.pid();
        let monitor = Monitor::of(config.directory.clone(), config.drives.len());
        let (stuck, controls) = watch(vmm.reach(), monitor, self.pace().deadline(ANSWER_DEADLINE));
        Ok(Vm { vmm, helpers: vec![vsock], dialer, console, log, stuck, controls })
    }
}
