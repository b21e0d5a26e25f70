//! `cargo xtask guest`: the kernel and the initramfs that the microVM runtimes boot.
//!
//! The kernel is Debian's cloud kernel, whose drivers are modules: the few that a guest needs go into the initramfs
//! beside `beta9-vm-init`, with the order to load them in. Another kernel package can be given with `--deb`.
//!
//! ```text
//! DIR/vmlinux      the uncompressed ELF kernel
//! DIR/initrd.img   /init, /modules/*.ko, /modules/order, /dev/console, /dev/null
//! ```

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use crate::cpio::Archive;
use crate::kernel_modules::{Modules, Purpose};

/// An error that is only ever printed.
type Result<T> = std::result::Result<T, String>;

const USAGE: &str = "usage: cargo xtask guest [--out DIR] [--deb FILE]";

/// The meta package whose dependency is the kernel.
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Runs the command with what follows its name.
pub(crate) fn run(arguments: impl Iterator<Item = String>) -> Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"));
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
    let (out, deb) = parse(arguments)?;
    let out = out.unwrap_or_else(|| workspace.join("target/guest"));
    fs::create_dir_all(&out).map_err(|e| format!("create {}: {e}", out.display()))?;

    let cache = target.join("guest-kernel");
    let unpacked = unpacked_kernel(&cache, deb.as_deref())?;
    let boot = unpacked.join("boot");
    let image = only_entry(&boot, "vmlinuz-")?;
    let version = image.file_name().and_then(OsStr::to_str).and_then(|name| name.strip_prefix("vmlinuz-"));
    let version = version.ok_or("the kernel image has an odd name")?;

    let vmlinux = unpacked.join("vmlinux");
    if !vmlinux.exists() {
        progress(&format!("extracting vmlinux of {version}"));
        let elf = vmlinux_of(&read(&image)?)?;
        write(&vmlinux, &elf)?;
    }
    install(&vmlinux, &out.join("vmlinux"))?;

    let init = build_init(workspace, &target)?;
    let modules = Modules::of(&unpacked.join("lib/modules").join(version))?.for_guest()?;
    let initrd = initramfs(&init, &modules)?;
    let path = out.join("initrd.img");
    if fs::read(&path).ok().as_deref() != Some(&initrd) {
        write(&path, &initrd)?;
    }
    progress(&format!(
        "{}: vmlinux {version}, initrd.img {} KiB, vm-init {} KiB",
        out.display(),
        initrd.len() >> 10,
        init.len() >> 10
    ));
    Ok(())
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<(Option<PathBuf>, Option<PathBuf>)> {
    let (mut out, mut deb) = (None, None);
    while let Some(argument) = arguments.next() {
        let value = match argument.as_str() {
            "--out" => &mut out,
            "--deb" => &mut deb,
            other => return Err(format!("unknown argument {other}; {USAGE}")),
        };
        *value = Some(PathBuf::from(arguments.next().ok_or(USAGE)?));
    }
    Ok((out, deb))
}

/// The kernel package's files; downloaded and unpacked on the first call.
fn unpacked_kernel(cache: &Path, deb: Option<&Path>) -> Result<PathBuf> {
    let name = deb.and_then(Path::file_stem).unwrap_or(OsStr::new("debian"));
    let unpacked = cache.join(name);
    if unpacked.join("boot").is_dir() {
        return Ok(unpacked);
    }
    fs::create_dir_all(cache).map_err(|e| format!("create {}: {e}", cache.display()))?;
    let deb = match deb {
        Some(deb) => deb.to_owned(),
        None => download(cache)?,
    };
    progress(&format!("unpacking {}", deb.display()));
    // Under its final name only when it is whole.
    let partial = cache.join("partial");
    let _ = fs::remove_dir_all(&partial);
    output(Command::new("dpkg-deb").arg("-x").args([&deb, &partial]))?;
    fs::rename(&partial, &unpacked).map_err(|e| format!("rename {}: {e}", partial.display()))?;
    Ok(unpacked)
}

