//! A place to run containers in: one state directory, the real worker program, an image, a configuration.

use std::ffi::OsString;
use std::fs;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use beta9_types::RuntimeKind;
use rustix::fd::OwnedFd;
use rustix::fs::inotify;
use rustix::io::Errno;
use rustix::process::geteuid;
use serde_json::Value;

use crate::leak::{Leaks, Scope, Watch};
use crate::program::Invocation;

/// The image that stories run, as the site knows it.
pub(crate) const IMAGE: &str = "busybox";

/// Kept short: socket paths below it must fit whatever a test adds. Not `/tmp`, which may be memory.
const PARENT: &str = "/var/tmp";

/// The variable that says `off` where Firecracker is to run without its jailer.
pub(crate) const JAIL: &str = "BETA9_JAIL";

/// Whether a runtime works here, as the worker itself found out.
#[derive(Debug, Clone)]
pub struct Availability {
    /// The runtime.
    pub runtime: RuntimeKind,
    /// Its version and how it runs, or why it does not.
    pub detail: std::result::Result<String, String>,
}

/// A state directory with an image in it. Everything in it goes when it is dropped, unless it is [kept](Self::keep).
#[derive(Debug)]
pub struct Site {
    directory: tempfile::TempDir,
    worker: PathBuf,
    path: OsString,
    is_kept: AtomicBool,
}

impl Site {
    /// Makes one and imports the image. Says what to do where something is missing.
    pub fn prepare() -> Result<Self> {
        Self::with_settings("", "")
    }

