//! Which modules of a packaged kernel a guest needs, and the order to load them in.
//!
//! The dependencies are read from the modules themselves (`depends=` and `softdep=pre:` in their `.modinfo`): a package
//! that was never installed has no `modules.dep`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// What a guest's init asks for, and the module that serves it: transports and devices of the engines, file systems of
/// root, layer and shares.
const WANTED: [(&str, &str); 11] = [
    ("virtio_mmio", "virtio_mmio"),
    ("virtio_pci", "virtio_pci"),
    ("vsock", "vmw_vsock_virtio_transport"),
    ("virtio_blk", "virtio_blk"),
    ("virtio_net", "virtio_net"),
    ("virtio_rng", "virtio_rng"),
    ("overlay", "overlay"),
    ("erofs", "erofs"),
    ("squashfs", "squashfs"),
    ("ext4", "ext4"),
    ("fuse", "fuse"),
];

/// One purpose, and the files of the modules for it, each after those it needs itself.
pub(crate) struct Purpose {
    pub(crate) name: &'static str,
    pub(crate) files: Vec<PathBuf>,
}

/// The modules of one kernel.
pub(crate) struct Modules {
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

impl Modules {
    /// Finds the modules below `lib/modules/VERSION`.
    pub(crate) fn of(directory: &Path) -> Result<Self> {
        let list = directory.join("modules.builtin");
        let builtin = fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
        let builtin = builtin.lines().map(|line| module_name(Path::new(line))).collect();
        let mut files = BTreeMap::new();
        let mut directories = vec![directory.join("kernel")];
        while let Some(directory) = directories.pop() {
            let entries =
                fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
            for path in entries.flatten().map(|entry| entry.path()) {
                if path.is_dir() {
                    directories.push(path);
                } else if path.extension().is_some_and(|extension| extension == "ko") {
                    files.insert(module_name(&path), path);
                }
            }
        }
        Ok(Self { files, builtin })
    }

    /// The modules a guest may need, by purpose. A purpose that the kernel serves without modules has none.
    pub(crate) fn for_guest(&self) -> Result<Vec<Purpose>> {
        let purpose = |(name, module)| {
            let mut files = Vec::new();
            self.add(module, &mut files)?;
            Ok(Purpose { name, files })
        };
        WANTED.into_iter().map(purpose).collect()
    }

    fn add(&self, name: &str, order: &mut Vec<PathBuf>) -> Result<()> {
        let name = name.replace('-', "_");
        if self.builtin.contains(&name) {
            return Ok(());
        }
        let file = self.files.get(&name).with_context(|| format!("this kernel has no module {name}"))?;
        if order.contains(file) {
            return Ok(());
        }
        let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let (needed, wished) = dependencies(&bytes);
        for needed in needed {
            self.add(&needed, order)?;
        }
        // A soft dependency may be an alias, or not built at all: the module works without it.
        for wished in wished.iter().filter(|name| self.files.contains_key(*name)) {
            self.add(wished, order)?;
        }
        order.push(file.clone());
        Ok(())
    }
}

fn module_name(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().replace('-', "_")
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

    #[test]
    fn dependencies_come_first_and_builtin_modules_not_at_all() {
        let directory = std::env::temp_dir().join(format!("xtask-modules-{}", std::process::id()));
        let kernel = directory.join("kernel/deep");
        fs::create_dir_all(&kernel).unwrap();
        let module = |name: &str, info: &[u8]| fs::write(kernel.join(name), info).unwrap();
        module(
            "top-one.ko",
            b"\x7fELF\0license=GPL\0depends=middle,builtin_one\0softdep=pre: soft crypto-alias post: late\0",
        );
        module("middle.ko", b"\0depends=\0");
        module("soft.ko", b"\0depends=middle\0");
        fs::write(directory.join("modules.builtin"), "kernel/builtin-one.ko\n").unwrap();
        let modules = Modules::of(&directory).unwrap();
        let mut order = Vec::new();
        modules.add("top_one", &mut order).unwrap();
        modules.add("builtin-one", &mut order).unwrap();
        let names: Vec<_> = order.iter().map(|path| module_name(path)).collect();
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(names, ["middle", "soft", "top_one"]);
    }
}
