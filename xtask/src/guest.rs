//! `cargo xtask guest`: the kernel and the initramfs that the microVM runtimes boot.
//!
//! The kernel is Debian's cloud kernel, whose drivers are modules: the few that a guest needs go into the initramfs
//! beside `beta9-vm-init`, with the order to load them in. Another kernel package can be given with `--deb`.
//!
//! ```text
//! DIR/vmlinux      the uncompressed ELF kernel
//! DIR/beta9-vm-init  the guest's init, and that of containers with --init
//! DIR/initrd.img   /init, /modules/*.ko, /modules/order, /dev/console, /dev/null
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};

use crate::cpio::Archive;
use crate::debian_kernel::{self, DebianKernel};
use crate::kernel_modules::{Modules, Purpose};
use crate::process::{cargo, command, output, step};
use crate::project::Project;

const TARGET: &str = "x86_64-unknown-linux-gnu";

#[derive(Debug, Default, clap::Args)]
pub(crate) struct Options {
    /// Where to put vmlinux and initrd.img; target/guest if not given
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// A kernel package to use instead of Debian's current cloud kernel
    #[arg(long, value_name = "FILE")]
    deb: Option<PathBuf>,
}

/// What a microVM boots.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    /// The uncompressed ELF kernel.
    pub(crate) kernel: PathBuf,
    /// The initramfs.
    pub(crate) initramfs: PathBuf,
}

