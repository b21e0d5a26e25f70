//! A root file system, a kernel, and one container at a time in a real VM.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use beta9_microvm::Microvm;
use beta9_runtime::{Container, ContainerStdio, CreateRequest, Marks, Result, Rootfs, Runtime};
use beta9_sys::cgroup::Cgroup;
use beta9_sys::reaper::Reaper;
use beta9_types::{BindMount, ContainerId, Exit, QemuAccel, RuntimeKind, RuntimeSettings};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::time::timeout;

/// Nothing here takes longer, on any machine that is not stuck.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// Fixtures' directories: this and the process's id.
const ROOT_PREFIX: &str = "beta9-microvm-test-";

const APPLETS: [&str; 24] = [
    "sh", "cat", "echo", "id", "ls", "mount", "sleep", "kill", "true", "head", "dd", "tr", "wc", "hostname",
    "touch", "rm", "mkdir", "stat", "env", "sync", "seq", "grep", "ln", "mv",
];

/// What every test of a process shares.
pub(crate) struct Fixture {
    pub(crate) kind: RuntimeKind,
    pub(crate) settings: RuntimeSettings,
    pub(crate) reaper: Reaper,
    pub(crate) root: PathBuf,
    image: PathBuf,
    empty: PathBuf,
}

/// The fixture, or why there is none.
pub(crate) fn fixture(kind: RuntimeKind) -> std::result::Result<&'static Fixture, &'static str> {
    static FIXTURE: OnceLock<std::result::Result<Fixture, String>> = OnceLock::new();
    FIXTURE.get_or_init(|| Fixture::make(kind)).as_ref().map_err(String::as_str)
}

/// Gives the fixture, or prints why the test is skipped and returns.
#[macro_export]
macro_rules! fixture_or_skip {
    ($kind:expr) => {
        match common::fixture($kind) {
            Ok(fixture) => fixture,
            Err(reason) => return eprintln!("skipped: {reason}"),
        }
    };
}

impl Fixture {
    fn make(kind: RuntimeKind) -> std::result::Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("cgroups and namespaces need root".to_owned());
        }
        let guest = std::env::var_os("BETA9_GUEST_DIR")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest"), PathBuf::from);
        let kernel = guest.join("vmlinux");
        if !kernel.exists() {
            return Err(format!("no guest in {}: run `cargo xtask guest`", guest.display()));
        }
        for (name, program) in
            [("qemu_bin", "qemu-system-x86_64"), ("busybox", "/bin/busybox"), ("erofs", "mkfs.erofs")]
        {
            if beta9_runtime::find_program(Path::new(program)).is_none() {
                return Err(format!("no {name} ({program})"));
            }
        }
        sweep();
        let root = std::env::temp_dir().join(format!("{ROOT_PREFIX}{}", std::process::id()));
        std::fs::create_dir_all(&root).map_err(|e| e.to_string())?;
        let vsock =
            std::env::var_os("BETA9_VHOST_DEVICE_VSOCK").map_or("vhost-device-vsock".into(), PathBuf::from);
        if kind == RuntimeKind::Qemu && beta9_runtime::find_program(&vsock).is_none() {
            return Err("no vhost-device-vsock: set BETA9_VHOST_DEVICE_VSOCK".to_owned());
        }
        let firecracker = std::env::var_os("BETA9_FIRECRACKER").map_or("firecracker".into(), PathBuf::from);
        if kind == RuntimeKind::Firecracker && beta9_runtime::find_program(&firecracker).is_none() {
            return Err("no firecracker: set BETA9_FIRECRACKER".to_owned());
        }
        let settings = RuntimeSettings {
            qemu_kernel: kernel.clone(),
            qemu_root: root.join("vms"),
            qemu_accel: QemuAccel::Tcg,
            vhost_device_vsock_bin: vsock,
            firecracker_bin: firecracker,
            // Its Firecracker would be inherited by a subreaper, which the tests' process is not.
            firecracker_jailer: RuntimeSettings::NO_JAILER.into(),
            firecracker_kernel: kernel,
            firecracker_root: root.join("vms"),
            ..RuntimeSettings::default()
        };
        // The reaper takes every child's exit, so the programs below run before it starts.
        let image = make_image(&root);
        let empty = make_empty(&root);
        let reaper = Reaper::start().map_err(|e| e.to_string())?;
        Ok(Self { kind, settings, reaper, root, image, empty })
    }

    pub(crate) fn runtime(&self) -> Microvm {
        let share = program();
        Microvm::new(self.kind, &self.settings, self.reaper.clone())
            .unwrap()
            .with_share_program(share.clone(), Vec::new())
            .with_own_program(share)
    }

    /// Where the VM of `id` lives.
    pub(crate) fn vm_directory(&self, id: &ContainerId) -> PathBuf {
        self.root.join("vms").join(id.as_str())
    }
}

