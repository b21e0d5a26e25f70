//! Debian's cloud kernel, unpacked but not installed: the image and its modules.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::debian;
use crate::process::{command, output, step};
use crate::project::Project;

/// One kernel, below the project's cache.
#[derive(Debug, Clone)]
pub(crate) struct DebianKernel {
    /// As `uname -r` prints it.
    pub(crate) version: String,
    /// The bzImage.
    pub(crate) image: PathBuf,
    /// `lib/modules/<version>`, with module dependencies computed.
    pub(crate) modules: PathBuf,
}

/// The current cloud kernel of this machine's Debian, fetched on first use and kept from then on.
pub(crate) fn cloud(project: &Project) -> Result<DebianKernel> {
    let base = project.cache().join("debian-kernel");
    if let Some(kernel) = cached(&base)? {
        return Ok(kernel);
    }
    let package = debian::resolve("linux-image-cloud-amd64", "linux-image-")?;
    let tree = base.join(&package);
    step(&format!("fetch {package}"), || {
        debian::unpack(&package, &tree)?;
        let kernel = in_tree(&tree)?;
        output(command("depmod", ["--basedir"]).arg(&tree).arg(&kernel.version))?;
        Ok(kernel)
    })
}

/// The kernel in a package file that somebody else made.
pub(crate) fn from_package(project: &Project, package: &Path) -> Result<DebianKernel> {
    let name = package.file_stem().with_context(|| format!("{} is no package", package.display()))?;
    let tree = project.cache().join("given-kernel").join(name);
    if !tree.exists() {
        debian::unpack_file(package, &tree)?;
    }
    in_tree(&tree)
}

fn cached(base: &Path) -> Result<Option<DebianKernel>> {
    let Ok(entries) = fs::read_dir(base) else { return Ok(None) };
    let mut trees: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    trees.sort();
    let complete = |kernel: &DebianKernel| kernel.modules.join("modules.dep").exists();
    let kernels = trees.iter().filter(|tree| is_kernel(tree)).map(|tree| in_tree(tree));
    Ok(kernels.collect::<Result<Vec<_>>>()?.into_iter().rfind(complete))
}

fn is_kernel(tree: &Path) -> bool {
    // Beside them lie the temporary directories of fetches that were cut short.
    tree.file_name().is_some_and(|name| name.to_string_lossy().starts_with("linux-image-"))
}

fn in_tree(tree: &Path) -> Result<DebianKernel> {
    let all = tree.join("lib/modules");
    let mut versions = fs::read_dir(&all).with_context(|| format!("cannot read {}", all.display()))?;
    let version = versions.next().with_context(|| format!("no kernel modules in {}", all.display()))??;
    let version = version.file_name().to_string_lossy().into_owned();
    let image = tree.join("boot").join(format!("vmlinuz-{version}"));
    let modules = all.join(&version);
    Ok(DebianKernel { version, image, modules })
}

impl DebianKernel {
    /// The files to load, in order, so that `module` and what it needs are there. Built-in ones need none.
    pub(crate) fn load_order(&self, module: &str) -> Result<Vec<PathBuf>> {
        let base = self.modules.ancestors().nth(3).context("modules lie below lib/modules")?;
        let shown = output(command("modprobe", ["--show-depends", "--dirname"]).arg(base).args([
            "--set-version",
            &self.version,
            module,
        ]))?;
        Ok(shown.lines().filter_map(|line| Some(line.strip_prefix("insmod ")?.trim().into())).collect())
    }
}
