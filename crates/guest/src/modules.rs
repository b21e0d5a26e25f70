//! Which modules of a kernel a guest needs, and the order to load them in.
//!
//! The dependencies are read from the modules themselves (`depends=` and `softdep=pre:` in their `.modinfo`): a package
//! that was never installed has no `modules.dep`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::unpack;

/// Whether a guest does without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// Nothing runs without it.
    Required,
    /// Some images, mounts or devices do not work without it.
    Wished,
}

/// What a guest's init asks for, and the module that serves it: transports and devices of the engines, file systems of
/// root, layer and shares.
const WANTED: [(&str, &str, Need); 12] = [
    ("virtio_mmio", "virtio_mmio", Need::Required),
    ("virtio_pci", "virtio_pci", Need::Wished),
    ("vsock", "vmw_vsock_virtio_transport", Need::Required),
    ("virtio_blk", "virtio_blk", Need::Required),
    ("virtio_net", "virtio_net", Need::Wished),
    ("virtio_rng", "virtio_rng", Need::Wished),
    ("virtio_balloon", "virtio_balloon", Need::Wished),
    ("overlay", "overlay", Need::Required),
    ("erofs", "erofs", Need::Wished),
    ("squashfs", "squashfs", Need::Wished),
    ("ext4", "ext4", Need::Required),
    ("fuse", "fuse", Need::Wished),
];

/// Directories below the kernel's that are looked into; links are not followed.
const MAX_DIRECTORIES: usize = 20_000;

/// One purpose, and the modules for it, each after those it needs itself.
#[derive(Debug, Clone)]
pub struct Purpose {
    /// What the guest's init calls it.
    pub name: &'static str,
    pub(crate) files: Vec<ModuleFile>,
}

/// A module on this machine, and its name in a guest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ModuleFile {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

/// The modules of one kernel.
pub struct Modules {
    directory: PathBuf,
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

impl Modules {
    /// Finds the modules below `lib/modules/VERSION`.
    pub fn of(directory: &Path) -> Result<Self> {
        let list = directory.join("modules.builtin");
        let builtin = fs::read_to_string(&list).map_err(|e| Error::file("read", &list, e))?;
        let builtin = builtin.lines().map(|line| module_name(Path::new(line))).collect();
        let mut files = BTreeMap::new();
        let mut directories = vec![directory.join("kernel")];
        for _ in 0..MAX_DIRECTORIES {
            let Some(directory) = directories.pop() else { break };
            let entries = fs::read_dir(&directory).map_err(|e| Error::file("read", &directory, e))?;
            for entry in entries.flatten() {
                let path = entry.path();
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    directories.push(path);
                } else if is_module(&path) {
                    files.insert(module_name(&path), path);
                }
            }
        }
        Ok(Self { directory: directory.to_owned(), files, builtin })
    }

    /// The modules a guest may need, by purpose, and the purposes that this kernel does not serve. A purpose that it
    /// serves without modules has none.
    pub fn for_guest(&self) -> Result<(Vec<Purpose>, Vec<&'static str>)> {
        let (mut purposes, mut missing) = (Vec::new(), Vec::new());
        for (name, module, need) in WANTED {
            let mut files = Vec::new();
            match (self.add(module, &mut files), need) {
                (Ok(()), _) => purposes.push(Purpose { name, files }),
                (Err(error), Need::Wished) if error.kind() == ErrorKind::Missing => missing.push(name),
                (Err(error), _) => return Err(error),
            }
        }
        Ok((purposes, missing))
    }

    fn add(&self, name: &str, order: &mut Vec<ModuleFile>) -> Result<()> {
        let name = name.replace('-', "_");
        if self.builtin.contains(&name) {
            return Ok(());
        }
        let missing = || {
            let text = format!("{} has no module {name}, which a guest needs", self.directory.display());
            Error::new(ErrorKind::Missing, text)
        };
        let path = self.files.get(&name).ok_or_else(missing)?;
        if order.iter().any(|file| file.path == *path) {
            return Ok(());
        }
        let (needed, wished) = dependencies(&read_module(path)?);
        for needed in needed {
            self.add(&needed, order)?;
        }
        // A soft dependency may be an alias, or not built at all: the module works without it.
        for wished in wished.iter().filter(|name| self.files.contains_key(*name)) {
            self.add(wished, order)?;
        }
        order.push(ModuleFile { name: format!("{name}.ko"), path: path.clone() });
        Ok(())
    }
}

