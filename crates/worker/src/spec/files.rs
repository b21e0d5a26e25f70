//! What is mounted over an image: the kernel's file systems, the container's own small files, and what was asked for.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use beta9_types::{BindMount, ContainerRequest, MountAccess, NetworkMode, RuntimeKind, TmpfsMount};
use oci_spec::OciSpecError;
use oci_spec::runtime::{Mount, MountBuilder};

use crate::error::Result;

/// Longest `/etc/resolv.conf` of the host that is taken over.
const MAX_RESOLV: usize = 64 << 10;

type Built<T> = std::result::Result<T, OciSpecError>;

/// A file that is made for one container and mounted into it, so that its writes to it stay its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GeneratedFile {
    pub(crate) name: &'static str,
    pub(crate) target: &'static str,
    pub(crate) content: String,
}

impl GeneratedFile {
    /// Where it is, below the container's directory.
    pub(crate) fn path(&self, directory: &Path) -> PathBuf {
        directory.join("files").join(self.name)
    }
}

/// `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf`, those excepted that a mount of the request covers.
pub(super) fn generated(request: &ContainerRequest, hostname: &str) -> Result<Vec<GeneratedFile>> {
    let host = resolvers(&request.options.network.mode);
    let files = [
        GeneratedFile { name: "hosts", target: "/etc/hosts", content: hosts(request, hostname) },
        GeneratedFile { name: "hostname", target: "/etc/hostname", content: format!("{hostname}\n") },
        GeneratedFile {
            name: "resolv.conf",
            target: "/etc/resolv.conf",
            content: resolv_conf(request, &host),
        },
    ];
    let covered = |target: &str| {
        let binds = request.mounts.iter().map(|mount| mount.target.as_path());
        let tmpfs = request.options.files.tmpfs.iter().map(|mount| Path::new(mount.target()));
        binds.chain(tmpfs).any(|mounted| Path::new(target).starts_with(mounted))
    };
    Ok(files.into_iter().filter(|file| !covered(file.target)).collect())
}

/// The host's name servers: those behind its own, where it only asks itself and the container cannot.
fn resolvers(mode: &Option<NetworkMode>) -> String {
    let read = |path: &str| {
        let bytes = std::fs::read(path).unwrap_or_default();
        String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_RESOLV)]).into_owned()
    };
    let host = read("/etc/resolv.conf");
    let behind = read("/run/systemd/resolve/resolv.conf");
    if *mode != Some(NetworkMode::Host) && !host.lines().any(is_usable) && behind.lines().any(is_usable) {
        return behind;
    }
    host
}

/// Whether a line names a server that is not the host itself.
fn is_usable(line: &str) -> bool {
    let server = line.trim().strip_prefix("nameserver ").map(str::trim);
    server
        .and_then(|server| server.parse::<std::net::IpAddr>().ok())
        .is_some_and(|server| !server.is_loopback())
}

fn hosts(request: &ContainerRequest, hostname: &str) -> String {
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    // Writing to a string cannot fail.
    let _ = writeln!(text, "127.0.0.1\t{hostname}");
    for entry in &request.options.names.hosts {
        let (name, address) = entry.parts();
        let _ = writeln!(text, "{address}\t{name}");
    }
    text
}

/// The host's own, line by line, where the request does not say otherwise. A name server on the host's loopback is
/// none to a container.
fn resolv_conf(request: &ContainerRequest, host: &str) -> String {
    let names = &request.options.names;
    let of_host = |word: &str| -> Vec<String> {
        let lines = host.lines().filter_map(|line| line.trim().strip_prefix(word)).map(str::trim);
        lines.filter(|rest| !rest.is_empty()).map(str::to_owned).collect()
    };
    let is_usable = |server: &String| {
        let shares = request.options.network.mode == Some(NetworkMode::Host);
        server.parse::<std::net::IpAddr>().is_ok_and(|address| shares || !address.is_loopback())
    };
    let servers: Vec<String> = if names.dns.is_empty() {
        of_host("nameserver ").into_iter().filter(is_usable).collect()
    } else {
        names.dns.iter().map(ToString::to_string).collect()
    };
    let joined = |own: &[String], word: &str| -> Option<String> {
        let words = if own.is_empty() { of_host(word).pop()? } else { own.join(" ") };
        // docker's way to ask for none.
        Some(words).filter(|words| words != ".")
    };
    let mut text = String::new();
    for server in servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if let Some(domains) = joined(&names.dns_search, "search ") {
        let _ = writeln!(text, "search {domains}");
    }
    if let Some(options) = joined(&names.dns_options, "options ") {
        let _ = writeln!(text, "options {options}");
    }
    text
}

