//! The programs that make up the nested machine, and their end.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use anyhow::{Context, Result};
use beta9_sys::command::CommandExtra;
use tempfile::TempDir;

use crate::debian_kernel::DebianKernel;
use crate::process::{self, command};

/// Where Debian keeps virtiofsd: bookworm's comes with QEMU, later ones in a package of its own.
const VIRTIOFSD: &[&str] = &["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"];

/// Size of the scratch disk, a sparse file: what is never written takes no space.
const SCRATCH_BYTES: u64 = 8 << 30;

/// What virtiofsd prints.
const FILE_SERVER_LOG: &str = "virtiofsd.log";

/// What the guest's kernel prints, and `init.sh` when it fails.
const CONSOLE: &str = "console";

/// Lines of each that an error repeats.
const LAST_WORDS: usize = 40;

/// A directory with everything that a machine leaves on disk: gone when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    directory: TempDir,
}

impl Place {
    pub(super) fn new() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("beta9-nested.").tempdir();
        Ok(Self { directory: directory.context("cannot make a temporary directory")? })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The last lines of the logs that have any.
    pub(super) fn last_words(&self) -> String {
        let mut words = String::new();
        for log in [FILE_SERVER_LOG, CONSOLE] {
            let text = fs::read(self.path(log)).unwrap_or_default();
            let text = process::tail(String::from_utf8_lossy(&text).trim(), LAST_WORDS);
            if !text.is_empty() {
                words.push_str(&format!("{log}:\n{text}\n"));
            }
        }
        words
    }

    pub(super) fn listen(&self, name: &str) -> Result<UnixListener> {
        let path = self.path(name);
        UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))
    }

    fn create(&self, name: &str) -> Result<File> {
        let path = self.path(name);
        File::create(&path).with_context(|| format!("cannot make {}", path.display()))
    }
}

/// A running machine. Both programs are killed and waited for when this is dropped, and die with this process.
#[derive(Debug)]
pub(super) struct Machine {
    emulator: Child,
    file_server: Child,
}

impl Machine {
    /// Starts the machine with `initramfs`, its ports connected to the listeners in `place` of the names in `ports`.
    pub(super) fn start(
        place: &Place,
        kernel: &DebianKernel,
        memory_mib: u32,
        ports: &[&str],
    ) -> Result<Self> {
        scratch(place)?;
        // The socket listens before either program runs, so the emulator need not wait for the server. A duplicate
        // is inherited by the programs that are started while it is open.
        let socket = rustix::io::dup(place.listen("files.sock")?).context("cannot duplicate a socket")?;
        let mut file_server = file_server(place, &socket)?.spawn().context("cannot start virtiofsd")?;
        drop(socket);
        match emulator(place, kernel, memory_mib, ports).spawn() {
            Ok(emulator) => Ok(Self { emulator, file_server }),
            Err(error) => {
                end(&mut file_server);
                Err(error).context("cannot start qemu-system-x86_64; package qemu-system-x86 has it")
            }
        }
    }

    /// What the emulator says; its end is the emulator's end.
    pub(super) fn messages(&mut self) -> Result<ChildStderr> {
        self.emulator.stderr.take().context("the emulator's messages are read once")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        end(&mut self.emulator);
        end(&mut self.file_server);
    }
}

fn end(child: &mut Child) {
    // It may have ended by itself, which is the usual case.
    let _ = child.kill();
    let _ = child.wait();
}

fn scratch(place: &Place) -> Result<()> {
    place.create("scratch")?.set_len(SCRATCH_BYTES)?;
    let options = ["-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard"];
    process::output(command("mkfs.ext4", options).arg(place.path("scratch"))).map(drop)
}

/// virtiofsd, where possible on a read-only view of `/` in a mount namespace of its own that goes when it goes.
fn file_server(place: &Place, socket: &OwnedFd) -> Result<Command> {
    let program = VIRTIOFSD.iter().find(|path| Path::new(path).exists());
    let program = program.context("virtiofsd is missing; package qemu-system-common has it")?;
    let root = place.path("root");
    fs::create_dir(&root)?;
    // In a chroot `/` may be no mount, which cannot be made private: there the guest's own read-only mount must do.
    let steps = "if mount --make-rprivate / && mount --rbind / \"$1\" && mount -o remount,bind,ro \"$1\"; \
                 then root=$1; else root=/; fi; \
                 exec \"$2\" --fd=\"$3\" -o source=\"$root\" -o cache=always -o sandbox=chroot";
    let mut server =
        command("unshare", ["--mount", "--propagation=unchanged", "sh", "-c", steps, "virtiofsd"]);
    server.arg(&root).arg(program).arg(socket.as_raw_fd().to_string());
    let log = place.create(FILE_SERVER_LOG)?;
    server.stdout(log.try_clone()?).stderr(log);
    server.new_session().die_with_parent();
    Ok(server)
}

fn emulator(place: &Place, kernel: &DebianKernel, memory_mib: u32, ports: &[&str]) -> Command {
    let memory = format!("memory-backend-memfd,id=memory,size={memory_mib}M,share=on");
    let path = |name: &str| place.path(name).display().to_string();
    let mut qemu = command(
        "qemu-system-x86_64",
        ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-name", "beta9-nested"],
    );
    // KVM that opens is not yet KVM that boots; emulation is the same everywhere. This CPU model is the quickest
    // that has SVM and all that Firecracker asks of KVM. One processor, because two of them that run guests at the
    // same time now and then do nothing but interrupt each other until the deadline.
    qemu.args(["-machine", "q35,memory-backend=memory", "-accel", "tcg"]);
    qemu.args(["-cpu", "EPYC,+svm,+npt", "-smp", "1", "-m", &memory_mib.to_string(), "-object", &memory]);
    qemu.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(place.path("initramfs"));
    // The emulator keeps what it has translated by address: a program that is at another place each time it is
    // started is translated anew each time, which costs three quarters of a short one's processor time.
    qemu.args(["-append", "console=ttyS0 quiet panic=-1 tsc=reliable norandmaps"]);
    qemu.args(["-serial", &format!("file:{}", path(CONSOLE))]);
    qemu.args(["-drive", &format!("if=none,id=scratch,format=raw,cache=unsafe,file={}", path("scratch"))]);
    qemu.args(["-device", "virtio-blk-pci,drive=scratch"]);
    qemu.args(["-chardev", &format!("socket,id=files,path={}", path("files.sock"))]);
    qemu.args(["-device", "vhost-user-fs-pci,chardev=files,tag=hostroot,queue-size=1024"]);
    qemu.args(["-device", "virtio-serial-pci"]);
    for port in ports {
        qemu.args(["-chardev", &format!("socket,id={port},path={}", path(port))]);
        qemu.args(["-device", &format!("virtserialport,chardev={port},name={port}")]);
    }
    qemu.stdout(Stdio::null()).stderr(Stdio::piped());
    qemu.new_session().die_with_parent();
    qemu
}
