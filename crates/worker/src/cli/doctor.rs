//! `doctor`: what this machine can run, found out by trying, and what to do about the rest.

use std::process::ExitCode;

use beta9_types::{RuntimeKind, RuntimeSettings};
use clap::Args;
use serde_json::json;

use crate::cli::table;
use crate::cli::{Global, Outcome, OutputFormat};
use crate::error::chain;
use crate::pools::Setup;
use crate::runtimes;
use crate::terminal;

#[derive(Args)]
pub(super) struct DoctorArgs {
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    output: OutputFormat,
}

struct Check {
    name: String,
    result: Result<String, String>,
    severity: Severity,
}

/// What it means when a check's result is an error.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Severity {
    /// Something does not work.
    Failure,
    /// It works, and should not be left as it is.
    Warning,
}

impl Check {
    fn new(name: impl Into<String>, result: Result<String, String>) -> Self {
        Self { name: name.into(), result, severity: Severity::Failure }
    }

    /// Whether nothing is broken.
    fn passes(&self) -> bool {
        self.result.is_ok() || self.severity == Severity::Warning
    }

    fn word(&self) -> &'static str {
        match (&self.result, self.severity) {
            (Ok(_), _) => "ok",
            (Err(_), Severity::Failure) => "no",
            (Err(_), Severity::Warning) => "warning",
        }
    }
}