/// Makes both files, or only what has changed of them.
pub(crate) fn run(project: &Project, options: &Options) -> Result<Guest> {
    let out = options.out.clone().unwrap_or_else(|| project.root().join("target/guest"));
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let guest = Guest { kernel: out.join("vmlinux"), initramfs: out.join("initrd.img") };

    let kernel = match &options.deb {
        Some(deb) => debian_kernel::from_package(project, deb)?,
        None => debian_kernel::cloud(project)?,
    };
    install(&vmlinux(&kernel)?, &guest.kernel)?;

    let init = step("build beta9-vm-init", || build_init(project))?;
    // Outside of guests it is the init of containers that ask for one.
    let program = out.join("beta9-vm-init");
    if fs::read(&program).ok().as_deref() != Some(&init) {
        write(&program, &init)?;
        fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    let modules = Modules::of(&kernel.modules)?.for_guest()?;
    let initramfs = initramfs(&init, &modules)?;
    if fs::read(&guest.initramfs).ok().as_deref() != Some(&initramfs) {
        write(&guest.initramfs, &initramfs)?;
    }
    eprintln!(
        "   guest in {}: kernel {}, initramfs {} KiB, vm-init {} KiB",
        out.display(),
        kernel.version,
        initramfs.len() >> 10,
        init.len() >> 10
    );
    Ok(guest)
}

/// The uncompressed kernel, kept beside the compressed one.
fn vmlinux(kernel: &DebianKernel) -> Result<PathBuf> {
    let vmlinux = kernel.image.with_file_name(format!("vmlinux-{}", kernel.version));
    if !vmlinux.exists() {
        step(&format!("extract vmlinux {}", kernel.version), || {
            write(&vmlinux, &vmlinux_of(&read(&kernel.image)?)?)
        })?;
    }
    Ok(vmlinux)
}

/// The compressed kernel inside a bzImage (Documentation/arch/x86/boot.rst), uncompressed.
fn vmlinux_of(image: &[u8]) -> Result<Vec<u8>> {
    let word = |at: usize| -> Result<usize> {
        let bytes = image.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
        Ok(u32::from_le_bytes(bytes.context("the kernel image is cut short")?) as usize)
    };
    if image.get(0x202..0x206) != Some(b"HdrS".as_slice()) {
        bail!("the kernel image is not a bzImage");
    }
    let setup_sectors = match image.get(0x1f1).copied().unwrap_or(0) {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    // The last four bytes of the payload are its uncompressed size.
    let end = (start + word(0x24c)?).saturating_sub(4);
    let payload = image.get(start..end).context("the kernel image is cut short")?;
    let program = match payload {
        [0x7f, b'E', b'L', b'F', ..] => return Ok(payload.to_vec()),
        [0x02, 0x21, 0x4c, 0x18, ..] => "lz4",
        [0x1f, 0x8b, ..] => "gzip",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        _ => bail!("the kernel is compressed in a way that is not known here"),
    };
    let elf = decompress(program, payload)?;
    ensure!(elf.starts_with(b"\x7fELF"), "{program} gave no ELF kernel");
    Ok(elf)
}

fn decompress(program: &str, payload: &[u8]) -> Result<Vec<u8>> {
    let mut child = command(program, ["-dc"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {program}: install it"))?;
    let mut stdin = child.stdin.take().context("no pipe to the decompressor")?;
    let output = std::thread::scope(|scope| {
        // A decompressor that stops early says so by its status.
        scope.spawn(move || std::io::Write::write_all(&mut stdin, payload));
        child.wait_with_output()
    });
    let output = output.with_context(|| format!("cannot wait for {program}"))?;
    ensure!(output.status.success(), "{program} ended with {}", output.status);
    Ok(output.stdout)
}

/// Static, and small: equal functions are kept once, relocations are packed, and nobody unwinds a program that aborts.
const INIT_FLAGS: [&str; 4] = [
    "-Ctarget-feature=+crt-static",
    "-Cforce-unwind-tables=no",
    "-Clink-arg=-Wl,-z,pack-relative-relocs",
    "-Clink-arg=-Wl,--icf=all",
];

fn build_init(project: &Project) -> Result<Vec<u8>> {
    let options = ["build", "--quiet", "--profile", "guest", "--target", TARGET, "-p", "beta9-vm-init"];
    let mut build = command(&cargo(), options);
    build.env("RUSTFLAGS", INIT_FLAGS.join(" ")).current_dir(project.root());
    output(&mut build)?;
    read(&project.cargo_target().join(TARGET).join("guest/beta9-vm-init"))
}

fn initramfs(init: &[u8], purposes: &[Purpose]) -> Result<Vec<u8>> {
    let pack = || -> std::io::Result<Vec<u8>> {
        let mut archive = Archive::new(Vec::new());
        archive.directory("dev")?;
        // Without these two the C library has nothing to open descriptors 0 to 2 on.
        archive.character_device("dev/console", 5, 1)?;
        archive.character_device("dev/null", 1, 3)?;
        archive.file("init", 0o755, init)?;
        archive.directory("modules")?;
        let (mut order, mut packed) = (String::new(), BTreeSet::new());
        for Purpose { name, files } in purposes {
            order.push_str(&format!("{name}:"));
            for file in files {
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                order.push_str(&format!(" {name}"));
                if packed.insert(file) {
                    archive.file(&format!("modules/{name}"), 0o644, &fs::read(file)?)?;
                }
            }
            order.push('\n');
        }
        archive.file("modules/order", 0o644, order.as_bytes())?;
        archive.finish()
    };
    pack().context("cannot pack the initramfs")
}

/// Puts `from` at `to` unless it is there already.
fn install(from: &Path, to: &Path) -> Result<()> {
    let same = |a: &Path, b: &Path| {
        let (a, b) = (fs::metadata(a).ok()?, fs::metadata(b).ok()?);
        Some(a.len() == b.len() && a.modified().ok()? <= b.modified().ok()?)
    };
    if same(from, to) == Some(true) {
        return Ok(());
    }
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Writes a file under its name only when it is whole.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = path.with_extension("partial");
    fs::write(&partial, bytes).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::rename(&partial, path).with_context(|| format!("cannot rename {}", partial.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bzimage_gives_back_its_payload() {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&12u32.to_le_bytes());
        image.extend([0; 16]);
        image.extend(b"\x7fELF1234SIZEafter");
        assert_eq!(vmlinux_of(&image).unwrap(), b"\x7fELF1234");
        image[0x24c..0x250].copy_from_slice(&1_000_000u32.to_le_bytes());
        assert!(vmlinux_of(&image).is_err());
        assert!(vmlinux_of(b"short").is_err());
    }
}
