//! The initramfs of the nested machine: busybox, the modules its root needs, two scripts and the job.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use beta9_guest::Archive;

use crate::debian_kernel::DebianKernel;

/// Modules without which the root cannot be mounted or the job's output not be carried out.
const EARLY_MODULES: &[&str] = &["virtio_pci", "virtio_blk", "virtio_console", "virtiofs", "overlay"];

/// The job, as the nested machine runs it.
#[derive(Debug)]
pub(super) struct Job<'a> {
    pub(super) command: &'a [String],
    /// `KEY=VALUE`.
    pub(super) environment: &'a [(String, String)],
    pub(super) directory: &'a Path,
    /// Directories of the host that must be there even below `/tmp`, parents first.
    pub(super) keep: &'a [PathBuf],
}

/// Writes the initramfs to `file`.
pub(super) fn write(file: &Path, kernel: &DebianKernel, job: &Job<'_>) -> Result<()> {
    let busybox =
        fs::read("/bin/busybox").context("cannot read /bin/busybox; package busybox-static has it")?;
    let modules = modules(kernel)?;
    let order: Vec<_> = modules.iter().map(|(name, _)| name.as_str()).collect();
    let order = order.join("\n") + "\n";
    let (script, keep) = (script(job)?, lines(job.keep)?);
    let directory = lines(std::slice::from_ref(&kernel.modules))?;
    let pack = || -> io::Result<()> {
        let mut archive = Archive::new(BufWriter::new(File::create(file)?));
        for directory in ["bin", "dev", "host", "modules", "newroot", "proc", "scratch"] {
            archive.directory(directory)?;
        }
        archive.character_device("dev/console", 5, 1)?;
        archive.file("bin/busybox", 0o755, &busybox)?;
        archive.file("init", 0o755, include_bytes!("init.sh"))?;
        archive.file("job", 0o644, include_bytes!("job.sh"))?;
        archive.file("command", 0o644, &script)?;
        archive.file("keep", 0o644, &keep)?;
        for (name, body) in &modules {
            archive.file(&format!("modules/{name}"), 0o644, body)?;
        }
        archive.file("modules/order", 0o644, order.as_bytes())?;
        archive.file("modules/directory", 0o644, &directory)?;
        archive.finish()?.flush()
    };
    pack().with_context(|| format!("cannot write {}", file.display()))
}

/// The early modules and what they need, as names and contents in the order to load them in.
fn modules(kernel: &DebianKernel) -> Result<Vec<(String, Vec<u8>)>> {
    let mut modules: Vec<(String, Vec<u8>)> = Vec::new();
    for module in EARLY_MODULES {
        for path in kernel.load_order(module)? {
            let name = path.file_name().context("a module has a file name")?.to_string_lossy().into_owned();
            if !modules.iter().any(|(known, _)| *known == name) {
                let body = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                modules.push((name, body));
            }
        }
    }
    Ok(modules)
}

fn lines(paths: &[PathBuf]) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    for path in paths {
        let bytes = path.as_os_str().as_bytes();
        if bytes.contains(&b'\n') {
            bail!("the path {} has a line break", path.display());
        }
        text.extend_from_slice(bytes);
        text.push(b'\n');
    }
    Ok(text)
}

/// A shell script that becomes the job.
fn script(job: &Job<'_>) -> Result<Vec<u8>> {
    let mut script = Vec::new();
    for (key, value) in job.environment {
        if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            bail!("{key:?} cannot name an environment variable");
        }
        script.extend_from_slice(format!("export {key}={}\n", quoted(value)).as_bytes());
    }
    script.extend_from_slice(b"cd ");
    let directory = job.directory.to_str().context("the working directory is not UTF-8")?;
    script.extend_from_slice(quoted(directory).as_bytes());
    script.extend_from_slice(b" || exit 125\nexec");
    for word in job.command {
        script.push(b' ');
        script.extend_from_slice(quoted(word).as_bytes());
    }
    script.push(b'\n');
    Ok(script)
}

/// `text` as one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{command, output};

    #[test]
    fn the_job_survives_a_shell() {
        let words = ["printf", "%s|", "a b", "it's", "$HOME", "", "\\", "\n"].map(str::to_owned);
        let environment = [("X".to_owned(), "'q' $y".to_owned())];
        let job = Job {
            command: &["sh", "-c", "printf %s \"$X\"; \"$@\"", "sh"]
                .into_iter()
                .map(str::to_owned)
                .chain(words)
                .collect::<Vec<_>>(),
            environment: &environment,
            directory: Path::new("/"),
            keep: &[],
        };
        let script = String::from_utf8(script(&job).unwrap()).unwrap();
        let printed = output(&mut command("sh", ["-c", &script])).unwrap();
        assert_eq!(printed, "'q' $ya b|it's|$HOME||\\|\n|");
    }

    #[test]
    fn a_variable_name_cannot_smuggle_shell() {
        let job = Job {
            command: &[],
            environment: &[("A;reboot".to_owned(), String::new())],
            directory: Path::new("/"),
            keep: &[],
        };
        assert!(script(&job).unwrap_err().to_string().contains("cannot name"));
    }
}
