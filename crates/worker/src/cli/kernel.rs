//! `kernel`: the kernel that VMs boot, put where pools look for it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use beta9_guest::{Drivers, Kernel, Modules, module_archive};
use clap::{Args, Subcommand};
use serde_json::json;

use crate::cli::{Failure, Global, Outcome, OutputFormat, table};
use crate::error::chain;
use crate::pools::Setup;
use crate::{guest, terminal};

#[derive(Subcommand)]
pub(super) enum KernelCommand {
    /// Check a kernel, unpack it, and put it where pools look for it, with the modules that a guest needs.
    Install(InstallArgs),
    /// List the kernels that pools boot.
    Ls(LsArgs),
    /// Remove an installed kernel.
    Rm(RmArgs),
}

#[derive(Args)]
pub(super) struct InstallArgs {
    /// A kernel: a distribution's vmlinuz, or a vmlinux. This machine's own kernel where absent.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Its modules, where it has its drivers in modules. `lib/modules/VERSION` beside the `boot` of FILE, or of this machine,
    /// where absent.
    #[arg(long, value_name = "DIR")]
    modules: Option<PathBuf>,
    /// Where to put it. Where the pools look for it where absent.
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

#[derive(Args)]
pub(super) struct LsArgs {
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    output: OutputFormat,
}

#[derive(Args)]
pub(super) struct RmArgs {
    /// Which one, by its path. The only one that pools look for where absent.
    #[arg(value_name = "FILE")]
    kernel: Option<PathBuf>,
}

pub(super) fn run(global: &Global, command: KernelCommand) -> Outcome {
    terminal::init_logging(global.verbose);
    let places = places(&Setup::load(global)?);
    match command {
        KernelCommand::Install(args) => install(&places, args),
        KernelCommand::Ls(args) => list(&places, args.output),
        KernelCommand::Rm(args) => remove(&only(&places, args.kernel)?),
    }
}

/// Where pools look for kernels, and which pools do.
fn places(setup: &Setup) -> BTreeMap<PathBuf, Vec<String>> {
    let mut places: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
    for pool in setup.config.pools() {
        for path in [&pool.settings.firecracker_kernel, &pool.settings.qemu_kernel] {
            let pools = places.entry(path.clone()).or_default();
            if pools.last().map(String::as_str) != Some(pool.name.as_str()) {
                pools.push(pool.name.to_string());
            }
        }
    }
    places
}

fn only(places: &BTreeMap<PathBuf, Vec<String>>, named: Option<PathBuf>) -> Result<PathBuf, Failure> {
    if let Some(path) = named {
        return std::path::absolute(&path).map_err(|e| failed("find", &path, &e));
    }
    let paths: Vec<_> = places.keys().map(|path| path.display().to_string()).collect();
    match places.keys().next() {
        Some(path) if paths.len() == 1 => Ok(path.clone()),
        _ => Err(Failure::new(format!("pools boot several kernels: name one of {}", paths.join(", ")))),
    }
}

fn install(places: &BTreeMap<PathBuf, Vec<String>>, args: InstallArgs) -> Outcome {
    let to = only(places, args.to)?;
    let from = match args.from {
        Some(from) => from,
        None => own_kernel(Path::new("/boot"))?,
    };
    let kernel = Kernel::read(&from).map_err(refused)?;
    let (version, at) = (kernel.version(), to.display());
    let modules = match kernel.drivers() {
        Drivers::BuiltIn => None,
        Drivers::Modules => {
            let directory = match args.modules {
                Some(directory) => directory,
                None => modules_of(&from, version).ok_or_else(|| {
                    Failure::new(format!(
                        "Linux {version} has its drivers in modules, and lib/modules/{version} is not there: install \
                         its package, or name its modules with --modules DIR"
                    ))
                })?,
            };
            let (purposes, missing) = Modules::of(&directory).and_then(|m| m.for_guest()).map_err(refused)?;
            if !missing.is_empty() {
                let text =
                    format!("Linux {version} has no modules for {}: guests do without", missing.join(", "));
                terminal::warning(&text);
            }
            Some(module_archive(&purposes).map_err(refused)?)
        }
    };
    if let Some(directory) = to.parent() {
        fs::create_dir_all(directory).map_err(|e| failed("create", directory, &e))?;
    }
    let beside = guest::modules_beside(&to);
    match &modules {
        Some(modules) => guest::write(&beside, modules, 0o444).map_err(|e| failed("write", &beside, &e))?,
        None => forget(&beside)?,
    }
    guest::write(&to, kernel.image(), 0o444).map_err(|e| failed("write", &to, &e))?;
    let with = if modules.is_some() { ", with its modules" } else { "" };
    terminal::line(&format!("Linux {version} is installed at {at}{with}"))?;
    if !places.contains_key(&to) {
        terminal::warning(&format!("no pool boots {at}: set firecracker_kernel and qemu_kernel to it"));
    }
    Ok(ExitCode::SUCCESS)
}

/// The kernel that runs here, else the newest that is installed.
fn own_kernel(boot: &Path) -> Result<PathBuf, Failure> {
    let running = rustix::system::uname().release().to_string_lossy().into_owned();
    let running = boot.join(format!("vmlinuz-{running}"));
    if running.is_file() {
        return Ok(running);
    }
    let is_kernel = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")) && path.is_file()
    };
    let installed = fs::read_dir(boot).into_iter().flatten().flatten().map(|entry| entry.path());
    installed.filter(is_kernel).max_by_key(|path| path.metadata().and_then(|m| m.modified()).ok()).ok_or_else(
        || {
            let text = format!(
                "there is no kernel in {}: name one with --from FILE (in Debian, package linux-image-cloud-amd64 has \
                 a good one)",
                boot.display()
            );
            Failure::new(text)
        },
    )
}

