//! What a VM boots from is broken, or there is nothing to boot it with.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use beta9_types::RuntimeKind;

use super::vmm::is_lost;
use super::{at, initramfs};
use crate::{Finished, Invocation, Site, World};

/// The key of `container_runtime_config` for `what`.
fn key(runtime: RuntimeKind, what: &str) -> String {
    format!("{}_{what}", runtime.as_str())
}

fn run(site: &Site, runtime: RuntimeKind) -> Result<Finished> {
    site.command(["run", "--rm", "--runtime", runtime.as_str(), "busybox", "echo", "it ran"]).finish()
}

/// A site of a scratch directory's own, with one setting.
fn with(runtime: RuntimeKind, what: &str, value: &str) -> Result<Site> {
    // With a KVM that boots nothing every trial would be made twice.
    let accel = if runtime == RuntimeKind::Qemu { "\nqemu_accel: tcg" } else { "" };
    Site::with_settings("", &format!("{}: {value}{accel}", key(runtime, what)))
}

/// A file's name, what is in it, and what is said of it.
type Case = (&'static str, Option<Vec<u8>>, &'static [&'static str]);

pub(super) fn is_none(runtime: RuntimeKind) -> Result<()> {
    let directory = tempfile::Builder::new().prefix("b9-kernel-").tempdir_in("/var/tmp")?;
    // The first 20 bytes of an ELF file name its class, its byte order and its machine.
    let elf = |machine: u8| {
        let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
        bytes.resize(16, 0);
        bytes.extend([2, 0, machine, 0]);
        bytes.resize(4096, 0xa5);
        bytes
    };
    let cases: [Case; 5] = [
        ("missing", None, &["`beta9-worker kernel install`"]),
        ("empty", Some(Vec::new()), &["`beta9-worker kernel install`", "neither a kernel's ELF image"]),
        ("packed", Some(b"MZ\xea\x07".repeat(1024)), &["neither a kernel's ELF image"]),
        ("foreign", Some(elf(183)), &["for another processor (ELF machine 183)"]),
        ("broken", Some(elf(62)), &["an ELF file and not a program"]),
    ];
    for (name, bytes, words) in cases {
        let path = directory.path().join(name);
        if let Some(bytes) = bytes {
            fs::write(&path, bytes)?;
        }
        at(with(runtime, "kernel", &path.to_string_lossy())?, |site| {
            let finished = run(site, runtime)?.ends_with(125)?.complains_of(words)?;
            ensure!(finished.stdout.is_empty(), "it ran without a kernel\n{finished}");
            Ok(())
        })?;
    }
    Ok(())
}

/// An init that ends takes the kernel with it.
pub(super) fn panics(runtime: RuntimeKind) -> Result<()> {
    hostile(runtime, "echo beta9-vm-init: about to end; exit 3", |finished| {
        finished.complains_of(&["the VM ended before its guest reported", "Kernel panic"]).map(drop)
    })
}

/// As long as a start may take, and not longer.
pub(super) fn hangs(runtime: RuntimeKind) -> Result<()> {
    hostile(runtime, "/busybox sleep 100000", |finished| {
        finished.complains_of(&["the guest did not report within"]).map(drop)
    })
}

/// A start with a guest of the test's own, which must fail.
pub(super) fn hostile(
    runtime: RuntimeKind,
    init: &str,
    check: impl FnOnce(Finished) -> Result<()>,
) -> Result<()> {
    let directory = tempfile::Builder::new().prefix("b9-initramfs-").tempdir_in("/var/tmp")?;
    let initrd = initramfs::with_init(directory.path(), init)?;
    at(with(runtime, "initrd", &initrd.to_string_lossy())?, |site| check(run(site, runtime)?.ends_with(125)?))
}

pub(super) fn panics_later(runtime: RuntimeKind) -> Result<()> {
    at(Site::prepare()?, |site| {
        let world = World::new(site, runtime, "panic");
        let script =
            "test -e /proc/sysrq-trigger || exit 77; echo ready; echo c > /proc/sysrq-trigger; sleep 1000";
        let container = world.detach(&["--security-opt", "systempaths=unconfined"], &["sh", "-c", script])?;
        if container.wait()? == 77 {
            println!("skipped: {runtime}: this guest's kernel cannot be told to panic");
            return Ok(());
        }
        is_lost(&container, "Kernel panic")
    })
}

/// A container that is started again finds its image gone bad.
pub(super) fn has_no_root(runtime: RuntimeKind) -> Result<()> {
    at(Site::prepare()?, |site| {
        run(site, runtime)?.prints("it ran")?;
        let images = site.block_images();
        let image = fs::read_dir(&images)?.next().context("there is no block image")??.path();
        fs::set_permissions(&image, fs::Permissions::from_mode(0o644))?;
        let file = OpenOptions::new().write(true).open(&image)?;
        let length = file.metadata()?.len();
        file.write_all_at(&vec![0; usize::try_from(length)?], 0)?;
        let finished = run(site, runtime)?.ends_with(125)?;
        ensure!(finished.stdout.is_empty() && !finished.stderr.is_empty(), "not told why\n{finished}");
        Ok(())
    })
}

/// In a mount namespace with another `/dev`.
fn without_kvm(invocation: Invocation) -> Result<Finished> {
    const SCRIPT: &str = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && mknod -m 666 /dev/zero c 1 5 && \
                          mknod -m 666 /dev/urandom c 1 9 && exec \"$@\"";
    let command = invocation.into_command();
    let program = command.get_program().to_owned();
    let words = ["--mount", "--propagation", "private", "sh", "-c", SCRIPT, "sh"].map(Into::into);
    let all = words.into_iter().chain([program]).chain(command.get_args().map(ToOwned::to_owned));
    let mut outer = Invocation::new("unshare", all.collect::<Vec<std::ffi::OsString>>());
    for (name, value) in command.get_envs() {
        let name = name.to_string_lossy();
        outer = match value {
            Some(value) => outer.env(&name, value),
            None => outer.without(&name),
        };
    }
    outer.finish()
}

pub(super) fn has_no_kvm(runtime: RuntimeKind) -> Result<()> {
    let setting = if runtime == RuntimeKind::Qemu { "qemu_accel: kvm" } else { "firecracker_cpus: 1" };
    at(Site::with_settings("", setting)?, |site| {
        let run = site.command(["run", "--rm", "--runtime", runtime.as_str(), "busybox", "true"]);
        without_kvm(run)?.ends_with(125)?.complains_of(&["/dev/kvm cannot be opened"])?;
        Ok(())
    })
}

/// Where KVM opens and QEMU nevertheless had to emulate. Firecracker would not work here at all.
pub(super) fn has_a_useless_kvm(runtime: RuntimeKind) -> Result<()> {
    if runtime != RuntimeKind::Qemu || !Path::new("/dev/kvm").exists() {
        println!("skipped: {runtime}: it needs QEMU and a KVM that opens and boots nothing");
        return Ok(());
    }
    at(Site::with_settings("", "qemu_accel: kvm")?, |site| {
        let finished = run(site, runtime)?;
        if finished.code() == 0 {
            println!("skipped: this machine's KVM boots kernels");
            return Ok(());
        }
        finished.ends_with(125)?.complains_of(&["/dev/kvm opens, but a VM did not boot with it"])?;
        Ok(())
    })
}
