//! `cargo xtask kernel`: the guest's own kernel, from Debian's source and our configuration.
//!
//! ```text
//! linux-source ──▶ target/cache/linux-source/<package>   fetched and unpacked once
//! kernel/microvm.config ──▶ target/kernel/build/.config   and every line of it is found there again
//!        make ──▶ target/kernel/{vmlinux,config,version}  put there when it is whole
//! ```
//!
//! It takes some eight minutes on two cores. A build that was cut short goes on where it was; one without changes takes a
//! moment.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use beta9_guest::{Drivers, Kernel};

use crate::process::{command, output, step, tail};
use crate::project::Project;
use crate::{debian, guest};

/// What a build of the kernel runs, by the package it comes in.
const TOOLS: &[&str] =
    &["gcc", "make", "flex", "bison", "bc", "libelf-dev", "libssl-dev", "binutils", "xz-utils", "tar"];

/// Our configuration.
const FRAGMENT: &str = "kernel/microvm.config";

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Compilers at the same time; as many as there are processors if not given
    #[arg(long, short, value_name = "N")]
    jobs: Option<usize>,
    /// The package with the source; Debian's current one if not given
    #[arg(long, value_name = "PACKAGE")]
    package: Option<String>,
}

/// Our kernel, built.
#[derive(Debug, Clone)]
pub(crate) struct Own {
    /// As `uname -r` prints it.
    pub(crate) version: String,
    /// The ELF image, without symbols.
    pub(crate) image: PathBuf,
}

/// Our kernel, if it was built.
pub(crate) fn built(project: &Project) -> Option<Own> {
    let (image, version) = (place(project).join("vmlinux"), place(project).join("version"));
    let version = fs::read_to_string(version).ok()?.trim().to_owned();
    image.is_file().then_some(Own { version, image })
}

fn place(project: &Project) -> PathBuf {
    project.root().join("target/kernel")
}

/// Builds it and makes it the one that guests boot.
pub(crate) fn run(project: &Project, options: &Options) -> Result<Own> {
    debian::require_root_on_debian()?;
    debian::install(TOOLS)?;
    let source = source(project, options.package.as_deref())?;
    let build = place(project).join("build");
    fs::create_dir_all(&build).with_context(|| format!("cannot make {}", build.display()))?;
    let kernel = Build { source, build, jobs: options.jobs };
    kernel.configure(&project.root().join(FRAGMENT))?;
    kernel.compile()?;
    let own = kernel.install(&place(project))?;
    guest::run(project, &guest::Options::with_kernel(Some(guest::Choice::Own)))?;
    Ok(own)
}

/// The unpacked source.
fn source(project: &Project, package: Option<&str>) -> Result<PathBuf> {
    let package = match package {
        Some(package) => package.to_owned(),
        None => debian::resolve("linux-source", "linux-source-")?,
    };
    let base = project.cache().join("linux-source");
    let tree = base.join(&package);
    if tree.exists() {
        return Ok(tree);
    }
    let fetched = base.join(format!("{package}.package"));
    if !fetched.exists() {
        step(&format!("fetch {package}"), || debian::unpack(&package, &fetched))?;
    }
    step(&format!("unpack {package}"), || {
        let archive = fetched.join("usr/src").join(format!("{package}.tar.xz"));
        let staging = tempfile::tempdir_in(&base).context("cannot make a directory for the source")?;
        output(command("tar", ["-xf"]).arg(&archive).arg("-C").arg(staging.path()))?;
        fs::rename(staging.path().join(&package), &tree)
            .with_context(|| format!("{} holds no {package}", archive.display()))?;
        fs::remove_dir_all(&fetched).context("cannot remove the package")
    })?;
    Ok(tree)
}

struct Build {
    source: PathBuf,
    build: PathBuf,
    jobs: Option<usize>,
}

impl Build {
    fn make(&self) -> Result<Command> {
        let mut make = command("make", ["-C"]);
        make.arg(&self.source).arg(format!("O={}", self.build.display())).arg("ARCH=x86_64");
        // Whoever builds it, and when, is not part of it: the same source gives the same kernel.
        let age = output(command("date", ["-u", "-r"]).arg(self.source.join("Makefile")))?;
        make.env("KBUILD_BUILD_TIMESTAMP", age.trim());
        make.env("KBUILD_BUILD_USER", "beta9").env("KBUILD_BUILD_HOST", "beta9").env("LC_ALL", "C");
        make.env_remove("MAKEFLAGS");
        Ok(make)
    }

    /// Makes the configuration anew when ours has changed.
    fn configure(&self, fragment: &Path) -> Result<()> {
        let wanted =
            fs::read_to_string(fragment).with_context(|| format!("cannot read {}", fragment.display()))?;
        let (config, made_of) = (self.build.join(".config"), self.build.join("made-of"));
        let stamp = format!("{}\n{wanted}", self.source.display());
        if !config.exists() || fs::read_to_string(&made_of).ok().as_deref() != Some(&stamp) {
            step("configure the kernel", || {
                output(self.make()?.arg("allnoconfig").env("KCONFIG_ALLCONFIG", fragment)).map(drop)
            })?;
            fs::write(&made_of, stamp).context("cannot note what the configuration was made of")?;
        }
        let config = fs::read_to_string(&config).context("cannot read the kernel's configuration")?;
        let dropped = dropped(&wanted, &config);
        // What is wrong with it is not to be found at the next run.
        if !dropped.is_empty() {
            fs::remove_file(&made_of).context("cannot forget the configuration")?;
            bail!(
                "the kernel has no such option, or one that it needs is off; see {}:\n{}",
                fragment.display(),
                dropped.join("\n")
            );
        }
        Ok(())
    }