    /// The same with more lines of YAML, indented by none, for the default pool and for its `container_runtime_config`.
    pub fn with_settings(pool: &str, runtime: &str) -> Result<Self> {
        let image = Self::requirements()?;
        let directory = tempfile::Builder::new()
            .prefix("b9-")
            .tempdir_in(PARENT)
            .with_context(|| format!("cannot make a directory in {PARENT}"))?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let tools = std::iter::once(project("target/tools/bin")).chain(std::env::split_paths(&path));
        let path = std::env::join_paths(tools).context("cannot add the tools to PATH")?;
        let site = Self { worker: worker()?, directory, path, is_kept: AtomicBool::new(false) };
        let run = |name| site.directory.path().join("run").join(name);
        // What the worker makes once is no container's.
        for directory in [containers(&site.root()), site.files(), run("gvisor"), run("fc"), run("qemu")] {
            fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        fs::write(site.config(), site.yaml(pool, runtime)).context("cannot write the configuration")?;
        let image = image.into_os_string();
        site.command(["image".into(), "import".into(), "-t".into(), IMAGE.into(), image])
            .finish()?
            .ends_with(0)?;
        Ok(site)
    }

    /// What has to be there before containers can be tested at all; else what to do. Returns where the image is.
    pub fn requirements() -> Result<PathBuf> {
        ensure!(geteuid().is_root(), "containers need root: run this as root");
        worker()?;
        let image = images().join(IMAGE);
        ensure!(image.exists(), "there is no {}: `cargo xtask setup` makes it", image.display());
        Ok(image)
    }

    /// The worker's state directory.
    pub fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// A directory for the tests' own files.
    pub fn files(&self) -> PathBuf {
        self.directory.path().join("files")
    }

    /// PATH with the project's own tools in front.
    pub(crate) fn path(&self) -> &std::ffi::OsStr {
        &self.path
    }

    /// Where the runtime, if it is one of microVMs, has a directory for each.
    pub fn vms(&self, runtime: RuntimeKind) -> PathBuf {
        let name = if runtime == RuntimeKind::Qemu { "qemu" } else { "fc" };
        self.directory.path().join("run").join(name)
    }

    /// The program that is tested.
    pub(crate) fn program(&self) -> &Path {
        &self.worker
    }

    /// Its configuration.
    pub(crate) fn config(&self) -> PathBuf {
        self.directory.path().join("worker.yaml")
    }

    fn yaml(&self, pool: &str, runtime: &str) -> String {
        let guest = variable("BETA9_GUEST_DIR").unwrap_or_else(|| project("target/guest"));
        let (guest, root) = (guest.display(), self.directory.path().join("run"));
        let root = root.display();
        let indented = |text: &str, by: usize| -> String {
            text.lines().map(|line| format!("{:by$}{line}\n", "")).collect()
        };
        let mut usual = vec![
            format!("firecracker_kernel: {guest}/vmlinux"),
            format!("firecracker_root: {root}/fc"),
            format!("qemu_kernel: {guest}/vmlinux"),
            format!("qemu_root: {root}/qemu"),
            format!("gvisor_root: {root}/gvisor"),
        ];
        if std::env::var_os(JAIL).is_some_and(|jail| jail == "off") {
            usual.push("firecracker_jailer: none".to_owned());
        }
        // What a test says itself is not said twice.
        let key = |line: &str| line.split(':').next().map(str::to_owned);
        let said: Vec<_> = runtime.lines().map(key).collect();
        usual.retain(|line| !said.contains(&key(line)));
        let (pool, runtime) = (indented(pool, 6), indented(runtime, 8));
        let usual = indented(&usual.join("\n"), 8);
        format!("worker:\n  pools:\n    default:\n{pool}      container_runtime_config:\n{runtime}{usual}")
    }

    /// Where block images for VMs are kept.
    pub(crate) fn block_images(&self) -> PathBuf {
        self.root().join("images/block")
    }

    /// A command of the worker's, such as `ps -a`.
    pub fn command(&self, args: impl IntoIterator<Item = impl Into<OsString>>) -> Invocation {
        let global = ["--root".into(), self.root().into(), "--config".into(), self.config().into()];
        let args = args.into_iter().map(Into::into);
        let invocation =
            Invocation::new(&self.worker, global.into_iter().chain(args)).env("PATH", &self.path);
        // What chooses a runtime for the caller's own workers is not for these.
        ["CONTAINER_RUNTIME", "BETA9_ROOT", "BETA9_CONFIG"].into_iter().fold(invocation, Invocation::without)
    }

    /// Which runtimes work here: the worker's own verdict, reached by trying each.
    pub fn survey(&self) -> Result<Vec<Availability>> {
        let finished = self.command(["doctor", "--output", "json"]).finish()?;
        let checks: Value = serde_json::from_slice(&finished.stdout)
            .with_context(|| format!("doctor did not answer in JSON\n{finished}"))?;
        let find = |runtime: RuntimeKind| {
            let name = format!("runtime {runtime}");
            let check = checks.as_array()?.iter().find(|check| check["check"] == name.as_str())?;
            let detail = check["detail"].as_str()?.to_owned();
            let detail = if check["ok"] == true { Ok(detail) } else { Err(detail) };
            Some(Availability { runtime, detail })
        };
        RuntimeKind::ALL
            .into_iter()
            .map(|runtime| {
                find(runtime).with_context(|| format!("doctor says nothing of {runtime}\n{finished}"))
            })
            .collect()
    }

    /// Remembers the machine as it is, to count later what containers of this site left on it.
    pub fn watch(&self) -> Result<SiteWatch> {
        let (root, run) = (self.root(), self.directory.path().join("run"));
        let mut scope =
            Scope::new().below(&root).below(&run).mentioning(self.directory.path().to_string_lossy());
        // What containers share and what outlives them by design: images, VMs' first file systems, and which boots
        // have succeeded.
        for shared in ["images", "guest", "probes", "volumes/.lock"] {
            scope = scope.except(root.join(shared));
        }
        let ids = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        inotify::add_watch(&ids, containers(&root), inotify::WatchFlags::CREATE)
            .context("cannot watch containers")?;
        Ok(SiteWatch { watch: scope.watch()?, ids })
    }

    /// Leaves the directory for a reader after a failure.
    pub fn keep(&self) {
        self.is_kept.store(true, Ordering::Relaxed);
    }
}

/// A site whose machine was remembered, and which containers it has had since.
#[derive(Debug)]
pub struct SiteWatch {
    watch: Watch,
    ids: OwnedFd,
}

impl SiteWatch {
    /// What is left of the site's containers after they got `within` to go. Others on the machine do not count.
    pub fn settle(self, within: Duration) -> Result<Leaks> {
        let mut watch = self.watch;
        let mut buffer = [MaybeUninit::uninit(); 64 << 10];
        let mut events = inotify::Reader::new(&self.ids, &mut buffer);
        loop {
            match events.next() {
                Ok(event) => {
                    // Cgroups and processes in them carry the container's id and nothing else of the site.
                    watch = event.file_name().into_iter().fold(watch, |watch, id| {
                        let id = id.to_string_lossy();
                        // Of an interface's name the end of the id is a part.
                        let end = id.get(id.len().saturating_sub(8)..).unwrap_or(&id);
                        watch.mentioning(format!("b9fc_{end}")).mentioning(id)
                    });
                }
                Err(Errno::WOULDBLOCK) => return Ok(watch.settle(within)?),
                Err(error) => return Err(error).context("cannot read which containers there were"),
            }
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if self.is_kept.load(Ordering::Relaxed) {
            self.directory.disable_cleanup(true);
        }
    }
}

/// Where the worker keeps a directory for each container.
fn containers(root: &Path) -> PathBuf {
    root.join("containers")
}

/// The program that is tested: `BETA9_WORKER`, else the one that cargo built beside this test.
fn worker() -> Result<PathBuf> {
    let program = match variable("BETA9_WORKER") {
        Some(path) => path,
        None => {
            let test = std::env::current_exe().context("cannot tell where this program is")?;
            test.ancestors().nth(2).unwrap_or(&test).join("beta9-worker")
        }
    };
    ensure!(program.exists(), "there is no {}: run `cargo build -p beta9-worker` first", program.display());
    Ok(program)
}

/// A distribution's kernel, packed, in its package's tree.
pub(crate) fn stock_kernel() -> Result<PathBuf> {
    let packages = project("target/cache/debian-kernel");
    let trees = fs::read_dir(&packages).into_iter().flatten().flatten();
    let kernels =
        trees.flat_map(|tree| fs::read_dir(tree.path().join("boot")).into_iter().flatten().flatten());
    kernels
        .map(|kernel| kernel.path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")))
        .max()
        .with_context(|| {
            format!("there is no kernel in {}: `cargo xtask setup` fetches it", packages.display())
        })
}

pub(crate) fn images() -> PathBuf {
    variable("BETA9_TEST_IMAGES").unwrap_or_else(|| project("target/cache/images"))
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn project(path: &str) -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).join(path)
}
