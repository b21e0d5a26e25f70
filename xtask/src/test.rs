//! `cargo xtask test`: everything that is tested, in tiers from the quickest to the slowest.
//!
//! Each tier's whole output is kept in `target/test-logs/`; on the terminal a tier that passes shows its sums and what it
//! skipped, and one that fails shows everything. A tier that fails does not keep the next from running.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::image::Images;
use crate::process::{cargo, command, output, step};
use crate::project::Project;
use crate::{guest, real_images, setup};

/// How long the stories may take in the nested machine, where everything is emulated.
const NESTED_SECONDS: u32 = 7200;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// All stories on QEMU, not only the core; more images, more bytes
    #[arg(long)]
    all: bool,
    /// The stories on Firecracker as well, in the nested machine; needs firecracker in PATH
    #[arg(long)]
    nested: bool,
    /// Firecrackers for --nested: directories with firecracker and jailer; those in PATH where none is given
    #[arg(long, value_name = "DIRECTORY", requires = "nested")]
    firecracker: Vec<PathBuf>,
    /// Whether they run under their jailer
    #[arg(long, value_enum, default_value = "on", requires = "nested")]
    jail: JailChoice,
    /// Also boot so many VMs in a row and count the lost ones
    #[arg(long, value_name = "N")]
    boots: Option<u32>,
    /// Which kernel microVMs boot; our own where it was built, else Debian's, if not given
    #[arg(long, value_enum)]
    kernel: Option<guest::Choice>,
    /// Only tiers whose name holds this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Arguments for the test programs, such as a part of a test's name
    #[arg(last = true)]
    arguments: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum JailChoice {
    On,
    Off,
    /// Once with, once without.
    Both,
}

impl JailChoice {
    /// The values of BETA9_JAIL.
    fn words(self) -> &'static [&'static str] {
        match self {
            Self::On => &["on"],
            Self::Off => &["off"],
            Self::Both => &["on", "off"],
        }
    }
}

/// Some tests that are run together.
struct Tier {
    name: String,
    commands: Vec<Command>,
}

struct Outcome {
    name: String,
    passed: bool,
    sums: Sums,
    took: Duration,
}

