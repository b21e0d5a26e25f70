//! Containers on the host's kernel, by `runc` or another program with its command line.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use beta9_runtime::{
    Capabilities, Container, CreateRequest, Error, ErrorKind, Result, Rootfs, RootfsForm, Runtime,
    find_program,
};
use beta9_sys::cgroup::Cgroup;
use beta9_sys::reaper::Reaper;
use beta9_types::{ContainerId, Phase, RuntimeKind, RuntimeSettings};
use oci_spec::runtime::Spec;

use crate::container::{self, OciContainer, OomRule};
use crate::disks;
use crate::program::{Files, Program};

/// What `runc` can do.
pub const RUNC_CAPABILITIES: Capabilities = Capabilities {
    checkpoint_restore: false,
    gpu: false,
    oom_events: true,
    join_existing_netns: true,
    cdi: false,
};

/// The `runc` runtime.
pub struct Runc {
    bin: PathBuf,
    reaper: Reaper,
}

impl Runc {
    /// Finds the program; says what to do where it is missing. Returns the settings with its path filled in.
    pub fn find(settings: &RuntimeSettings) -> Result<RuntimeSettings> {
        let bin = find_program(&settings.runc_bin).ok_or_else(|| {
            let text = format!(
                "runc program {} was not found in PATH: install runc (Debian: apt-get install runc) or set runc_bin",
                settings.runc_bin.display()
            );
            Error::new(ErrorKind::Unavailable, text)
        })?;
        Ok(RuntimeSettings { runc_bin: bin, ..settings.clone() })
    }

    /// A runtime with the settings that [`Runc::find`] returned.
    pub fn new(settings: &RuntimeSettings, reaper: Reaper) -> Self {
        Self { bin: settings.runc_bin.clone(), reaper }
    }

    /// runc keeps its state beside the container's other files, so that one directory holds all there is of it.
    fn program(&self, dir: &Path) -> Program {
        Program { bin: self.bin.clone(), global: vec!["--root".into(), dir.join("runc").into()] }
    }
}

#[async_trait]
impl Runtime for Runc {
    fn kind(&self) -> RuntimeKind {
        RuntimeKind::Runc
    }

    fn capabilities(&self) -> Capabilities {
        RUNC_CAPABILITIES
    }

    fn rootfs_form(&self) -> RootfsForm {
        RootfsForm::Directory
    }

    fn prepare(&self, _: &mut Spec) -> Result<()> {
        Ok(())
    }

    async fn create(&self, request: CreateRequest) -> Result<Box<dyn Container>> {
        let program = self.program(&request.dir);
        create(program, &self.reaper, OomRule::ProcessInContainer, request).await
    }

    async fn clean(&self, id: &ContainerId, dir: &Path, cgroup: &Cgroup) -> Result<()> {
        container::delete(&self.program(dir), &self.reaper, &Files::in_dir(dir), id, cgroup).await
    }
}

/// The steps that runc and gVisor share.
pub(crate) async fn create(
    program: Program,
    reaper: &Reaper,
    oom: OomRule,
    request: CreateRequest,
) -> Result<Box<dyn Container>> {
    let CreateRequest { id, dir, mut spec, rootfs, mounts, stdio, cgroup, marks, disk, .. } = request;
    disks::add(&mut spec, &dir, disk)?;
    let Rootfs::Directory(root) = rootfs else {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "the program takes its root file system as a directory",
        ));
    };
    let files = Files::in_dir(&dir);
    let config = files.bundle().join("config.json");
    std::fs::create_dir_all(files.bundle())
        .map_err(|e| Error::caused(ErrorKind::Failed, format!("create {}", files.bundle().display()), e))?;
    spec.save(&config)
        .map_err(|e| Error::caused(ErrorKind::Failed, format!("write {}", config.display()), e))?;
    match program.create(reaper, &id, &files, stdio).await {
        Ok((pid, terminal)) => {
            marks.reach(Phase::Created);
            let ended = OciContainer::watch_exit(reaper, pid);
            let reaper = reaper.clone();
            let (terminal, verdict) = (terminal.map(Arc::new), None);
            Ok(Box::new(OciContainer {
                id,
                program,
                reaper,
                files,
                cgroup,
                oom,
                pid,
                root,
                mounts,
                directory: dir,
                ended,
                verdict,
                terminal,
            }))
        }
        Err(error) => {
            if let Err(left) = container::delete(&program, reaper, &files, &id, &cgroup).await {
                tracing::warn!(container = %id, error = left.chain(), "a failed create could not be undone");
            }
            Err(error)
        }
    }
}
