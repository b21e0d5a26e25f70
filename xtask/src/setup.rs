//! What a fresh Debian 12 machine needs before the project can be built, tested and shown.
//!
//! Everything is looked for first, so that a second run takes a moment. It changes the machine only by
//! installing packages; all else goes below `target/`. No service is started and none is needed, so it works in a
//! chroot without systemd, too.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::debian;
use crate::debian_kernel::{self, DebianKernel};
use crate::image::{self, Images};
use crate::process::{cargo, command, output, step};
use crate::project::Project;
use crate::real_images;

/// Programs that the worker, the tests or the nested machine run, by the package they come in.
const PACKAGES: &[&str] = &[
    // The runtimes that are programs.
    "runc",
    "runsc",
    // The emulator, and with it virtiofsd.
    "qemu-system-x86",
    "qemu-system-common",
    // Root file system images.
    "erofs-utils",
    "squashfs-tools",
    "e2fsprogs",
    // Container images.
    "debootstrap",
    "busybox-static",
    "skopeo",
    "umoci",
    // A program that makes a file system up, to import from.
    "squashfuse",
    // File capabilities.
    "libcap2-bin",
    // Networks.
    "nftables",
    "iproute2",
    // Kernels and their modules.
    "kmod",
    "lz4",
    "xz-utils",
    "zstd",
    // The fuzz targets' engine is C++.
    "g++",
    // What a machine of few packages may lack.
    "ca-certificates",
    "openssl",
    "procps",
    "util-linux",
    "mount",
    "tar",
    "gzip",
];

/// vsock for QEMU without the host's vhost_vsock.
const VHOST_DEVICE_VSOCK: (&str, &str) = ("vhost-device-vsock", "0.3.0");

/// What is there after a set-up.
#[derive(Debug, Clone)]
pub(crate) struct Ready {
    /// Programs that are not from Debian; [`Project::path`] has it in front.
    pub(crate) tools: PathBuf,
    /// Container images.
    pub(crate) images: Images,
    /// The kernel of the nested machine.
    pub(crate) kernel: DebianKernel,
}

/// Brings the machine to the state that the other commands need.
pub(crate) fn run(project: &Project) -> Result<Ready> {
    packages()?;
    Ok(Ready { tools: tools(project)?, images: image::all(project)?, kernel: debian_kernel::cloud(project)? })
}

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Also what only `cargo xtask test --all` needs
    #[arg(long)]
    all: bool,
}

/// The same as a command: prints where things are.
pub(crate) fn show(project: &Project, options: &Options) -> Result<ExitCode> {
    let ready = run(project)?;
    if options.all {
        real_images::all(project, &ready.images)?;
    }
    let Images { debian, busybox } = &ready.images;
    for (name, path) in [
        ("tools", &ready.tools),
        ("debian", &debian.tar),
        ("", &debian.layout),
        ("busybox", &busybox.tar),
        ("", &busybox.layout),
        ("kernel", &ready.kernel.image),
    ] {
        println!("{name:8} {}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// The packages alone.
pub(crate) fn packages() -> Result<()> {
    debian::require_root_on_debian()?;
    debian::install(PACKAGES)
}

/// A registry to pull from. Installed as a package it would become a service that listens on every address.
fn docker_registry(project: &Project) -> Result<()> {
    let program = project.tools().join("docker-registry");
    if program.exists() {
        return Ok(());
    }
    step("fetch docker-registry", || {
        let tree = project.tools_root().join("docker-registry");
        if !tree.exists() {
            debian::unpack("docker-registry", &tree)?;
        }
        fs::create_dir_all(project.tools()).context("cannot make the tools' directory")?;
        fs::hard_link(tree.join("usr/bin/docker-registry"), &program)
            .context("cannot put docker-registry in place")
    })
}

fn tools(project: &Project) -> Result<PathBuf> {
    docker_registry(project)?;
    let programs = project.tools();
    let (name, version) = VHOST_DEVICE_VSOCK;
    if !programs.join(name).exists() {
        step(&format!("build {name} {version}"), || {
            let mut install =
                command(&cargo(), ["install", name, "--version", version, "--locked", "--root"]);
            // A target directory that was set for this project is not for other projects' builds.
            output(install.arg(project.tools_root()).env_remove("CARGO_TARGET_DIR")).map(drop)
        })?;
    }
    Ok(programs)
}
