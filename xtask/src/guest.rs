//! `cargo xtask guest`: the kernel and the initramfs that the microVM runtimes boot.
//!
//! The kernel is our own where `cargo xtask kernel` has built it, and else Debian's cloud kernel, whose drivers are
//! modules. `--kernel` says which; another kernel package can be given with `--deb`.
//!
//! ```text
//! DIR/vmlinux          the uncompressed ELF kernel
//! DIR/vmlinux.modules  the modules of a kernel that has its drivers in them, packed for an initramfs
//! DIR/beta9-vm-init    the guest's init, which the worker carries in itself
//! DIR/initrd.img       both of them, for tests of the init alone
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use beta9_guest::{Kernel, Modules, initramfs, module_archive};
use clap::ValueEnum;

use crate::debian_kernel::{self, DebianKernel};
use crate::kernel;
use crate::process::{cargo, command, output, step};
use crate::project::Project;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Which kernel guests boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Choice {
    /// The one that `cargo xtask kernel` builds.
    Own,
    /// Debian's cloud kernel.
    Stock,
}

#[derive(Debug, Default, clap::Args)]
pub(crate) struct Options {
    /// Where to put the files; target/guest if not given
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Which kernel; our own where it was built, else Debian's, if not given
    #[arg(long, value_enum)]
    kernel: Option<Choice>,
    /// A kernel package to use instead
    #[arg(long, value_name = "FILE", conflicts_with = "kernel")]
    deb: Option<PathBuf>,
}

impl Options {
    /// Those of another chore, which lets a kernel be chosen.
    pub(crate) fn with_kernel(kernel: Option<Choice>) -> Self {
        Self { kernel, ..Self::default() }
    }
}

/// What a microVM boots.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    /// The uncompressed ELF kernel.
    pub(crate) kernel: PathBuf,
}

/// Where a kernel's files are.
struct Source {
    version: String,
    image: PathBuf,
    modules: Option<Vec<u8>>,
}

/// Makes the files, or only what has changed of them.
pub(crate) fn run(project: &Project, options: &Options) -> Result<Guest> {
    let out = options.out.clone().unwrap_or_else(|| project.root().join("target/guest"));
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let guest = Guest { kernel: out.join("vmlinux") };

    let source = match (options.kernel, &options.deb) {
        (_, Some(deb)) => debian(&debian_kernel::from_package(project, deb)?)?,
        (Some(Choice::Stock), _) => debian(&debian_kernel::cloud(project)?)?,
        (Some(Choice::Own), _) => match kernel::built(project) {
            Some(own) => Source { version: own.version, image: own.image, modules: None },
            None => bail!("our own kernel is not built: `cargo xtask kernel` does it, in some ten minutes"),
        },
        (None, None) => match kernel::built(project) {
            Some(own) => Source { version: own.version, image: own.image, modules: None },
            None => debian(&debian_kernel::cloud(project)?)?,
        },
    };
    install(&source.image, &guest.kernel)?;
    let packed = out.join("vmlinux.modules");
    match &source.modules {
        Some(modules) => write_changed(&packed, modules)?,
        None => match fs::remove_file(&packed) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("cannot remove {}", packed.display()));
            }
            _ => {}
        },
    }

    let init = step("build beta9-vm-init", || build_init(project))?;
    // Outside of guests it is the init of containers that ask for one.
    let program = out.join("beta9-vm-init");
    write_changed(&program, &init)?;
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let initramfs = initramfs(&init, source.modules.as_deref()).context("cannot pack the initramfs")?;
    write_changed(&out.join("initrd.img"), &initramfs)?;
    eprintln!(
        "   guest in {}: kernel {}, initramfs {} KiB, vm-init {} KiB",
        out.display(),
        source.version,
        initramfs.len() >> 10,
        init.len() >> 10
    );
    Ok(guest)
}

fn debian(kernel: &DebianKernel) -> Result<Source> {
    let (purposes, missing) = Modules::of(&kernel.modules)?.for_guest()?;
    if !missing.is_empty() {
        bail!("{} has no modules for {}", kernel.version, missing.join(", "));
    }
    let modules = Some(module_archive(&purposes)?);
    Ok(Source { version: kernel.version.clone(), image: vmlinux(kernel)?, modules })
}

/// The uncompressed kernel, kept beside the compressed one.
fn vmlinux(kernel: &DebianKernel) -> Result<PathBuf> {
    let vmlinux = kernel.image.with_file_name(format!("vmlinux-{}", kernel.version));
    if !vmlinux.exists() {
        step(&format!("extract vmlinux {}", kernel.version), || {
            write(&vmlinux, Kernel::read(&kernel.image)?.image())
        })?;
    }
    Ok(vmlinux)
}

/// Static, and small: equal functions are kept once, relocations are packed, and nobody unwinds a program that aborts.
const INIT_FLAGS: [&str; 5] = [
    "-Ctarget-feature=+crt-static",
    "-Cforce-unwind-tables=no",
    "-Clink-arg=-Wl,-z,pack-relative-relocs",
    "-Clink-arg=-Wl,--icf=all",
    // Relative to the workspace's root, where cargo starts the compiler.
    "-Clink-arg=-Wl,-T,crates/vm-init/init.ld",
];

fn build_init(project: &Project) -> Result<Vec<u8>> {
    let options = ["build", "--quiet", "--profile", "guest", "--target", TARGET, "-p", "beta9-vm-init"];
    let mut build = command(&cargo(), options);
    build.env("RUSTFLAGS", INIT_FLAGS.join(" ")).current_dir(project.root());
    output(&mut build)?;
    let program = project.cargo_target().join(TARGET).join("guest/beta9-vm-init");
    fs::read(&program).with_context(|| format!("cannot read {}", program.display()))
}

/// Puts `from` at `to` unless it is there already.
fn install(from: &Path, to: &Path) -> Result<()> {
    // Its time is the original's, so that another kernel is told from it whatever their age.
    let same = |a: &Path, b: &Path| {
        let (a, b) = (fs::metadata(a).ok()?, fs::metadata(b).ok()?);
        Some(a.len() == b.len() && a.modified().ok()? == b.modified().ok()?)
    };
    if same(from, to) == Some(true) {
        return Ok(());
    }
    let context = || format!("cannot copy {} to {}", from.display(), to.display());
    let partial = to.with_extension("partial");
    fs::copy(from, &partial).with_context(context)?;
    let time = fs::metadata(from).and_then(|from| from.modified()).with_context(context)?;
    let file = fs::File::options().write(true).open(&partial).with_context(context)?;
    file.set_modified(time).with_context(context)?;
    fs::rename(&partial, to).with_context(context)
}

/// Writes a file that is not there with these contents already.
fn write_changed(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|there| there == bytes) { Ok(()) } else { write(path, bytes) }
}

/// Writes a file under its name only when it is whole.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = path.with_extension("partial");
    fs::write(&partial, bytes).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::rename(&partial, path).with_context(|| format!("cannot rename {}", partial.display()))
}
