//! Containers on gVisor's kernel in user space, by `runsc`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use async_trait::async_trait;
use beta9_runtime::{
    Capabilities, Container, CreateRequest, Error, ErrorKind, Result, RootfsForm, Runtime, find_program,
};
use beta9_sys::cgroup::Cgroup;
use beta9_sys::reaper::Reaper;
use beta9_types::{ContainerId, RuntimeKind, RuntimeSettings};
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use crate::container::{self, OomRule};
use crate::program::{Files, Program};
use crate::runc;

/// What `gvisor` can do.
pub const GVISOR_CAPABILITIES: Capabilities = Capabilities {
    checkpoint_restore: false,
    gpu: false,
    oom_events: true,
    join_existing_netns: true,
    cdi: false,
};

/// The `gvisor` runtime.
pub struct Gvisor {
    program: Program,
    root: PathBuf,
    reaper: Reaper,
}

impl Gvisor {
    /// Finds the program and picks its platform: the configured one where the program knows it, else `ptrace`. Returns
    /// the settings with both filled in, and with the flag that has files written where they are looked for. Runs the program once and waits for it, so never call this in a process that
    /// has a reaper.
    pub fn find(settings: &RuntimeSettings) -> Result<RuntimeSettings> {
        let bin = find_program(&settings.gvisor_bin).ok_or_else(|| {
            let text = format!(
                "gVisor program {} was not found in PATH: install runsc (Debian: apt-get install runsc) or set gvisor_bin",
                settings.gvisor_bin.display()
            );
            Error::new(ErrorKind::Unavailable, text)
        })?;
        let mut found = settings.clone();
        // systrap came in 2023; an older program refuses the flag's value with "unknown platform".
        if settings.gvisor_platform == "systrap" && !takes(&bin, "--platform=systrap", "unknown platform")? {
            found.gvisor_platform = "ptrace".to_owned();
        }
        // Since 2023 it keeps what a container writes in a file of its own, where no other tool and no next start finds it.
        let is_chosen = settings.gvisor_extra_args.iter().any(|flag| flag.contains("-overlay"));
        if !is_chosen && takes(&bin, OWN_LAYER, "not defined")? {
            found.gvisor_extra_args.insert(0, OWN_LAYER.to_owned());
        }
        found.gvisor_bin = bin;
        Ok(found)
    }

    /// A runtime with the settings that [`Gvisor::find`] returned.
    pub fn new(settings: &RuntimeSettings, reaper: Reaper) -> Self {
        let mut global: Vec<OsString> = vec!["--root".into(), settings.gvisor_root.clone().into()];
        global.push(format!("--platform={}", settings.gvisor_platform).into());
        global.extend(settings.gvisor_extra_args.iter().map(OsString::from));
        let program = Program { bin: settings.gvisor_bin.clone(), global };
        Self { program, root: settings.gvisor_root.clone(), reaper }
    }
}

/// gVisor's word for the network that a spec asks for: its own stack on the interfaces of a namespace that exists, loopback
/// in a new one, or the host's stack.
fn network_of(spec: &Spec) -> &'static str {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    let network = namespaces.into_iter().flatten().find(|one| one.typ() == LinuxNamespaceType::Network);
    match network {
        Some(namespace) if namespace.path().is_some() => "sandbox",
        Some(_) => "none",
        None => "host",
    }
}

/// Has the program write into the directory that it is given, which has a writable layer already.
const OWN_LAYER: &str = "--overlay2=none";

/// Whether the program takes a flag; one that does not says so in these words.
fn takes(bin: &Path, flag: &str, refusal: &str) -> Result<bool> {
    let output = Command::new(bin)
        .args([flag, "help"])
        .output()
        .map_err(|e| Error::caused(ErrorKind::Unavailable, format!("run {}", bin.display()), e))?;
    Ok(output.status.success() && !String::from_utf8_lossy(&output.stderr).contains(refusal))
}

#[async_trait]
impl Runtime for Gvisor {
    fn kind(&self) -> RuntimeKind {
        RuntimeKind::Gvisor
    }

    fn capabilities(&self) -> Capabilities {
        GVISOR_CAPABILITIES
    }

    fn rootfs_form(&self) -> RootfsForm {
        RootfsForm::Directory
    }

    /// gVisor filters system calls by being the kernel; a seccomp profile for the host's kernel means nothing to it.
    fn prepare(&self, spec: &mut Spec) -> Result<()> {
        if let Some(linux) = spec.linux_mut() {
            linux.set_seccomp(None);
        }
        Ok(())
    }

    async fn create(&self, request: CreateRequest) -> Result<Box<dyn Container>> {
        // runsc applies limits only to a cgroup that it made itself.
        request
            .cgroup
            .remove()
            .map_err(|e| Error::caused(ErrorKind::Failed, "hand the cgroup to runsc", e))?;
        let resources = request.spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
        let cpu = resources.and_then(|resources| resources.cpu().as_ref());
        if cpu.is_some_and(|cpu| cpu.cpus().is_some() || cpu.mems().is_some()) {
            request
                .cgroup
                .open_cpuset()
                .map_err(|e| Error::caused(ErrorKind::Failed, "prepare the cgroup's processors", e))?;
        }
        let mut program = self.program.clone();
        program.global.push(format!("--network={}", network_of(&request.spec)).into());
        runc::create(program, &self.reaper, OomRule::Sandbox, request).await
    }

    async fn clean(&self, id: &ContainerId, dir: &Path, cgroup: &Cgroup) -> Result<()> {
        container::delete(&self.program, &self.reaper, &Files::in_dir(dir), id, cgroup).await?;
        // A create that was cut short has no state yet, only the lock, which `delete` then leaves.
        match std::fs::remove_file(self.root.join(format!("{id}_sandbox:{id}.lock"))) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::caused(ErrorKind::Failed, format!("remove the lock of {id}"), e))
            }
            _ => Ok(()),
        }
    }
}