/// The modules of a kernel that lies in a `boot` directory, of this machine or of an unpacked package.
fn modules_of(kernel: &Path, version: &str) -> Option<PathBuf> {
    let kernel = std::path::absolute(kernel).ok()?;
    let beside = kernel.ancestors().nth(2).map(|root| root.join("lib/modules").join(version));
    let ours = Path::new("/lib/modules").join(version);
    beside.into_iter().chain([ours]).find(|directory| directory.join("modules.builtin").is_file())
}

/// What is known of a file that pools boot.
fn describe(path: &Path) -> Result<Kernel, String> {
    if path.exists() { Kernel::read(path).map_err(|e| chain(&e)) } else { Err("not installed".to_owned()) }
}

fn list(places: &BTreeMap<PathBuf, Vec<String>>, output: OutputFormat) -> Outcome {
    let found: Vec<_> = places.iter().map(|(path, pools)| (path, pools, describe(path))).collect();
    let drivers = |path: &Path, kernel: &Kernel| match kernel.drivers() {
        Drivers::BuiltIn => "built in",
        Drivers::Modules if guest::modules_beside(path).is_file() => "modules",
        Drivers::Modules => "missing",
    };
    if output == OutputFormat::Json {
        let row = |(path, pools, kernel): &(&PathBuf, &Vec<String>, Result<Kernel, String>)| {
            json!({
                "path": path,
                "pools": pools,
                "version": kernel.as_ref().ok().map(Kernel::version),
                "bytes": kernel.as_ref().ok().map(|kernel| kernel.image().len()),
                "drivers": kernel.as_ref().ok().map(|kernel| drivers(path, kernel)),
                "error": kernel.as_ref().err(),
            })
        };
        terminal::json(&found.iter().map(row).collect::<Vec<_>>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = table::new(["KERNEL", "VERSION", "SIZE", "DRIVERS", "POOLS"]);
    for (path, pools, kernel) in &found {
        let path_text = path.display().to_string();
        let pools = pools.join(", ");
        match kernel {
            Ok(kernel) => {
                let size = terminal::bytes(kernel.image().len() as u64);
                rows.add_row([&path_text, kernel.version(), &size, drivers(path, kernel), &pools])
            }
            Err(why) => rows.add_row([&path_text, why, "-", "-", &pools]),
        };
    }
    terminal::line(&rows.trim_fmt())?;
    Ok(ExitCode::SUCCESS)
}

fn remove(path: &Path) -> Outcome {
    fs::remove_file(path).map_err(|e| failed("remove", path, &e))?;
    forget(&guest::modules_beside(path))?;
    terminal::line(&path.display().to_string())?;
    Ok(ExitCode::SUCCESS)
}

fn forget(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed("remove", path, &e)),
        _ => Ok(()),
    }
}

fn failed(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("{what} {}: {error}", path.display()))
}

fn refused(error: beta9_guest::Error) -> Failure {
    Failure::new(chain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(path: &Path) -> BTreeMap<PathBuf, Vec<String>> {
        BTreeMap::from([(path.to_owned(), vec!["default".to_owned()])])
    }

    fn args(from: &Path) -> InstallArgs {
        InstallArgs { from: Some(from.to_owned()), modules: None, to: None }
    }

    #[test]
    fn what_is_no_kernel_is_refused_and_replaces_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let kernel = directory.path().join("deep/vmlinux");
        for (name, contents) in [("text", "no kernel"), ("empty", "")] {
            let from = directory.path().join(name);
            fs::write(&from, contents).unwrap();
            let failure = install(&one(&kernel), args(&from)).map(drop).unwrap_err();
            assert!(failure.message.contains("it is neither a kernel"), "{}", failure.message);
        }
        let failure = install(&one(&kernel), args(Path::new("/proc/self/exe"))).map(drop).unwrap_err();
        assert!(failure.message.contains("no PVH entry"), "{}", failure.message);
        let failure = install(&one(&kernel), args(Path::new("/nowhere"))).map(drop).unwrap_err();
        assert!(failure.message.starts_with("open /nowhere: "), "{}", failure.message);
        assert!(!kernel.exists());
    }

    #[test]
    fn several_places_have_to_be_named() {
        let mut places = one(Path::new("/a"));
        assert_eq!(only(&places, None).ok().unwrap(), Path::new("/a"));
        places.insert("/b".into(), Vec::new());
        assert!(only(&places, None).map(drop).unwrap_err().message.contains("name one of /a, /b"));
        assert_eq!(only(&places, Some("/c".into())).ok().unwrap(), Path::new("/c"));
    }

    #[test]
    fn this_machines_kernel_is_the_running_one_or_the_newest() {
        let boot = tempfile::tempdir().unwrap();
        assert!(own_kernel(boot.path()).map(drop).unwrap_err().message.contains("--from FILE"));
        fs::write(boot.path().join("vmlinuz-5.0"), "").unwrap();
        fs::write(boot.path().join("initrd.img-5.0"), "").unwrap();
        assert!(own_kernel(boot.path()).ok().unwrap().ends_with("vmlinuz-5.0"));
        let running = rustix::system::uname().release().to_string_lossy().into_owned();
        fs::write(boot.path().join(format!("vmlinuz-{running}")), "").unwrap();
        fs::write(boot.path().join("vmlinuz-6.0"), "").unwrap();
        assert!(own_kernel(boot.path()).ok().unwrap().ends_with(format!("vmlinuz-{running}")));
    }
}