/// A module, unpacked: not every kernel can do that itself.
pub(crate) fn read_module(path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(path).map_err(|e| Error::file("read", path, e))?;
    unpack::elf(&bytes, unpack::MAX_MODULE).map_err(|e| e.of(path))
}

fn is_module(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    [".ko", ".ko.gz", ".ko.xz", ".ko.zst"].iter().any(|ending| name.ends_with(ending))
}

fn module_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split_once(".ko").map_or(&*name, |(name, _)| name).replace('-', "_")
}

/// What a module's `.modinfo` says it needs before itself, and what it would like to have before itself.
fn dependencies(module: &[u8]) -> (Vec<String>, Vec<String>) {
    let (mut needed, mut wished) = (Vec::new(), Vec::new());
    for text in module.split(|&byte| byte == 0).filter_map(|bytes| std::str::from_utf8(bytes).ok()) {
        if let Some(names) = text.strip_prefix("depends=") {
            needed.extend(names.split(',').filter(|name| !name.is_empty()).map(str::to_owned));
        } else if let Some(names) = text.strip_prefix("softdep=pre:") {
            let names = names.split_whitespace().take_while(|name| *name != "post:");
            wished.extend(names.map(|name| name.replace('-', "_")));
        }
    }
    (needed, wished)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(order: &[ModuleFile]) -> Vec<&str> {
        order.iter().map(|file| file.name.as_str()).collect()
    }

    #[test]
    fn dependencies_come_first_and_builtin_modules_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let kernel = directory.path().join("kernel/deep");
        fs::create_dir_all(&kernel).unwrap();
        let module = |name: &str, info: &[u8]| fs::write(kernel.join(name), info).unwrap();
        module(
            "top-one.ko",
            b"\x7fELF\0license=GPL\0depends=middle,builtin_one\0softdep=pre: soft crypto-alias post: late\0",
        );
        let packed = zstd::stream::encode_all(&b"\x7fELF\0depends=\0"[..], 1).unwrap();
        module("middle.ko.zst", &packed);
        module("soft.ko", b"\x7fELF\0depends=middle\0");
        fs::write(directory.path().join("modules.builtin"), "kernel/builtin-one.ko\n").unwrap();
        let modules = Modules::of(directory.path()).unwrap();
        let mut order = Vec::new();
        modules.add("top_one", &mut order).unwrap();
        modules.add("builtin-one", &mut order).unwrap();
        assert_eq!(names(&order), ["middle.ko", "soft.ko", "top_one.ko"]);
        assert!(read_module(&order[0].path).unwrap().starts_with(b"\x7fELF"));
    }

    #[test]
    fn what_a_guest_can_do_without_may_be_missing_and_the_rest_not() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("kernel")).unwrap();
        let builtin = |names: &[&str]| {
            let lines: String = names.iter().map(|name| format!("kernel/{name}.ko\n")).collect();
            fs::write(directory.path().join("modules.builtin"), lines).unwrap();
            Modules::of(directory.path()).unwrap().for_guest()
        };
        let required = ["virtio_mmio", "vmw_vsock_virtio_transport", "virtio_blk", "overlay", "ext4"];
        let (purposes, missing) = builtin(&required).unwrap();
        assert_eq!(purposes.len(), required.len());
        assert_eq!(
            missing,
            ["virtio_pci", "virtio_net", "virtio_rng", "virtio_balloon", "erofs", "squashfs", "fuse"]
        );
        let error = builtin(&required[1..]).map(drop).unwrap_err();
        assert!(error.to_string().contains("has no module virtio_mmio"), "{error}");
    }
}