pub(super) fn default_mounts(request: &ContainerRequest) -> Built<Vec<Mount>> {
    let shm = match request.options.files.shm_bytes {
        Some(bytes) => format!("size={bytes}"),
        None => "size=65536k".to_owned(),
    };
    let cgroup = if request.options.process.unmasked { "rw" } else { "ro" };
    Ok(vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"])?,
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"])?,
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        )?,
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"])?,
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", cgroup])?,
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"])?,
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", &shm])?,
    ])
}

/// Mounts of this container alone. One that is below another comes after it.
pub(super) fn mounts(
    request: &ContainerRequest,
    generated: &[GeneratedFile],
    directory: &Path,
    runtime: RuntimeKind,
) -> Built<Vec<Mount>> {
    let mut mounts = Vec::new();
    for file in generated {
        mounts.push(bind(file.path(directory), file.target, vec!["rprivate", "rw"])?);
    }
    for wanted in &request.mounts {
        let options = options(wanted, runtime);
        mounts.push(bind(wanted.source.clone(), &wanted.target, options)?);
    }
    for wanted in &request.options.files.tmpfs {
        mounts.push(tmpfs(wanted)?);
    }
    mounts.sort_by_key(|mount| mount.destination().components().count());
    Ok(mounts)
}

/// docker's defaults, then the request's options over them.
fn tmpfs(wanted: &TmpfsMount) -> Built<Mount> {
    let mut options = vec!["nosuid", "nodev", "noexec"];
    for option in wanted.options() {
        let opposite = match option {
            "suid" => "nosuid",
            "dev" => "nodev",
            "exec" => "noexec",
            _ => option,
        };
        options.retain(|kept| *kept != opposite);
        options.push(option);
    }
    mount(wanted.target(), "tmpfs", "tmpfs", &options)
}

fn options(mount: &BindMount, runtime: RuntimeKind) -> Vec<&'static str> {
    let access = match mount.access {
        // What is mounted below it on the host would stay writable with `ro`; the others see one mount there.
        MountAccess::ReadOnly if runtime == RuntimeKind::Runc => "rro",
        MountAccess::ReadOnly => "ro",
        MountAccess::ReadWrite => "rw",
    };
    [mount.propagation.as_str(), access].into_iter().chain(mount.limits.options()).collect()
}

fn bind(source: PathBuf, target: impl Into<PathBuf>, options: Vec<&str>) -> Built<Mount> {
    let options = std::iter::once("rbind").chain(options).map(str::to_owned).collect::<Vec<_>>();
    MountBuilder::default().destination(target).typ("bind").source(source).options(options).build()
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Built<Mount> {
    MountBuilder::default()
        .destination(destination)
        .typ(kind)
        .source(source)
        .options(options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::request;

    #[test]
    fn a_name_server_on_the_hosts_loopback_is_left_out() {
        let host = "# made by hand\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nsearch a b\noptions edns0\n";
        let mut request = request(&["true"]);
        assert_eq!(resolv_conf(&request, host), "nameserver 192.0.2.1\nsearch a b\noptions edns0\n");
        request.options.names.dns = vec!["192.0.2.9".parse().unwrap()];
        request.options.names.dns_search = vec![".".to_owned()];
        request.options.names.dns_options = vec!["ndots:2".to_owned()];
        assert_eq!(resolv_conf(&request, host), "nameserver 192.0.2.9\noptions ndots:2\n");
    }

    #[test]
    fn what_a_mount_covers_is_not_made() {
        let mut request = request(&["true"]);
        assert_eq!(generated(&request, "h").unwrap().len(), 3);
        request.mounts = vec!["/src:/etc/hosts".parse().unwrap()];
        assert_eq!(generated(&request, "h").unwrap().len(), 2);
        request.options.files.tmpfs = vec!["/etc".parse().unwrap()];
        assert_eq!(generated(&request, "h").unwrap(), []);
    }

    #[test]
    fn the_last_option_of_a_memory_file_system_counts() {
        let options = |text: &str| tmpfs(&text.parse().unwrap()).unwrap().options().clone().unwrap();
        assert_eq!(options("/a"), ["nosuid", "nodev", "noexec"]);
        assert_eq!(options("/a:exec,size=1m"), ["nosuid", "nodev", "exec", "size=1m"]);
    }
}