    fn compile(&self) -> Result<()> {
        let jobs = self.jobs.or_else(|| std::thread::available_parallelism().ok().map(|n| n.get()));
        let log = self.build.join("build.log");
        let mut make = self.make()?;
        make.arg(format!("-j{}", jobs.unwrap_or(1))).arg("vmlinux");
        let errors = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        make.stdout(Stdio::piped()).stderr(errors);
        let began = Instant::now();
        let mut child = make.spawn().context("cannot run make")?;
        let mut progress = Progress::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).lines().map_while(Result::ok).for_each(|line| progress.saw(&line));
        }
        let status = child.wait().context("cannot wait for make")?;
        progress.end();
        if !status.success() {
            let said = fs::read_to_string(&log).unwrap_or_default();
            bail!("cannot build the kernel:\n{}", tail(&said, 30));
        }
        eprintln!("   build the kernel: {} files, {:.0} s", progress.files, began.elapsed().as_secs_f64());
        Ok(())
    }

    /// Puts the kernel without symbols in its place, with what it was made of.
    fn install(&self, place: &Path) -> Result<Own> {
        let partial = place.join("vmlinux.partial");
        output(command("strip", ["-o"]).arg(&partial).arg(self.build.join("vmlinux")))?;
        let kernel = Kernel::read(&partial)?;
        ensure!(kernel.drivers() == Drivers::BuiltIn, "the kernel that was built has its drivers in modules");
        let own = Own { version: kernel.version().to_owned(), image: place.join("vmlinux") };
        fs::copy(self.build.join(".config"), place.join("config"))
            .context("cannot keep the configuration")?;
        fs::write(place.join("version"), format!("{}\n", own.version)).context("cannot note the version")?;
        let same = fs::read(&own.image).is_ok_and(|there| there == kernel.image());
        if same {
            fs::remove_file(&partial).context("cannot remove what is there already")?;
        } else {
            fs::rename(&partial, &own.image).context("cannot put the kernel in place")?;
        }
        eprintln!("   kernel {} in {}: {} KiB", own.version, place.display(), kernel.image().len() >> 10);
        Ok(own)
    }
}

/// The lines of a fragment that a configuration does not have.
fn dropped(fragment: &str, config: &str) -> Vec<String> {
    let has = |wanted: &str| config.lines().any(|line| line == wanted);
    let name = |line: &str| -> Option<String> {
        let name = line.strip_prefix("# ").and_then(|rest| rest.strip_suffix(" is not set"))?;
        name.starts_with("CONFIG_").then(|| name.to_owned())
    };
    let is_dropped = |line: &&str| match name(line) {
        // An option that is off need not even be named.
        Some(name) => config.lines().any(|line| line.starts_with(&format!("{name}="))),
        None => line.starts_with("CONFIG_") && !has(line),
    };
    fragment.lines().map(str::trim).filter(is_dropped).map(str::to_owned).collect()
}

/// Shows how far a build is, by the files that were compiled.
struct Progress {
    files: u32,
    began: Instant,
    shown: Instant,
    is_terminal: bool,
}

impl Progress {
    fn new() -> Self {
        let now = Instant::now();
        eprintln!("   build the kernel; some 1100 files the first time …");
        Self { files: 0, began: now, shown: now, is_terminal: std::io::stderr().is_terminal() }
    }

    fn saw(&mut self, line: &str) {
        if line.trim_start().split(' ').next().is_some_and(|word| matches!(word, "CC" | "AS")) {
            self.files += 1;
        }
        let every = Duration::from_secs(if self.is_terminal { 1 } else { 30 });
        if self.shown.elapsed() >= every {
            self.shown = Instant::now();
            let mut text = format!("   build the kernel … {} files, ", self.files);
            let _ = write!(text, "{} s", self.began.elapsed().as_secs());
            eprint!("{text}{}", if self.is_terminal { "\r" } else { "\n" });
        }
    }

    fn end(&self) {
        if self.is_terminal {
            eprint!("\u{1b}[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_the_kernel_dropped_are_told() {
        let fragment =
            "# a comment\nCONFIG_A=y\nCONFIG_B=7\n# CONFIG_C is not set\n# CONFIG_D is not set\nCONFIG_E=y\n";
        let config = "CONFIG_A=y\nCONFIG_B=8\nCONFIG_C=y\n# CONFIG_D is not set\n";
        assert_eq!(dropped(fragment, config), ["CONFIG_B=7", "# CONFIG_C is not set", "CONFIG_E=y"]);
        assert!(dropped(fragment, "CONFIG_A=y\nCONFIG_B=7\nCONFIG_E=y\n").is_empty());
    }

    #[test]
    fn our_configuration_is_well_formed() {
        let text = include_str!("../../kernel/microvm.config");
        let mut seen = std::collections::BTreeSet::new();
        for line in text.lines().filter(|line| line.starts_with("CONFIG_")) {
            let (name, value) = line.split_once('=').expect(line);
            assert!(seen.insert(name), "{name} is there twice");
            assert!(value == "y" || value.starts_with('"') || value.parse::<i64>().is_ok(), "{line}");
        }
    }
}