fn download(cache: &Path) -> Result<PathBuf> {
    let depends = output(Command::new("apt-cache").args(["depends", "--important", KERNEL_PACKAGE]))
        .map_err(|e| format!("{e}; run apt-get update first, or name a kernel package with --deb"))?;
    let depends = String::from_utf8_lossy(&depends);
    let package = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    let package = package.ok_or_else(|| format!("{KERNEL_PACKAGE} depends on no kernel"))?;
    progress(&format!("downloading {package}"));
    output(Command::new("apt-get").args(["download", package]).current_dir(cache))
        .map_err(|e| format!("{e}; run apt-get update first, or name a kernel package with --deb"))?;
    only_entry(cache, package)
}

/// The compressed kernel inside a bzImage (Documentation/arch/x86/boot.rst), uncompressed.
fn vmlinux_of(image: &[u8]) -> Result<Vec<u8>> {
    let word = |at: usize| -> Result<usize> {
        let bytes = image.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
        Ok(u32::from_le_bytes(bytes.ok_or("the kernel image is cut short")?) as usize)
    };
    if image.get(0x202..0x206) != Some(b"HdrS".as_slice()) {
        return Err("the kernel image is not a bzImage".to_owned());
    }
    let setup_sectors = match image.get(0x1f1).copied().unwrap_or(0) {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    // The last four bytes of the payload are its uncompressed size.
    let end = (start + word(0x24c)?).saturating_sub(4);
    let payload = image.get(start..end).ok_or("the kernel image is cut short")?;
    let program = match payload {
        [0x7f, b'E', b'L', b'F', ..] => return Ok(payload.to_vec()),
        [0x02, 0x21, 0x4c, 0x18, ..] => "lz4",
        [0x1f, 0x8b, ..] => "gzip",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        _ => return Err("the kernel is compressed in a way that is not known here".to_owned()),
    };
    let elf = decompress(program, payload)?;
    if elf.starts_with(b"\x7fELF") { Ok(elf) } else { Err(format!("{program} gave no ELF kernel")) }
}

fn decompress(program: &str, payload: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new(program)
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| format!("cannot run {program}: {e}; install it"))?;
    let mut stdin = child.stdin.take().ok_or("no pipe to the decompressor")?;
    let output = std::thread::scope(|scope| {
        // A decompressor that stops early says so by its status.
        scope.spawn(move || std::io::Write::write_all(&mut stdin, payload));
        child.wait_with_output()
    });
    let output = output.map_err(|e| format!("wait for {program}: {e}"))?;
    if output.status.success() { Ok(output.stdout) } else { Err(format!("{program} {}", output.status)) }
}

fn build_init(workspace: &Path, target: &Path) -> Result<Vec<u8>> {
    progress("building beta9-vm-init");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--profile", "guest", "--target", TARGET, "-p", "beta9-vm-init"])
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env("CARGO_TARGET_DIR", target)
        .current_dir(workspace)
        .status()
        .map_err(|e| format!("cannot run cargo: {e}"))?;
    if !status.success() {
        return Err(format!("building beta9-vm-init: {status}"));
    }
    read(&target.join(TARGET).join("guest/beta9-vm-init"))
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
    pack().map_err(|e| format!("pack the initramfs: {e}"))
}

fn only_entry(directory: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).map_err(|e| format!("read {}: {e}", directory.display()))?;
    let mut found = entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with(prefix));
    let first = found.next().ok_or_else(|| format!("no {prefix}* in {}", directory.display()))?;
    Ok(first.path())
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
    fs::copy(from, to).map(drop).map_err(|e| format!("copy {} to {}: {e}", from.display(), to.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|e| format!("read {}: {e}", path.display()))
}

/// Writes a file under its name only when it is whole.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = path.with_extension("partial");
    fs::write(&partial, bytes).map_err(|e| format!("write {}: {e}", partial.display()))?;
    fs::rename(&partial, path).map_err(|e| format!("rename {}: {e}", partial.display()))
}

fn output(command: &mut Command) -> Result<Vec<u8>> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| format!("cannot run {program}: {e}"))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(format!("{program} {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
}

fn progress(line: &str) {
    eprintln!("guest: {line}");
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
