//! More images to hold the store's trees against: Debian's packages as they are, a layer each, and images that umoci
//! changed.
//!
//! They are for `cargo xtask test --all`: made once, kept as OCI layouts (tag `latest`) beside the two that containers run
//! from. Each has something that the others lack.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use crate::debian;
use crate::image::{self, Images};
use crate::process::{command, output, step};
use crate::project::Project;

/// What an image starts with.
enum Base<'a> {
    /// A copy of another image.
    Image(&'a Path),
    /// A root file system that is packed as it is.
    Tree(fn(&Path) -> Result<()>),
    /// Packages, one layer of each: the very tars that Debian packed.
    Packages(&'a [&'a str]),
}

/// Something done to the unpacked image, which umoci then finds the layer of.
type Change = fn(&Path) -> Result<()>;

/// Makes the images that are missing and returns the layouts of all.
pub(crate) fn all(project: &Project, images: &Images) -> Result<Vec<PathBuf>> {
    let place = project.cache().join("images/real");
    fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
    let list: [(&str, Base<'_>, &[Change]); 10] = [
        ("busybox-changed", Base::Image(&images.busybox.layout), &[add, replace, take_away]),
        ("devices", Base::Image(&images.busybox.layout), &[devices]),
        ("debian-minbase", Base::Tree(image::debian_minbase), &[]),
        ("debian-without-python", Base::Image(&images.debian.layout), &[without_python]),
        ("capabilities", Base::Packages(&["iputils-ping", "libcap2-bin"]), &[capabilities]),
        ("set-user-id", Base::Packages(&["passwd", "sudo", "cron"]), &[]),
        ("links", Base::Packages(&["ncurses-term", "tzdata", "man-db"]), &[]),
        ("git", Base::Packages(&["perl-base", "git", "git-man"]), &[]),
        ("perl-and-python", Base::Packages(&["perl-modules-5.36", "libpython3.11-stdlib"]), &[]),
        ("large-files", Base::Packages(&["libicu72", "locales"]), &[]),
    ];
    list.into_iter()
        .map(|(name, base, changes)| {
            let layout = place.join(name);
            if !layout.exists() {
                step(&format!("make OCI layout {name}"), || {
                    let staging = tempfile::tempdir_in(&place)?;
                    let made = staging.path().join("layout");
                    make(&made, staging.path(), &base, changes)?;
                    fs::rename(&made, &layout).map_err(Into::into)
                })?;
            }
            Ok(layout)
        })
        .collect()
}

fn make(layout: &Path, staging: &Path, base: &Base<'_>, changes: &[Change]) -> Result<()> {
    let tagged = format!("{}:latest", layout.display());
    let tar = staging.join("tar");
    let add_layer = || output(command("umoci", ["raw", "add-layer", "--image", &tagged]).arg(&tar)).map(drop);
    if let Base::Image(from) = base {
        output(command("cp", ["--archive"]).arg(from).arg(layout))?;
    } else {
        output(command("umoci", ["init", "--layout"]).arg(layout))?;
        output(&mut command("umoci", ["new", "--image", &tagged]))?;
    }
    match base {
        Base::Image(_) => {}
        Base::Tree(fill) => {
            let tree = staging.join("tree");
            fs::create_dir(&tree)?;
            fs::set_permissions(&tree, Permissions::from_mode(0o755))?;
            fill(&tree)?;
            let options = ["--create", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--file"];
            output(command("tar", options).arg(&tar).arg("--directory").arg(&tree).arg("."))?;
            add_layer()?;
        }
        Base::Packages(packages) => {
            for package in *packages {
                let place = tempfile::tempdir_in(staging)?;
                let file = debian::fetch(package, place.path())?;
                let mut read = command("dpkg-deb", ["--fsys-tarfile"]);
                let done = read.arg(file).stdout(File::create(&tar)?).status();
                anyhow::ensure!(
                    done.context("cannot run dpkg-deb")?.success(),
                    "dpkg-deb cannot read {package}"
                );
                add_layer()?;
            }
        }
    }
    for (number, change) in changes.iter().enumerate() {
        let bundle = staging.join(format!("bundle{number}"));
        output(command("umoci", ["unpack", "--image", &tagged]).arg(&bundle))?;
        change(&bundle.join("rootfs"))?;
        output(command("umoci", ["repack", "--image", &tagged]).arg(&bundle))?;
        fs::remove_dir_all(&bundle)?;
    }
    Ok(())
}

fn add(tree: &Path) -> Result<()> {
    fs::create_dir_all(tree.join("srv/data/below"))?;
    for name in ["srv/data/one", "srv/data/two", "srv/data/below/three"] {
        fs::write(tree.join(name), name)?;
    }
    fs::hard_link(tree.join("srv/data/one"), tree.join("srv/again"))?;
    symlink("data", tree.join("srv/link")).map_err(Into::into)
}

fn replace(tree: &Path) -> Result<()> {
    fs::write(tree.join("srv/data/two"), "longer than it was before")?;
    fs::remove_file(tree.join("srv/link"))?;
    fs::create_dir(tree.join("srv/link"))?;
    fs::write(tree.join("srv/link/now"), "a directory")?;
    fs::set_permissions(tree.join("srv/data"), Permissions::from_mode(0o2750)).map_err(Into::into)
}

fn take_away(tree: &Path) -> Result<()> {
    fs::remove_dir_all(tree.join("srv/data/below"))?;
    for name in ["srv/again", "bin/vi", "etc/group"] {
        fs::remove_file(tree.join(name)).with_context(|| format!("cannot remove {name}"))?;
    }
    Ok(())
}

fn devices(tree: &Path) -> Result<()> {
    let kinds = [
        ("null", FileType::CharacterDevice, 1, 3),
        ("full", FileType::CharacterDevice, 1, 7),
        ("loop300", FileType::BlockDevice, 7, 300),
        ("initctl", FileType::Fifo, 0, 0),
    ];
    for (name, kind, major, minor) in kinds {
        mknodat(CWD, tree.join("dev").join(name), kind, Mode::from_raw_mode(0o660), makedev(major, minor))
            .with_context(|| format!("cannot make the device {name}"))?;
    }
    symlink("/proc/self/fd", tree.join("dev/fd")).map_err(Into::into)
}

/// A package taken away, as far as it shows: its program and its modules.
fn without_python(tree: &Path) -> Result<()> {
    fs::remove_dir_all(tree.join("usr/lib/python3.11"))?;
    for name in ["usr/bin/python3", "usr/bin/python3.11"] {
        fs::remove_file(tree.join(name)).with_context(|| format!("cannot remove {name}"))?;
    }
    Ok(())
}

fn capabilities(tree: &Path) -> Result<()> {
    for (capability, program) in [("cap_net_raw+ep", "bin/ping"), ("cap_sys_nice=eip", "sbin/getcap")] {
        output(command("setcap", [capability]).arg(tree.join(program)))?;
    }
    Ok(())
}
