//! `cargo xtask fuzz`: the fuzz targets in `fuzz/`, guided by coverage.
//!
//! They run on the stable toolchain: the compiler's own pass instruments the code, and libFuzzer comes with a crate. No
//! sanitizer is needed, as nearly nothing is unsafe; what is looked for are panics, disagreements, hangs and memory.
//! What a run has learnt is kept in `target/fuzz/corpus/`; an input that fails is kept in `target/fuzz/failed/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::process::{cargo, command, output, step};
use crate::project::Project;

/// Every target, and the largest input that it gets.
const TARGETS: [(&str, u32); 6] = [
    ("layer", 16384),
    ("manifest", 8192),
    ("reference", 512),
    ("frame", 8192),
    ("supervisor", 8192),
    ("config", 4096),
];

/// What the compiler is told so that libFuzzer sees which code an input reaches.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// One input may take so long and so much: what takes more hangs, or can be made to eat a machine.
const TIMEOUT_SECONDS: u32 = 20;
const MEMORY_MIB: u32 = 2048;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only this target: layer, manifest, reference, frame, supervisor or config
    target: Option<String>,
    /// How long each target runs
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

/// Builds the targets and runs them one after the other.
pub(crate) fn run(project: &Project, options: &Options) -> Result<ExitCode> {
    let chosen: Vec<_> = TARGETS
        .into_iter()
        .filter(|(name, _)| options.target.as_deref().is_none_or(|target| target == *name))
        .collect();
    if chosen.is_empty() {
        let names = TARGETS.map(|(name, _)| name).join(", ");
        bail!(
            "there is no fuzz target {:?}; there are {names}",
            options.target.as_deref().unwrap_or_default()
        );
    }
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let directory = project.cargo_target().join("fuzz");
    step("build the fuzz targets", || {
        // A target of its own, even if it is the machine's, keeps the flags away from build scripts and macros.
        let mut build =
            command(&cargo(), ["build", "--release", "--locked", "--target", &target, "--manifest-path"]);
        build.arg(project.root().join("fuzz/Cargo.toml")).arg("--target-dir").arg(&directory);
        output(build.env("RUSTFLAGS", FLAGS).env_remove("CARGO_TARGET_DIR")).map(drop)
    })?;
    let kept = project.root().join("target/fuzz");
    let mut failed = Vec::new();
    for (name, length) in chosen {
        let program = directory.join(&target).join("release").join(name);
        let found = step(&format!("fuzz {name}"), || fuzz(&program, name, length, &kept, options.seconds))?;
        println!("{name:10} {found}");
        if found.starts_with("FAILED") {
            failed.push(name);
        }
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn fuzz(program: &Path, name: &str, length: u32, kept: &Path, seconds: u32) -> Result<String> {
    let directory = |kind: &str| -> Result<PathBuf> {
        let path = kept.join(kind).join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    };
    let (corpus, failures) = (directory("corpus")?, directory("failed")?);
    let log = kept.join(format!("{name}.log"));
    let mut fuzzer = command(&program.display().to_string(), [&corpus]);
    if name == "layer" {
        fuzzer.arg(tars(&directory("seeds")?)?);
    }
    fuzzer.arg(format!("-max_total_time={seconds}")).arg(format!("-max_len={length}"));
    fuzzer.arg(format!("-timeout={TIMEOUT_SECONDS}")).arg(format!("-rss_limit_mb={MEMORY_MIB}"));
    fuzzer.arg("-print_final_stats=1").arg(format!("-artifact_prefix={}/", failures.display()));
    let file = fs::File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
    let status =
        fuzzer.stdout(file.try_clone()?).stderr(file).status().context("cannot run the fuzz target")?;
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    if !status.success() {
        let shown = crate::process::tail(&text, 40);
        return Ok(format!("FAILED; the input is in {}\n{shown}", failures.display()));
    }
    let runs =
        text.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:")).unwrap_or("?");
    let coverage = text.lines().rev().find_map(|line| line.split_once("cov: ")?.1.split_once(' '));
    Ok(format!("{} runs, {} places reached", runs.trim(), coverage.map_or("?", |(count, _)| count)))
}

/// A few honest layers to start from.
fn tars(seeds: &Path) -> Result<PathBuf> {
    let tree = tempfile::tempdir()?;
    let at = |name: &str| tree.path().join(name);
    fs::create_dir(at("d"))?;
    fs::write(at("d/f"), "contents")?;
    fs::write(at("d/.wh.gone"), "")?;
    fs::write(at(&"long".repeat(40)), "")?;
    fs::hard_link(at("d/f"), at("h"))?;
    std::os::unix::fs::symlink("d", at("l"))?;
    fs::File::create(at("holes"))?.set_len(100_000)?;
    for format in ["gnu", "posix", "ustar"] {
        let mut pack = Command::new("tar");
        pack.args(["--blocking-factor=1", &format!("--format={format}"), "--numeric-owner"]);
        // The oldest form has neither holes nor long names.
        pack.arg(if format == "ustar" { "--exclude=long*" } else { "--sparse" });
        output(
            pack.arg("-C").arg(tree.path()).arg("-cf").arg(seeds.join(format)).args(["--exclude=holes", "."]),
        )?;
    }
    let mut sparse = command("tar", ["--blocking-factor=1", "--format=posix", "--sparse", "-C"]);
    output(sparse.arg(tree.path()).arg("-cf").arg(seeds.join("sparse")).arg("holes"))?;
    Ok(seeds.to_owned())
}