/// Exits 0 when at least one runtime works.
pub(super) async fn run(global: &Global, args: DoctorArgs) -> Outcome {
    terminal::init_logging(global.verbose);
    let setup = Setup::load(global)?;
    let mut checks = vec![root_user(), state_directory(&setup), cgroups(), kvm()];
    checks.push(network(&setup));
    let pool = setup.config.default_pool().or(setup.config.pools().first());
    let settings = pool.map(|pool| pool.settings.clone()).unwrap_or_default();
    let mut works = false;
    for kind in RuntimeKind::ALL {
        let tried = runtimes::create(&setup.root, kind, &settings).await;
        works |= tried.is_ok();
        let platform = tried.as_ref().ok().map(|working| working.settings.gvisor_platform.clone());
        let result = tried.map(|working| working.detail).map_err(|e| chain(&e));
        checks.push(Check::new(format!("runtime {kind}"), result));
        if let (RuntimeKind::Gvisor, Some(platform)) = (kind, platform) {
            checks.push(gvisor_platform(&settings.gvisor_platform, &platform, opens_kvm().is_ok()));
        }
    }
    checks.push(jailer(&settings).await);
    if args.output == OutputFormat::Json {
        let check = |check: &Check| {
            let (Ok(text) | Err(text)) = &check.result;
            json!({ "check": check.name, "ok": check.passes(), "result": check.word(), "detail": text })
        };
        terminal::json(&checks.iter().map(check).collect::<Vec<_>>())?;
    } else {
        let mut table = table::new(["CHECK", "RESULT", "DETAIL"]);
        for check in &checks {
            let (Ok(text) | Err(text)) = &check.result;
            table.add_row([check.name.as_str(), check.word(), text]);
        }
        terminal::line(&table.trim_fmt())?;
    }
    Ok(if works { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn root_user() -> Check {
    let result = if rustix::process::geteuid().is_root() {
        Ok("running as root".to_owned())
    } else {
        Err("not root: mounts, namespaces and cgroups need it; use sudo".to_owned())
    };
    Check::new("privileges", result)
}

/// Overlay mounts need an upper layer that is not itself an overlay.
fn state_directory(setup: &Setup) -> Check {
    const OVERLAYFS_MAGIC: i64 = 0x794c_7630;
    let existing = setup.root.ancestors().find(|path| path.exists()).unwrap_or(&setup.root);
    let result = match rustix::fs::statfs(existing) {
        Ok(stat) if stat.f_type == OVERLAYFS_MAGIC => Err(format!(
            "{} is on an overlay, which cannot hold another: use a volume or --root DIR",
            setup.root.display()
        )),
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(u64::try_from(stat.f_bsize).unwrap_or(0));
            Ok(format!("{}, {} free", setup.root.display(), terminal::bytes(free)))
        }
        Err(e) => Err(format!("{}: {}", setup.root.display(), std::io::Error::from(e))),
    };
    Check::new("state directory", result)
}

fn cgroups() -> Check {
    let exists = |path: &str| std::path::Path::new(path).exists();
    let result = if exists("/sys/fs/cgroup/cgroup.controllers") {
        Ok("version 2".to_owned())
    } else if exists("/sys/fs/cgroup/memory/cgroup.procs") {
        Ok("version 1".to_owned())
    } else {
        Err("no cgroup hierarchy with a memory controller is mounted at /sys/fs/cgroup".to_owned())
    };
    Check::new("cgroups", result)
}

/// Whether containers can have a bridge, and whether another firewall keeps them from the rest of the world.
fn network(setup: &Setup) -> Check {
    let settings = setup.config.network();
    let result = beta9_network::is_usable().map_err(|e| chain(&e)).and_then(|()| {
        let bridge = format!("bridge {}, {}", settings.bridge, settings.ipv4);
        match beta9_network::dropping(&settings.bridge, &beta9_network::Nft::new(None)) {
            Ok(droppers) => match droppers.first() {
                None => Ok(bridge),
                Some(one) if one.has_pair => {
                    Ok(format!("{bridge}; chain {} drops what is passed on, and lets containers' packets pass", one.chain))
                }
                Some(one) => Err(format!(
                    "{bridge}; chain {} drops what is passed on: containers reach this host and each other alone until it \
                     lets packets of {} pass",
                    one.chain, settings.bridge
                )),
            },
            Err(error) => Err(chain(&error)),
        }
    });
    Check::new("network", result)
}

fn opens_kvm() -> std::io::Result<()> {
    std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").map(drop)
}

/// How gVisor catches system calls: the fastest way that works is not always the one that is configured.
fn gvisor_platform(asked: &str, used: &str, has_kvm: bool) -> Check {
    let result = match (asked, used) {
        ("systrap", "ptrace") => Err(
            "this runsc does not know systrap and uses ptrace, with which each system call takes several times as long: \
             install a release of 2023 or later"
                .to_owned(),
        ),
        ("ptrace", _) => Err("ptrace is the slowest platform: set gvisor_platform to systrap".to_owned()),
        ("kvm", _) if !has_kvm => {
            Err("gvisor_platform is kvm and /dev/kvm does not open: set it to systrap".to_owned())
        }
        _ => Ok(used.to_owned()),
    };
    Check { severity: Severity::Warning, ..Check::new("gvisor platform", result) }
}

fn kvm() -> Check {
    let result = match opens_kvm() {
        Ok(()) => Ok("/dev/kvm opens; whether it boots a kernel is tried below".to_owned()),
        Err(e) => Err(format!("/dev/kvm: {e}; Firecracker needs it, QEMU emulates instead")),
    };
    Check::new("kvm", result)
}

/// What stands around Firecracker, whether or not it works here.
async fn jailer(settings: &RuntimeSettings) -> Check {
    let result = match beta9_microvm::find_jailer(settings) {
        Ok(jailer) => match runtimes::version(&jailer).await {
            Ok(version) => match beta9_microvm::jailer_flaws(&version) {
                None => Ok(format!("{version}, {}", jailer.display())),
                Some(flaws) => Err(flaws),
            },
            Err(error) => Err(chain(&error)),
        },
        Err(reason) => Err(format!("firecracker would run as root and without a jail: {reason}")),
    };
    Check { severity: Severity::Warning, ..Check::new("jailer", result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_or_missing_platform_is_a_warning_with_its_remedy() {
        let check = |asked, used, has_kvm| {
            let check = gvisor_platform(asked, used, has_kvm);
            assert!(check.passes(), "{asked} is more than a warning");
            (check.word(), check.result.unwrap_or_else(|text| text))
        };
        assert_eq!(check("systrap", "systrap", false), ("ok", "systrap".to_owned()));
        assert_eq!(check("kvm", "kvm", true), ("ok", "kvm".to_owned()));
        for (asked, used, remedy) in [
            ("systrap", "ptrace", "2023 or later"),
            ("ptrace", "ptrace", "set gvisor_platform"),
            ("kvm", "kvm", "/dev/kvm does not open"),
        ] {
            let (word, text) = check(asked, used, false);
            assert!(word == "warning" && text.contains(remedy), "{asked}: {word}, {text}");
        }
    }
}
