//! The guest's init, which this program carries in itself, and the initramfs around it.
//!
//! ```text
//! <root>/guest/plain.img        for kernels that have their drivers in themselves
//! <root>/guest/<key>.img        with the modules that lie beside one kernel
//! <root>/guest/<name>.json      what it was made of: when that changes, it is made again
//! <root>/guest/beta9-init-…     the init for containers that are in no VM
//! ```
//!
//! An initramfs keeps its path for the life of the state directory, because containers' records name it; its contents are
//! those of the worker that starts the next VM.

use std::fs::{self, DirBuilder};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use beta9_types::{RuntimeKind, RuntimeSettings};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// The init as it was built, and its SHA-256.
struct Embedded {
    program: &'static [u8],
    digest: &'static str,
}

include!(concat!(env!("OUT_DIR"), "/vm_init.rs"));

/// The largest packed modules that are read: a stock kernel's are 2 MB.
const MAX_MODULES: u64 = 256 << 20;

/// What an initramfs was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct MadeOf {
    init: String,
    modules: Option<ModuleArchive>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ModuleArchive {
    path: PathBuf,
    identity: String,
}

/// Where the modules of a kernel are, packed, if it has its drivers in modules.
pub(crate) fn modules_beside(kernel: &Path) -> PathBuf {
    let mut name = kernel.as_os_str().to_owned();
    name.push(".modules");
    name.into()
}

/// The settings with an initramfs of this worker's own, where the runtime is one of VMs and none is configured.
///
/// A worker that was built without the init leaves them as they are: then the initramfs beside the kernel is meant.
pub(crate) fn complete(
    root: &Path,
    kind: RuntimeKind,
    settings: &RuntimeSettings,
) -> Result<RuntimeSettings> {
    let mut settings = settings.clone();
    let (kernel, initrd) = match kind {
        RuntimeKind::Firecracker => (&settings.firecracker_kernel, &mut settings.firecracker_initrd),
        RuntimeKind::Qemu => (&settings.qemu_kernel, &mut settings.qemu_initrd),
        RuntimeKind::Runc | RuntimeKind::Gvisor => return Ok(settings),
    };
    if initrd.is_none()
        && let Some(embedded) = EMBEDDED
    {
        *initrd = Some(make(root, &embedded, &modules_beside(kernel))?);
    }
    Ok(settings)
}

/// The init as a program of this machine, for containers of other runtimes that ask for one.
pub(crate) fn init_program(root: &Path) -> Result<Option<PathBuf>> {
    let Some(Embedded { program, digest }) = EMBEDDED else { return Ok(None) };
    let path = place(root).join(format!("beta9-init-{}", digest.get(..16).unwrap_or(digest)));
    if !path.exists() {
        let failed = |e| Error::internal(format!("write {}", path.display()), e);
        make_place(root).and_then(|()| write(&path, program, 0o555)).map_err(failed)?;
    }
    Ok(Some(path))
}

fn make_place(root: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(place(root))
}

/// What else to say where a VM did not boot: a stock kernel needs modules, and is easily put in place without them.
pub(crate) fn hint(kind: RuntimeKind, settings: &RuntimeSettings) -> Option<String> {
    let kernel = match kind {
        RuntimeKind::Firecracker => &settings.firecracker_kernel,
        _ => &settings.qemu_kernel,
    };
    let drivers = beta9_guest::Kernel::read(kernel).ok()?.drivers();
    let is_bare = drivers == beta9_guest::Drivers::Modules && !modules_beside(kernel).exists();
    is_bare.then(|| {
        format!(
            "; {} has its drivers in modules, and they are not beside it: `beta9-worker kernel install --from FILE` puts \
             a kernel there with its modules",
            kernel.display()
        )
    })
}

/// Makes those again that another version of this program made: containers that start later name them.
pub(crate) fn refresh(root: &Path) -> Result<()> {
    let Some(embedded) = EMBEDDED else { return Ok(()) };
    for entry in fs::read_dir(place(root)).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "json")
            && let Some(MadeOf { modules, .. }) = read(&path)
        {
            let modules = modules.map(|modules| modules.path);
            // A kernel that went away is missed when it is to be booted.
            if modules.as_deref().is_none_or(Path::exists) {
                make(root, &embedded, modules.as_deref().unwrap_or(Path::new("")))?;
            }
        }
    }
    Ok(())
}

fn place(root: &Path) -> PathBuf {
    root.join("guest")
}