/// What stands in for the worker's own program.
pub(crate) fn program() -> PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().join("../examples/share")
}

/// Removes what earlier runs left: a fixture lives as long as its process, which has no end of its own to do it at.
fn sweep() {
    for entry in std::fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_prefix(ROOT_PREFIX) else { continue };
        if !Path::new("/proc").join(pid).exists() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn run(program: &str, args: &[&std::ffi::OsStr]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

fn make_image(root: &Path) -> PathBuf {
    let (tree, image) = (root.join("tree"), root.join("image"));
    for directory in ["bin", "etc", "proc", "dev", "sys", "tmp"] {
        std::fs::create_dir_all(tree.join(directory)).unwrap();
    }
    std::fs::copy("/bin/busybox", tree.join("bin/busybox")).unwrap();
    for applet in APPLETS {
        symlink("busybox", tree.join("bin").join(applet)).unwrap();
    }
    std::fs::write(tree.join("etc/plain"), "not a program\n").unwrap();
    run("mkfs.erofs", &[image.as_os_str(), tree.as_os_str()]);
    image
}

fn make_empty(root: &Path) -> PathBuf {
    let empty = root.join("empty");
    File::create(&empty).unwrap().set_len(64 << 20).unwrap();
    run("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), empty.as_os_str()]);
    empty
}

/// A container to run.
pub(crate) struct Story<'a> {
    pub(crate) fixture: &'a Fixture,
    pub(crate) args: &'a [&'a str],
    pub(crate) mounts: Vec<BindMount>,
    pub(crate) memory: Option<u64>,
    pub(crate) uid: u32,
}

/// A created container and the test's ends of its streams.
pub(crate) struct Running {
    pub(crate) container: Box<dyn Container>,
    pub(crate) id: ContainerId,
    pub(crate) cgroup: Cgroup,
    pub(crate) stdin: Option<File>,
    pub(crate) stdout: Option<File>,
    pub(crate) stderr: Option<File>,
    pub(crate) marks: Marks,
    scratch: PathBuf,
}

/// How a container ended and what it said.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) exit: Exit,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl<'a> Story<'a> {
    pub(crate) fn new(fixture: &'a Fixture, args: &'a [&'a str]) -> Self {
        Self { fixture, args, mounts: Vec::new(), memory: None, uid: 0 }
    }

    fn spec(&self) -> oci_spec::runtime::Spec {
        let mut mounts = vec![
            serde_json::json!({"destination": "/proc", "type": "proc", "source": "proc"}),
            serde_json::json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
            serde_json::json!({"destination": "/sys", "type": "sysfs", "source": "sysfs",
                "options": ["nosuid", "noexec", "nodev", "ro"]}),
        ];
        for mount in &self.mounts {
            mounts.push(
                serde_json::json!({"destination": mount.target, "type": "bind", "source": mount.source,
                "options": ["rbind", "rprivate"]}),
            );
        }
        let memory = self.memory.map(|limit| serde_json::json!({"limit": limit}));
        serde_json::from_value(serde_json::json!({
            "ociVersion": "1.0.2",
            "hostname": "box",
            "root": {"path": "rootfs"},
            "process": {"user": {"uid": self.uid, "gid": self.uid}, "args": self.args, "env": ["PATH=/bin"], "cwd": "/"},
            "mounts": mounts,
            "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}], "resources": {"memory": memory}},
        }))
        .unwrap()
    }

    pub(crate) async fn create(&self) -> (Result<Running>, ContainerId) {
        let id = ContainerId::random();
        let cgroup = Cgroup::at(Path::new("beta9-microvm-test").join(id.as_str()));
        cgroup.create().unwrap();
        let pipe = || pipe_with(PipeFlags::CLOEXEC).unwrap();
        let ((stdin, to), (from, stdout), (from_too, stderr)) = (pipe(), pipe(), pipe());
        let scratch = self.fixture.root.join(format!("{id}.scratch"));
        std::fs::copy(&self.fixture.empty, &scratch).unwrap();
        let marks = Marks::default();
        let mut spec = self.spec();
        let runtime = self.fixture.runtime();
        runtime.prepare(&mut spec).unwrap();
        let request = CreateRequest {
            id: id.clone(),
            dir: self.fixture.root.clone(),
            spec,
            rootfs: Rootfs::Block {
                image: self.fixture.image.clone(),
                format: "erofs".into(),
                scratch: Some(scratch.clone()),
                memory_layer_bytes: None,
            },
            mounts: self.mounts.clone(),
            stdio: ContainerStdio { stdin: Some(stdin), stdout, stderr, terminal: None },
            cgroup: cgroup.clone(),
            marks: marks.clone(),
            network: None,
            disk: beta9_types::DiskRate::default(),
        };
        let created = timeout(DEADLINE, runtime.create(request)).await.unwrap();
        let running = created.map(|container| Running {
            container,
            id: id.clone(),
            cgroup: cgroup.clone(),
            stdin: Some(to.into()),
            stdout: Some(from.into()),
            stderr: Some(from_too.into()),
            marks,
            scratch: scratch.clone(),
        });
        if running.is_err() {
            cgroup.remove().unwrap();
            std::fs::remove_file(scratch).unwrap();
        }
        (running, id)
    }

    /// Creates, starts, feeds `input`, waits, deletes, and checks that nothing is left.
    pub(crate) async fn run(&self, input: &[u8]) -> Outcome {
        let mut running = self.create().await.0.unwrap();
        running.container.start().await.unwrap();
        running.finish(input).await
    }
}

impl Running {
    pub(crate) async fn finish(mut self, input: &[u8]) -> Outcome {
        let mut stdin = self.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let stdout = collect(self.stdout.take().unwrap());
        let stderr = collect(self.stderr.take().unwrap());
        let exit = timeout(DEADLINE, self.container.exit()).await.unwrap();
        let began = Instant::now();
        self.delete().await;
        eprintln!("{}: gone after {:?}; {:?}", self.id.short(), began.elapsed(), self.timeline());
        let _ = writer.join().unwrap();
        // Other stories run beside this one, so only its own directory counts.
        let directory = self.scratch.with_file_name("vms").join(self.id.as_str());
        assert!(!directory.exists(), "{} is left", directory.display());
        Outcome { exit, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
    }

    /// Waits until the container has said `text`.
    pub(crate) async fn wait_for(&mut self, text: &'static str) {
        let mut stdout = self.stdout.as_ref().unwrap().try_clone().unwrap();
        // A thread of its own: this one carries the container's streams.
        let heard = tokio::task::spawn_blocking(move || {
            let mut heard = vec![0; text.len()];
            stdout.read_exact(&mut heard).map(|()| heard)
        });
        let heard = timeout(DEADLINE, heard).await.unwrap().unwrap().unwrap();
        assert_eq!(String::from_utf8_lossy(&heard), text);
    }

    /// Milliseconds between the marks.
    fn timeline(&self) -> Vec<(&'static str, u64)> {
        let marks = self.marks.all();
        let first = marks.first().map_or(0, |mark| mark.at_us);
        marks.iter().map(|mark| (mark.phase.as_str(), (mark.at_us - first) / 1000)).collect()
    }

    pub(crate) async fn delete(&mut self) {
        timeout(DEADLINE, self.container.delete()).await.unwrap().unwrap();
        timeout(DEADLINE, self.container.delete()).await.unwrap().unwrap();
        assert!(self.cgroup.processes().is_empty(), "processes are left");
        self.cgroup.remove().unwrap();
        std::fs::remove_file(&self.scratch).unwrap();
    }
}

fn collect(mut file: File) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
