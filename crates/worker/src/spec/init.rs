//! `--init`: a small process that runs the command, passes signals on to it and reaps what it orphans.

use std::path::{Path, PathBuf};

use beta9_runtime::find_program;
use beta9_types::RuntimeSettings;
use oci_spec::runtime::{MountBuilder, Spec};

use super::Place;
use crate::error::{Error, ErrorKind, Result};
use crate::guest;

/// Where it is in a container.
const TARGET: &str = "/sbin/beta9-init";
/// What tells a microVM's guest, which has one of its own.
const ANNOTATION: &str = "dev.beta9.init";

/// Puts an init before the process of `spec`.
pub(super) fn add(spec: &mut Spec, place: &Place<'_>) -> Result<()> {
    if place.runtime.is_microvm() {
        spec.annotations_mut().get_or_insert_default().insert(ANNOTATION.to_owned(), "true".to_owned());
        return Ok(());
    }
    let program = guest::init_program(place.root)?.or_else(|| find(place.settings)).ok_or_else(|| {
        let text = "--init needs an init program, which this worker was built without: build it after \
                    `cargo xtask guest`, or install one (Debian: apt-get install tini)";
        Error::new(ErrorKind::Precondition, text)
    })?;
    let mount = MountBuilder::default()
        .destination(TARGET)
        .typ("bind")
        .source(program)
        .options(vec!["rbind".to_owned(), "rprivate".to_owned(), "ro".to_owned()])
        .build()
        .map_err(|e| Error::internal("mount the init", e))?;
    spec.mounts_mut().get_or_insert_default().push(mount);
    if let Some(process) = spec.process_mut() {
        let args = process.args().clone().unwrap_or_default();
        let before = [TARGET.to_owned(), "--".to_owned()];
        process.set_args(Some(before.into_iter().chain(args).collect()));
    }
    Ok(())
}

/// The guest's own, which is static; else one that docker or podman would take, if it is static.
fn find(settings: &RuntimeSettings) -> Option<PathBuf> {
    let kernels = [&settings.firecracker_kernel, &settings.qemu_kernel];
    let beside = kernels.into_iter().filter_map(|kernel| Some(kernel.parent()?.join("beta9-vm-init")));
    let in_path = ["docker-init", "tini-static", "catatonit"].map(|name| find_program(Path::new(name)));
    beside
        .chain(in_path.into_iter().flatten())
        .filter_map(|path| path.canonicalize().ok())
        .find(|path| is_static(path))
}

/// Whether a program of this machine's kind needs no interpreter, which an image may not have.
fn is_static(path: &Path) -> bool {
    use std::os::unix::fs::FileExt;
    const SEGMENTS: usize = 64;
    const INTERPRETER: u32 = 3;
    let read = || -> Option<bool> {
        let file = std::fs::File::open(path).ok()?;
        let mut header = [0; 64];
        file.read_exact_at(&mut header, 0).ok()?;
        if header[..5] != *b"\x7fELF\x02" {
            return Some(false);
        }
        let offset = u64::from_le_bytes(header[32..40].try_into().ok()?);
        let (size, count) =
            (u16::from_le_bytes([header[54], header[55]]), u16::from_le_bytes([header[56], header[57]]));
        for index in 0..u64::from(count).min(SEGMENTS as u64) {
            let mut kind = [0; 4];
            file.read_exact_at(&mut kind, offset + index * u64::from(size)).ok()?;
            if u32::from_le_bytes(kind) == INTERPRETER {
                return Some(false);
            }
        }
        Some(true)
    };
    read().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_with_an_interpreter_and_other_files_are_not_static() {
        assert!(!is_static(Path::new("/bin/sh")));
        assert!(!is_static(Path::new("/etc/passwd")));
        assert!(!is_static(Path::new("/does/not/exist")));
    }
}