fn read(path: &Path) -> Option<MadeOf> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// The initramfs of `embedded` and the modules at `modules`, if there are any.
fn make(root: &Path, embedded: &Embedded, modules: &Path) -> Result<PathBuf> {
    let archive = fs::metadata(modules).ok().filter(|metadata| metadata.is_file()).map(|m| ModuleArchive {
        path: modules.to_owned(),
        identity: format!("{}:{}:{}:{}.{}", m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec()),
    });
    let name = match &archive {
        Some(archive) => {
            let digest = Sha256::digest(archive.path.as_os_str().as_encoded_bytes());
            digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
        }
        None => "plain".to_owned(),
    };
    let (image, note) = (place(root).join(format!("{name}.img")), place(root).join(format!("{name}.json")));
    let made_of = MadeOf { init: embedded.digest.to_owned(), modules: archive };
    if image.exists() && read(&note).as_ref() == Some(&made_of) {
        return Ok(image);
    }
    let failed = |what: &str, path: &Path, e| Error::internal(format!("{what} {}", path.display()), e);
    let packed = match &made_of.modules {
        Some(ModuleArchive { path, .. }) => {
            let size = fs::metadata(path).map_err(|e| failed("look at", path, e))?.len();
            if size > MAX_MODULES {
                return Err(failed("read", path, std::io::Error::other("it is too big for packed modules")));
            }
            Some(fs::read(path).map_err(|e| failed("read", path, e))?)
        }
        None => None,
    };
    let bytes = beta9_guest::initramfs(embedded.program, packed.as_deref())
        .map_err(|e| Error::internal("pack an initramfs", e))?;
    make_place(root).map_err(|e| failed("create", &place(root), e))?;
    // First the image: what says that it is there comes last.
    write(&image, &bytes, 0o444).map_err(|e| failed("write", &image, e))?;
    let made_of = serde_json::to_vec(&made_of).map_err(|e| Error::internal("describe an initramfs", e))?;
    write(&note, &made_of, 0o444).map_err(|e| failed("write", &note, e))?;
    Ok(image)
}

/// Puts a file that nobody changes in place when it is whole.
pub(crate) fn write(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Pools that are set up side by side write the same file.
    static WRITES: AtomicU64 = AtomicU64::new(0);
    let number = WRITES.fetch_add(1, Ordering::Relaxed);
    let partial = directory.join(format!(".{name}.{}.{number}", std::process::id()));
    let write = || {
        let mut file = fs::File::create(&partial)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&partial);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Embedded = Embedded { program: b"init one", digest: "1" };
    const TWO: Embedded = Embedded { program: b"init two", digest: "2" };

    fn holds(image: &Path, text: &[u8]) -> bool {
        fs::read(image).unwrap().windows(text.len()).any(|bytes| bytes == text)
    }

    #[test]
    fn an_initramfs_is_made_once_and_again_when_its_parts_change() {
        let root = tempfile::tempdir().unwrap();
        let kernel = root.path().join("vmlinux");
        let plain = make(root.path(), &ONE, &modules_beside(&kernel)).unwrap();
        assert!(plain.ends_with("guest/plain.img") && holds(&plain, b"init one"));
        assert_eq!(plain.metadata().unwrap().mode() & 0o777, 0o444);
        let before = plain.metadata().unwrap().ino();
        assert_eq!(make(root.path(), &ONE, Path::new("")).unwrap(), plain);
        assert_eq!(plain.metadata().unwrap().ino(), before);
        assert_eq!(make(root.path(), &TWO, Path::new("")).unwrap(), plain);
        assert!(holds(&plain, b"init two"));

        fs::write(modules_beside(&kernel), "packed modules").unwrap();
        let modular = make(root.path(), &ONE, &modules_beside(&kernel)).unwrap();
        assert_ne!(modular, plain);
        assert!(holds(&modular, b"init one") && holds(&modular, b"packed modules"));
        fs::write(modules_beside(&kernel), "other modules").unwrap();
        assert_eq!(make(root.path(), &ONE, &modules_beside(&kernel)).unwrap(), modular);
        assert!(holds(&modular, b"other modules"));
        let names: Vec<_> = fs::read_dir(place(root.path())).unwrap().flatten().collect();
        assert_eq!(names.len(), 4, "nothing half-made is left");
    }

    #[test]
    fn files_are_written_side_by_side() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("one.img");
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| (0..50).try_for_each(|_| write(&path, b"whole", 0o444))))
                .collect();
            writers.into_iter().for_each(|writer| writer.join().unwrap().unwrap());
        });
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_configured_initramfs_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let settings =
            RuntimeSettings { firecracker_initrd: Some("/boot/initrd".into()), ..Default::default() };
        assert_eq!(complete(root.path(), RuntimeKind::Firecracker, &settings).unwrap(), settings);
        assert_eq!(complete(root.path(), RuntimeKind::Runc, &settings).unwrap(), settings);
        assert!(!place(root.path()).exists());
    }
}
