//! Programs of a VM that see of the host only what they need.
//!
//! ```text
//! supervisor ──spawn, in new mount, network and IPC namespaces──▶ beta9-worker confine ──exec──▶ qemu, vhost-device-vsock
//!                                                                   │                              (a user of its own, in a
//!                                                                   │                               root of its own)
//!                                                                   └──exec──▶ jailer ──exec──▶ firecracker
//! ```
//!
//! What the program is shown is mounted into its root, in its own mount namespace: shared files read-only, whoever may
//! write to them on the host. Nothing is copied or changed, nothing of it shows outside, and all of it goes when the
//! program ends. For QEMU the root is made here; for Firecracker it is the jail, which the jailer changes into.

mod enter;
mod system_calls;

use std::path::{Path, PathBuf};
use std::process::Command;

use beta9_runtime::{Error, ErrorKind, Result};
use beta9_sys::command::{CommandExtra, Namespace};
use serde::{Deserialize, Serialize};

use crate::OwnProgram;
use crate::engine::{Host, VmUser};

pub use enter::enter;

/// The directory of the VM that a confined program works in, as it sees it.
pub(crate) const WORKPLACE: &str = "/run";

/// What a program is started with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Confinement {
    pub(crate) root: Root,
    pub(crate) shown: Vec<Shown>,
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
}

/// What the program's root is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Root {
    /// An empty one, mounted at an empty directory, which the program is put into with no rights.
    New {
        at: PathBuf,
        /// Whom it runs as: user and group have this number.
        user: u32,
        devices: Vec<Device>,
        limits: Limits,
    },
    /// The root of somebody who changes into it later. The program itself is run as it is.
    Existing(PathBuf),
}

/// Something of the host that appears in the root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shown {
    /// On the host.
    pub(crate) source: PathBuf,
    /// Below the root, without a leading slash.
    pub(crate) target: PathBuf,
    pub(crate) rights: Rights,
}

/// What may be done with something that is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Rights {
    Read,
    /// Read and execute: programs and their libraries.
    Execute,
    /// Whatever the file's own mode says.
    Write,
}

/// A device that the program gets a node for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Device {
    Null,
    Urandom,
    Kvm,
    Tun,
}

/// Resource limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limits {
    /// Open files.
    pub(crate) files: u64,
    /// Bytes of the largest file, the guest's memory included.
    pub(crate) file_bytes: u64,
}

impl Shown {
    pub(crate) fn read(source: &Path, target: &str) -> Self {
        Self { source: source.to_owned(), target: target.into(), rights: Rights::Read }
    }

    pub(crate) fn write(source: &Path, target: &str) -> Self {
        Self { source: source.to_owned(), target: target.into(), rights: Rights::Write }
    }

    /// At the place that it has on the host.
    pub(crate) fn execute(source: &Path) -> Self {
        let target = source.strip_prefix("/").unwrap_or(source).to_owned();
        Self { source: source.to_owned(), target, rights: Rights::Execute }
    }
}

impl Confinement {
    /// The command that becomes the program. It gets namespaces of its own; the network namespace is the container's
    /// where it has one, which spawning it sees to, else an empty one.
    pub(crate) fn command(&self, this: &OwnProgram, host: &Host) -> Result<Command> {
        let text = serde_json::to_string(self).map_err(|e| {
            let text = format!("describe the confinement of {}", self.program.display());
            Error::caused(ErrorKind::Failed, text, e)
        })?;
        let mut command = this.command("confine");
        command.arg(text).env_clear().current_dir("/");
        command.unshare(&[Namespace::Mount, Namespace::Ipc]);
        if host.network.is_none() {
            command.unshare(&[Namespace::Network]);
        }
        Ok(command)
    }
}

/// What a program needs of the system to be executed: itself and, unless it is static, every directory of libraries.
/// These hold what distributions ship, and nothing of this host's own.
pub(crate) fn needs(program: &Path, kind: Linkage) -> Vec<Shown> {
    let mut needs = vec![Shown::execute(program)];
    if kind == Linkage::Static {
        return needs;
    }
    let own = program.parent().and_then(Path::parent).filter(|prefix| *prefix != Path::new("/"));
    let own = own.map(|prefix| ["lib", "lib64"].map(|name| prefix.join(name)));
    let libraries = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache"].map(PathBuf::from);
    for path in libraries.into_iter().chain(own.into_iter().flatten()) {
        if path.exists() && needs.iter().all(|known| known.source != path) {
            needs.push(Shown::execute(&path));
        }
    }
    needs
}

/// How a program finds its libraries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Linkage {
    /// It has none.
    Static,
    /// An interpreter loads them.
    Dynamic,
}

impl Linkage {
    /// Looks into an ELF file (ELF-64, little-endian: gabi "Program Header").
    pub(crate) fn of(program: &Path) -> Result<Self> {
        use std::os::unix::fs::FileExt;
        const INTERPRETER: u32 = 3;
        let failed = |e| crate::failed("read", program, e);
        let foreign = || {
            let text = format!("{} is not an ELF program for 64 bits", program.display());
            Error::new(ErrorKind::Unavailable, text)
        };
        let file = std::fs::File::open(program).map_err(|e| crate::failed("open", program, e))?;
        let mut header = [0; 64];
        file.read_exact_at(&mut header, 0).map_err(|_| foreign())?;
        if !header.starts_with(b"\x7fELF\x02\x01") {
            return Err(foreign());
        }
        let half = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let mut offset = [0; 8];
        offset.copy_from_slice(&header[32..40]);
        let (start, size, count) = (u64::from_le_bytes(offset), u64::from(half(54)), u64::from(half(56)));
        for index in 0..count {
            let mut kind = [0; 4];
            file.read_exact_at(&mut kind, start.saturating_add(index * size)).map_err(failed)?;
            if u32::from_le_bytes(kind) == INTERPRETER {
                return Ok(Self::Dynamic);
            }
        }
        Ok(Self::Static)
    }
}

/// Names the user in a new root.
pub(crate) fn new_root(at: &Path, user: VmUser, devices: Vec<Device>, limits: Limits) -> Root {
    Root::New { at: at.to_owned(), user: user.number(), devices, limits }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linkage_is_told_from_the_file() {
        assert_eq!(Linkage::of(Path::new("/bin/sh")).unwrap(), Linkage::Dynamic);
        if Path::new("/bin/busybox").exists() {
            // busybox-static; Debian's other busybox is not.
            assert!(Linkage::of(Path::new("/bin/busybox")).is_ok());
        }
        let script = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(script.path(), "#!/bin/sh\n").unwrap();
        assert!(Linkage::of(script.path()).unwrap_err().to_string().contains("not an ELF program"));
    }

    #[test]
    fn a_static_program_needs_itself_alone() {
        assert_eq!(needs(Path::new("/opt/x/bin/p"), Linkage::Static).len(), 1);
        let needs = needs(Path::new("/usr/bin/p"), Linkage::Dynamic);
        assert_eq!(needs.iter().filter(|shown| shown.source == Path::new("/usr/lib")).count(), 1);
        assert!(needs.iter().all(|shown| shown.target.is_relative() && shown.rights == Rights::Execute));
    }
}