/// Prepares the machine, runs the tiers and sums them up.
pub(crate) fn run(project: &Project, options: &Options) -> Result<ExitCode> {
    let began = Instant::now();
    let ready = setup::run(project)?;
    guest::run(project, &guest::Options::with_kernel(options.kernel))?;
    step("build what is tested", || {
        output(
            Command::new(cargo()).args(["build", "--package", "beta9-worker"]).current_dir(project.root()),
        )?;
        output(Command::new(cargo()).args(["test", "--workspace", "--no-run"]).current_dir(project.root()))
    })?;
    let logs = project.root().join("target/test-logs");
    fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;

    let mut outcomes = vec![Outcome {
        name: "prepare".to_owned(),
        passed: true,
        sums: Sums::default(),
        took: began.elapsed(),
    }];
    for mut tier in tiers(project, options, &ready.images)? {
        if options.only.as_ref().is_none_or(|text| tier.name.contains(text.as_str())) {
            outcomes.push(run_tier(&mut tier, &logs)?);
        }
    }
    println!();
    for Outcome { name, passed, sums, took } in &outcomes {
        let word = if *passed { "ok" } else { "FAILED" };
        println!("{name:24} {word:8} {:6.0} s  {sums}", took.as_secs_f64());
    }
    let passed = outcomes.iter().all(|outcome| outcome.passed);
    let total = outcomes.iter().fold(Sums::default(), |total, outcome| total.and(&outcome.sums));
    println!("{total} in {:.0} s", began.elapsed().as_secs_f64());
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tiers(project: &Project, options: &Options, images: &Images) -> Result<Vec<Tier>> {
    let path = project.path()?;
    let test = |arguments: &[&str], environment: &[(&str, &str)], flags: &[&str]| {
        let mut test = command(&cargo(), ["test", "--quiet", "--no-fail-fast"]);
        test.args(arguments).current_dir(project.root()).env("PATH", &path);
        if options.all {
            // Bytes that a story sends through a container and back.
            test.env("BETA9_ROUND_TRIP", "100000000");
            // And how often a filter gets its whole input.
            test.env("BETA9_FILTERS", "100");
        }
        test.envs(environment.iter().copied());
        test.arg("--").args(flags).args(&options.arguments);
        test
    };
    let testbed = |name: &str, environment: &[(&str, &str)]| {
        // Of cargo's own word for it only the usual harness hears.
        test(&["--package", "beta9-testbed", "--test", name], environment, &["--quiet"])
    };
    // What `setup` installs on every machine, so that a skip cannot hide there.
    let programs = ("BETA9_REQUIRE_RUNTIMES", "runc,gvisor");
    let qemu = [("BETA9_RUNTIMES", "qemu"), ("BETA9_REQUIRE_RUNTIMES", "qemu")];
    let mut layouts = vec![images.busybox.layout.clone(), images.debian.layout.clone()];
    if options.all {
        layouts.extend(real_images::all(project, images)?);
    }
    let layouts = std::env::join_paths(layouts).context("the path of this checkout has a colon: move it")?;
    let layouts = [("BETA9_REAL_IMAGES", &*layouts.to_string_lossy())];
    let faults_tier = ("BETA9_TIER", if options.all { "full" } else { "core" });
    let core = [qemu[0], qemu[1], ("BETA9_TIER", "core")];
    let mut tiers = vec![
        Tier {
            name: "crates".to_owned(),
            commands: vec![
                test(&["--workspace", "--exclude", "beta9-testbed"], &layouts, &[]),
                test(&["--package", "beta9-testbed", "--lib"], &[], &[]),
            ],
        },
        Tier {
            name: "stories: runc, gvisor".to_owned(),
            commands: vec![testbed("stories", &[("BETA9_RUNTIMES", "runc,gvisor"), programs])],
        },
        Tier {
            name: "faults".to_owned(),
            commands: vec![testbed(
                "faults",
                &[("BETA9_RUNTIMES", "runc,gvisor,qemu"), programs, faults_tier],
            )],
        },
        if options.all {
            Tier { name: "stories: qemu".to_owned(), commands: vec![testbed("stories", &qemu)] }
        } else {
            Tier { name: "core stories: qemu".to_owned(), commands: vec![testbed("stories", &core)] }
        },
    ];
    if options.nested {
        let given = options.firecracker.iter().map(|directory| Some(directory.as_path()));
        let directories: Vec<_> = if options.firecracker.is_empty() { vec![None] } else { given.collect() };
        for directory in directories {
            for jail in options.jail.words() {
                let of =
                    directory.map(|directory| format!(" of {}", directory.display())).unwrap_or_default();
                let name = format!("stories: firecracker{of}, jail {jail}");
                tiers.push(Tier { name, commands: vec![nested(project, options, directory, jail)?] });
            }
        }
    }
    if let Some(count) = options.boots {
        let count = count.to_string();
        tiers.push(Tier {
            name: "boots".to_owned(),
            commands: vec![testbed("boots", &[("BETA9_BOOTS", &count), qemu[0]])],
        });
    }
    Ok(tiers)
}

/// The stories as they are built here, run where KVM boots guests.
fn nested(project: &Project, options: &Options, firecracker: Option<&Path>, jail: &str) -> Result<Command> {
    let path = project.path()?;
    let directories = firecracker.into_iter().map(Path::to_owned).chain(std::env::split_paths(&path));
    let directories: Vec<_> = directories.collect();
    let has_firecracker = directories.iter().any(|directory| directory.join("firecracker").is_file());
    ensure!(has_firecracker, "--nested needs firecracker in PATH: get a release of it and add its directory");
    let path = std::env::join_paths(directories).context("a directory of PATH has a colon")?;
    let stories = executable(project, "stories")?;
    let worker = optimized_worker(project)?;
    let this = std::env::current_exe().context("cannot tell where this program is")?;
    let mut nested = Command::new(this);
    nested.args(["nested", "--timeout", &NESTED_SECONDS.to_string()]).current_dir(project.root());
    nested.args(["--env", "BETA9_RUNTIMES=firecracker", "--env", "BETA9_REQUIRE_RUNTIMES=firecracker"]);
    nested.args(["--env", &format!("BETA9_JAIL={jail}")]).env("PATH", path);
    nested.args(["--env", &format!("BETA9_WORKER={}", worker.display())]);
    if !options.all {
        nested.args(["--env", "BETA9_TIER=core"]);
    }
    nested.arg("--").arg(stories).args(["--quiet", "--test-threads=1"]).args(&options.arguments);
    Ok(nested)
}

/// The worker as it is shipped, with fewer instructions to emulate.
fn optimized_worker(project: &Project) -> Result<PathBuf> {
    let arguments = ["build", "--release", "--package", "beta9-worker", "--message-format=json"];
    let messages = output(Command::new(cargo()).args(arguments).current_dir(project.root()))?;
    last_executable(&messages).context("cargo does not say where the worker is")
}

/// Where cargo puts a test program of the testbed.
fn executable(project: &Project, name: &str) -> Result<PathBuf> {
    let arguments =
        ["test", "--package", "beta9-testbed", "--no-run", "--message-format=json", "--test", name];
    let messages = output(Command::new(cargo()).args(arguments).current_dir(project.root()))?;
    last_executable(&messages).with_context(|| format!("cargo does not say where the test program {name} is"))
}

/// The last program that cargo's messages name.
fn last_executable(messages: &str) -> Option<PathBuf> {
    messages.lines().rev().find_map(|line| {
        let (_, rest) = line.split_once("\"executable\":\"")?;
        rest.split_once('"').map(|(path, _)| PathBuf::from(path))
    })
}

fn run_tier(tier: &mut Tier, logs: &Path) -> Result<Outcome> {
    let file_name: String =
        tier.name.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' }).collect();
    let path = logs.join(format!("{file_name}.log"));
    let log = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    let began = Instant::now();
    let mut passed = true;
    step(&tier.name, || {
        for command in &mut tier.commands {
            let status = command.stdout(log.try_clone()?).stderr(log.try_clone()?).status();
            passed &= status.context("cannot run the tests")?.success();
        }
        Ok(())
    })?;
    let text = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
    if passed {
        text.lines().filter(|line| is_worth_showing(line)).for_each(|line| println!("      {line}"));
    } else {
        println!("{text}");
    }
    Ok(Outcome { name: tier.name.clone(), passed, sums: Sums::of(&text), took: began.elapsed() })
}

/// What a tier that passed has to say: what it left out, and its sums by runtime.
fn is_worth_showing(line: &str) -> bool {
    ["excluded: ", "skipped: ", "skipping "].iter().any(|start| line.starts_with(start))
        || line.contains(" does not work here: ")
        || (line.contains(" passed, ") && line.contains("): "))
        || (line.contains("boots of ") || line.starts_with("median "))
}

/// Tests by what became of them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Sums {
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl Sums {
    /// The sum of all `test result: ok. 1 passed; 0 failed; 0 ignored; …` in `text`.
    fn of(text: &str) -> Self {
        let before = |line: &str, word: &str| -> u32 {
            let (head, _) = line.split_once(word).unwrap_or_default();
            head.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        text.lines().filter(|line| line.starts_with("test result: ")).fold(Self::default(), |sums, line| {
            sums.and(&Self {
                passed: before(line, " passed"),
                failed: before(line, " failed"),
                skipped: before(line, " ignored"),
            })
        })
    }

    fn and(&self, other: &Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            skipped: self.skipped + other.skipped,
        }
    }
}

impl std::fmt::Display for Sums {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_programs_are_summed_up() {
        let text = "running 2 tests\n..\ntest result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n\
                    noise: 7 passed\ntest result: FAILED. 30 passed; 4 failed; 0 ignored; 0 measured";
        assert_eq!(Sums::of(text), Sums { passed: 32, failed: 4, skipped: 1 });
    }

    #[test]
    fn a_tier_that_passed_shows_what_it_left_out() {
        for line in
            ["excluded: gvisor x: y", "qemu does not work here: no", "runc (runc 1.1): 3 passed, 0 failed"]
        {
            assert!(is_worth_showing(line), "{line}");
        }
        assert!(!is_worth_showing("test result: ok. 2 passed; 0 failed"));
    }
}
