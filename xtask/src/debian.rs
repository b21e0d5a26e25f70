//! Debian's packages: what is installed, installing what is missing, fetching a package without installing it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::process::{command, output, step};

/// Refuses, in one sentence, on a machine where packages cannot be installed.
pub(crate) fn require_root_on_debian() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("this needs root: it installs packages and mounts file systems; run it again as root");
    }
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let field = |name: &str| {
        let value = release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or("unknown").trim_matches('"').to_owned()
    };
    if field("ID") != "debian" {
        bail!("this knows Debian's packages only and found {}: run it on Debian 12", field("PRETTY_NAME"));
    }
    Ok(())
}

/// Installs those of `packages` that are missing. Quick when none is.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let missing = missing(packages)?;
    if missing.is_empty() {
        return Ok(());
    }
    step("update the package lists", || output(&mut apt("update", &[])).map(drop))?;
    step(&format!("install {}", missing.join(" ")), || {
        output(apt("install", &["-y", "--no-install-recommends"]).args(&missing)).map(drop)
    })
}

fn missing<'a>(packages: &[&'a str]) -> Result<Vec<&'a str>> {
    // It exits 1 when it knows nothing of a package, which is one of the answers here.
    let known = command("dpkg-query", ["-W", "-f=${Package} ${db:Status-Status}\n"])
        .args(packages)
        .output()
        .context("cannot run dpkg-query")?;
    let known = String::from_utf8_lossy(&known.stdout);
    let installed = |package: &str| known.lines().any(|line| line == format!("{package} installed"));
    Ok(packages.iter().copied().filter(|package| !installed(package)).collect())
}

fn apt(action: &str, options: &[&str]) -> Command {
    let mut apt = command("apt-get", ["-q", "-o", "Acquire::Retries=3", "-o", "DPkg::Lock::Timeout=120"]);
    apt.env("DEBIAN_FRONTEND", "noninteractive").arg(action).args(options);
    apt
}

/// The package that a meta package currently stands for: its first dependency that begins with `prefix`.
pub(crate) fn resolve(meta_package: &str, prefix: &str) -> Result<String> {
    let find = || -> Result<Option<String>> {
        let depends = output(&mut command("apt-cache", ["depends", "--important", meta_package]))?;
        let name = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
        Ok(name.filter(|name| name.starts_with(prefix)).map(str::to_owned))
    };
    if let Ok(Some(name)) = find() {
        return Ok(name);
    }
    // A machine that was just made has no package lists yet.
    step("update the package lists", || output(&mut apt("update", &[])).map(drop))?;
    find()?.with_context(|| format!("package {meta_package} names no {prefix}* package"))
}

/// Fetches a package, checked by apt, and unpacks it into the new directory `into`.
pub(crate) fn unpack(package: &str, into: &Path) -> Result<()> {
    let staging = staging_beside(into)?;
    unpack_file(&fetch(package, staging.path())?, into)
}

/// Fetches a package, checked by apt, into the empty directory `into`.
pub(crate) fn fetch(package: &str, into: &Path) -> Result<PathBuf> {
    let mut fetch = apt("download", &[package]);
    if output(fetch.current_dir(into)).is_err() {
        // The lists may name a version that the archive no longer has.
        output(&mut apt("update", &[]))?;
        output(&mut fetch)?;
    }
    only_file(into)
}

/// Unpacks a package file into the new directory `into`.
pub(crate) fn unpack_file(file: &Path, into: &Path) -> Result<()> {
    let staging = staging_beside(into)?;
    let tree = staging.path().join("tree");
    output(command("dpkg-deb", ["--extract"]).arg(file).arg(&tree))?;
    fs::rename(&tree, into).with_context(|| format!("cannot move a package's files to {}", into.display()))
}

fn staging_beside(directory: &Path) -> Result<TempDir> {
    let parent = directory.parent().context("a package is unpacked into a directory of its own")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    tempfile::tempdir_in(parent).with_context(|| format!("cannot make a directory in {}", parent.display()))
}

fn only_file(directory: &Path) -> Result<PathBuf> {
    let mut entries = fs::read_dir(directory)?;
    let first = entries.next().context("apt-get download left no file")??;
    Ok(first.path())
}

/// Where this machine's apt gets the suite `suite` of Debian from; debootstrap has a place of its own where it says none.
pub(crate) fn mirror(suite: &str) -> Option<String> {
    let known = output(&mut command("apt-get", ["indextargets", "--format", "$(RELEASE) $(REPO_URI)"]));
    let known = known.unwrap_or_default();
    let found = known.lines().find_map(|line| line.strip_prefix(suite)?.strip_prefix(' '));
    found.map(|mirror| mirror.trim_end_matches('/').to_owned())
}
