//! The initramfs of the nested machine: busybox, the modules its root needs, two scripts and the job.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::debian_kernel::DebianKernel;
use crate::process::command;

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

/// Writes the initramfs to `file`, with `staging` as an empty directory to work in.
pub(super) fn write(file: &Path, staging: &Path, kernel: &DebianKernel, job: &Job<'_>) -> Result<()> {
    for directory in ["bin", "dev", "host", "modules", "newroot", "proc", "scratch"] {
        fs::DirBuilder::new().mode(0o755).create(staging.join(directory))?;
    }
    fs::copy("/bin/busybox", staging.join("bin/busybox"))
        .context("cannot copy /bin/busybox; package busybox-static has it")?;
    modules(&staging.join("modules"), kernel)?;
    fs::write(staging.join("init"), include_str!("init.sh"))?;
    fs::set_permissions(staging.join("init"), fs::Permissions::from_mode(0o755))?;
    fs::write(staging.join("job"), include_str!("job.sh"))?;
    fs::write(staging.join("command"), script(job)?)?;
    fs::write(staging.join("keep"), lines(job.keep)?)?;
    archive(file, staging)
}

fn modules(directory: &Path, kernel: &DebianKernel) -> Result<()> {
    let mut order: Vec<String> = Vec::new();
    for module in EARLY_MODULES {
        for path in kernel.load_order(module)? {
            let name = path.file_name().context("a module has a file name")?.to_string_lossy().into_owned();
            if !order.contains(&name) {
                fs::copy(&path, directory.join(&name))
                    .with_context(|| format!("cannot copy {}", path.display()))?;
                order.push(name);
            }
        }
    }
    fs::write(directory.join("order"), order.join("\n") + "\n")?;
    fs::write(directory.join("directory"), lines(std::slice::from_ref(&kernel.modules))?)?;
    Ok(())
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

fn archive(file: &Path, tree: &Path) -> Result<()> {
    let archive = File::create(file).with_context(|| format!("cannot make {}", file.display()))?;
    let mut find = command("find", [".", "-print0"]).current_dir(tree).stdout(Stdio::piped()).spawn()?;
    let names = find.stdout.take().context("find has a pipe")?;
    let status = command("cpio", ["--create", "--null", "--format=newc", "--quiet", "--owner=0:0"])
        .current_dir(tree)
        .stdin(names)
        .stdout(archive)
        .status()
        .context("cannot run cpio; package cpio has it")?;
    if !find.wait()?.success() || !status.success() {
        bail!("cannot pack {}: cpio ended with {status}", tree.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::output;

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
