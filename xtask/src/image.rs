//! Two real images to run containers from, made of Debian's packages: Debian with Python, and a small busybox.
//!
//! Each is made once and kept as a plain root file system (`<name>.tar`) and as an OCI layout (`<name>/`, tag
//! `latest`). The tar is made so that equal content gives equal bytes: sorted, without times.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::debian;
use crate::process::{command, output, step};
use crate::project::Project;

/// The release that the Debian image is made of.
const SUITE: &str = "bookworm";

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// One image in the cache.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    /// Its root file system.
    pub(crate) tar: PathBuf,
    /// The same as an OCI layout with one image, tagged `latest`.
    pub(crate) layout: PathBuf,
}

/// All images.
#[derive(Debug, Clone)]
pub(crate) struct Images {
    /// Debian 12 with Python 3.
    pub(crate) debian: Image,
    /// busybox, its applets and a few users.
    pub(crate) busybox: Image,
}

/// Makes the images that are missing.
pub(crate) fn all(project: &Project) -> Result<Images> {
    let base = project.cache().join("images");
    fs::create_dir_all(&base).with_context(|| format!("cannot make {}", base.display()))?;
    Ok(Images {
        debian: image(&base, &format!("debian-{SUITE}-python3"), "python3", debian_tree)?,
        busybox: image(&base, "busybox", "/bin/sh", busybox_tree)?,
    })
}

fn image(base: &Path, name: &str, program: &str, fill: fn(&Path) -> Result<()>) -> Result<Image> {
    let image = Image { tar: base.join(format!("{name}.tar")), layout: base.join(name) };
    if !image.tar.exists() {
        step(&format!("make image {name}"), || {
            let staging = tempfile::tempdir_in(base)?;
            let tree = staging.path().join("tree");
            fs::create_dir(&tree)?;
            fs::set_permissions(&tree, fs::Permissions::from_mode(0o755))?;
            fill(&tree)?;
            let tar = staging.path().join("tar");
            pack(&tree, &tar)?;
            fs::rename(&tar, &image.tar).map_err(Into::into)
        })?;
    }
    if !image.layout.exists() {
        step(&format!("make OCI layout {name}"), || {
            let staging = tempfile::tempdir_in(base)?;
            let layout = staging.path().join("layout");
            write_layout(&layout, &image.tar, program)?;
            fs::rename(&layout, &image.layout).map_err(Into::into)
        })?;
    }
    Ok(image)
}

fn pack(tree: &Path, tar: &Path) -> Result<()> {
    let options = ["--create", "--sort=name", "--mtime=@0", "--numeric-owner", "--file"];
    output(command("tar", options).arg(tar).arg("--directory").arg(tree).arg(".")).map(drop)
}

fn write_layout(layout: &Path, tar: &Path, program: &str) -> Result<()> {
    let tagged = format!("{}:latest", layout.display());
    output(command("umoci", ["init", "--layout"]).arg(layout))?;
    output(&mut command("umoci", ["new", "--image", &tagged]))?;
    output(command("umoci", ["raw", "add-layer", "--image", &tagged]).arg(tar))?;
    let config = ["config", "--image", &tagged, "--config.env", PATH, "--config.cmd", program];
    output(&mut command("umoci", config))?;
    output(command("umoci", ["gc", "--layout"]).arg(layout)).map(drop)
}

/// Parts of a Debian tree that no container needs: package lists and archives, documents, translations, logs.
const UNNEEDED: &[&str] = &[
    "var/cache/apt",
    "var/lib/apt/lists",
    "var/log",
    "usr/share/doc",
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/lintian",
    "dev",
];

/// Debian's smallest system as its installer leaves it, documents, translations, devices and all.
pub(crate) fn debian_minbase(tree: &Path) -> Result<()> {
    output(command("debootstrap", ["--variant=minbase", SUITE]).arg(tree).args(debian::mirror(SUITE)))?;
    empty(&tree.join("var/cache/apt"))
}

fn debian_tree(tree: &Path) -> Result<()> {
    let options = ["--variant=minbase", "--include=python3", SUITE];
    output(command("debootstrap", options).arg(tree).args(debian::mirror(SUITE)))?;
    for directory in UNNEEDED {
        empty(&tree.join(directory))?;
    }
    // They differ from one making to the next, and name the machine that made them.
    for file in ["etc/hostname", "etc/resolv.conf", "etc/machine-id"] {
        fs::write(tree.join(file), "").with_context(|| format!("cannot empty {file}"))?;
    }
    add_users(tree)?;
    let home = tree.join("home/app");
    fs::create_dir(&home)?;
    own_by_app(&home)
}

fn empty(directory: &Path) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        let removed = if path.is_dir() && !path.is_symlink() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

fn busybox_tree(tree: &Path) -> Result<()> {
    for directory in ["bin", "dev", "etc", "home/app", "proc", "root", "run", "sys", "tmp", "usr", "var"] {
        fs::create_dir_all(tree.join(directory))?;
    }
    for usual in ["sbin", "usr/bin", "usr/sbin"] {
        symlink("/bin", tree.join(usual))?;
    }
    fs::set_permissions(tree.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::copy("/bin/busybox", tree.join("bin/busybox"))
        .context("cannot copy /bin/busybox; package busybox-static has it")?;
    for applet in output(&mut command("/bin/busybox", ["--list"]))?.lines() {
        if applet != "busybox" {
            symlink("busybox", tree.join("bin").join(applet))?;
        }
    }
    fs::write(tree.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(tree.join("etc/group"), "root:x:0:\n")?;
    add_users(tree)?;
    own_by_app(&tree.join("home/app"))
}

/// `app`, user and group 1000, who is also in the group `extra`, 2000.
fn add_users(tree: &Path) -> Result<()> {
    append(&tree.join("etc/passwd"), "app:x:1000:1000:app:/home/app:/bin/sh\n")?;
    append(&tree.join("etc/group"), "app:x:1000:\nextra:x:2000:app\n")
}

fn own_by_app(home: &Path) -> Result<()> {
    chown(home, Some(1000), Some(1000)).with_context(|| format!("cannot chown {}", home.display()))
}

fn append(file: &Path, lines: &str) -> Result<()> {
    let mut text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    text.push_str(lines);
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_a_tree_twice_gives_the_same_bytes() {
        let work = tempfile::tempdir().unwrap();
        let tree = work.path().join("tree");
        fs::create_dir_all(tree.join("b")).unwrap();
        fs::write(tree.join("a"), "1").unwrap();
        let (first, second) = (work.path().join("1.tar"), work.path().join("2.tar"));
        pack(&tree, &first).unwrap();
        // A new file has a new time, and its place in the directory may differ.
        fs::remove_file(tree.join("a")).unwrap();
        fs::write(tree.join("a"), "1").unwrap();
        pack(&tree, &second).unwrap();
        assert_eq!(fs::read(first).unwrap(), fs::read(second).unwrap());
    }

    #[test]
    fn a_directory_is_emptied_without_following_links() {
        let work = tempfile::tempdir().unwrap();
        let (kept, emptied) = (work.path().join("kept"), work.path().join("emptied"));
        fs::create_dir_all(emptied.join("sub/sub")).unwrap();
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "").unwrap();
        symlink(&kept, emptied.join("link")).unwrap();
        empty(&emptied).unwrap();
        assert_eq!(fs::read_dir(&emptied).unwrap().count(), 0);
        assert!(kept.join("file").exists());
    }
}
