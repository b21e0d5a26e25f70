//! Running trials for one runtime after the other, and saying at the end what was run and what was not.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use beta9_types::RuntimeKind;
use libtest_mimic::{Arguments, Conclusion, Failed, Trial};

use crate::exclusions::{self, Exclusion};
use crate::faults::Fault;
use crate::site::{Availability, Site};
use crate::stories::{self, Story, Tier};
use crate::world::World;

/// How long the machine may take to let go of what containers held.
const SETTLE: Duration = Duration::from_secs(20);

/// What is run, from the environment.
#[derive(Debug)]
pub struct Choice {
    /// `BETA9_RUNTIMES`: only these; all where unset.
    pub runtimes: Vec<RuntimeKind>,
    /// `BETA9_REQUIRE_RUNTIMES`: that one of these is absent is a failure.
    pub required: Vec<RuntimeKind>,
    /// `BETA9_TIER=core`: only the core stories.
    pub tier: Tier,
}

impl Choice {
    /// Reads the environment.
    pub fn from_environment() -> Result<Self> {
        let tier = match std::env::var("BETA9_TIER").as_deref() {
            Ok("core") => Tier::Core,
            Ok("full") | Err(_) => Tier::Full,
            Ok(other) => anyhow::bail!("BETA9_TIER is {other:?}: use core or full"),
        };
        let all = RuntimeKind::ALL.to_vec();
        Ok(Self {
            runtimes: runtimes("BETA9_RUNTIMES")?.unwrap_or(all),
            required: runtimes("BETA9_REQUIRE_RUNTIMES")?.unwrap_or_default(),
            tier,
        })
    }
}

impl Choice {
    /// Whether there is what every test needs. Where it is not, that is said; and it is a failure if a runtime is
    /// required.
    fn can_begin(&self) -> Result<bool> {
        match Site::requirements() {
            Ok(_) => Ok(true),
            Err(why) if self.required.is_empty() => {
                println!("skipped: everything: {why:#}");
                Ok(false)
            }
            Err(why) => Err(why),
        }
    }
}

fn runtimes(variable: &str) -> Result<Option<Vec<RuntimeKind>>> {
    let Ok(text) = std::env::var(variable) else { return Ok(None) };
    let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
    let parsed = names.map(|name| name.parse().with_context(|| format!("{variable}={text}")));
    parsed.collect::<Result<_>>().map(Some)
}

/// What became of the trials of one runtime.
#[derive(Debug, Default, Clone)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Tally {
    fn add(&mut self, conclusion: &Conclusion) {
        self.passed += conclusion.num_passed;
        self.failed += conclusion.num_failed;
        self.skipped += conclusion.num_ignored;
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Runs every story on every runtime that was chosen. What could not even begin is printed and fails.
pub fn stories() -> ExitCode {
    done(run_stories(&Arguments::from_args()))
}

/// Runs the faults.
pub fn faults() -> ExitCode {
    done(run_faults(&Arguments::from_args()))
}

/// Boots VMs in a row.
pub fn boots() -> ExitCode {
    match std::env::var("BETA9_BOOTS").map(|text| text.parse::<u32>()) {
        Ok(Ok(count)) => done(run_boots(count)),
        Ok(Err(error)) => done(Err(error).context("BETA9_BOOTS is not a number of boots")),
        Err(_) => {
            println!("skipped: BETA9_BOOTS does not say how many");
            ExitCode::SUCCESS
        }
    }
}

fn done(outcome: Result<bool>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_stories(arguments: &Arguments) -> Result<bool> {
    let choice = Choice::from_environment()?;
    let names: Vec<_> = stories::all().map(|story| story.name).collect();
    let exclusions = exclusions::load(&names)?;
    if arguments.list || !choice.can_begin()? {
        let all = choice
            .runtimes
            .iter()
            .flat_map(|runtime| skipped(*runtime, chosen(&choice, *runtime, &exclusions)));
        drop(libtest_mimic::run(arguments, all.collect()));
        return Ok(true);
    }
    let site = Arc::new(Site::prepare()?);
    let survey = site.survey()?;
    let mut total = Tally::default();
    let mut lines = Vec::new();
    let mut excluded = Vec::new();
    for Availability { runtime, detail } in
        survey.into_iter().filter(|found| choice.runtimes.contains(&found.runtime))
    {
        let stories = chosen(&choice, runtime, &exclusions);
        let mut tally = Tally::default();
        match &detail {
            Ok(detail) => {
                let start = Instant::now();
                println!("\n{runtime}: {detail}");
                run_on(&site, runtime, &stories, arguments, &mut tally)?;
                excluded.extend(exclusions.iter().filter(|exclusion| exclusion.runtime == runtime));
                lines
                    .push(format!("{runtime} ({detail}): {tally} in {:.0} s", start.elapsed().as_secs_f64()));
            }
            Err(why) => {
                println!("\n{runtime} does not work here: {}", why.lines().next().unwrap_or(why));
                tally.add(&libtest_mimic::run(arguments, skipped(runtime, stories)));
                if choice.required.contains(&runtime) {
                    tally.failed += 1;
                    lines.push(format!("{runtime} is required and does not work here: {why}"));
                }
                lines.push(format!("{runtime} (absent): {tally}"));
            }
        }
        total = Tally {
            passed: total.passed + tally.passed,
            failed: total.failed + tally.failed,
            skipped: total.skipped + tally.skipped,
        };
    }
    if total.failed > 0 {
        site.keep();
        println!("\nwhat is left is in {}", site.root().display());
    }
    println!();
    for Exclusion { runtime, story, reason } in &excluded {
        println!("excluded: {runtime} {story}: {reason}");
    }
    println!("{} exclusions", excluded.len());
    lines.iter().for_each(|line| println!("{line}"));
    println!("{total}");
    Ok(total.failed == 0)
}

fn chosen<'a>(choice: &Choice, runtime: RuntimeKind, exclusions: &[Exclusion]) -> Vec<&'a Story> {
    let is_excluded =
        |story: &Story| exclusions.iter().any(|other| other.runtime == runtime && other.story == story.name);
    let in_tier = |story: &Story| choice.tier == Tier::Full || story.tier == Tier::Core;
    stories::all().filter(|story| in_tier(story) && !is_excluded(story)).collect()
}

fn run_on(
    site: &Arc<Site>,
    runtime: RuntimeKind,
    stories: &[&'static Story],
    arguments: &Arguments,
    tally: &mut Tally,
) -> Result<()> {
    let watch = site.watch().context("cannot look at the machine")?;
    let trial = |story: &&'static Story| {
        let (site, story) = (Arc::clone(site), *story);
        Trial::test(format!("{runtime}::{}", story.name), move || {
            (story.run)(&World::new(&site, runtime, story.name))
                .map_err(|error| Failed::from(format!("{error:#}")))
        })
    };
    tally.add(&libtest_mimic::run(arguments, stories.iter().map(trial).collect()));
    // Only now, when every other trial is over, can it be told what they left.
    let name = format!("{runtime}::nothing_is_left_on_the_machine");
    let leaks = Trial::test(name, move || {
        let leaks = watch.settle(SETTLE).map_err(|error| Failed::from(format!("{error:#}")))?;
        if leaks.is_empty() { Ok(()) } else { Err(Failed::from(leaks.to_string())) }
    });
    // A filter chooses stories; what they leave counts whichever they were.
    let arguments = Arguments { filter: None, skip: Vec::new(), exact: false, ..arguments.clone() };
    tally.add(&libtest_mimic::run(&arguments, vec![leaks]));
    Ok(())
}

fn skipped(runtime: RuntimeKind, stories: Vec<&'static Story>) -> Vec<Trial> {
    let trial =
        |story: &Story| Trial::test(format!("{runtime}::{}", story.name), || Ok(())).with_ignored_flag(true);
    stories.into_iter().map(trial).collect()
}

fn run_faults(arguments: &Arguments) -> Result<bool> {
    let choice = Choice::from_environment()?;
    let available = if arguments.list || !choice.can_begin()? {
        Vec::new()
    } else {
        let site = Site::prepare()?;
        let survey = site.survey()?.into_iter().filter(|found| choice.runtimes.contains(&found.runtime));
        let mut available = Vec::new();
        for Availability { runtime, detail } in survey {
            match detail {
                Ok(detail) => {
                    println!("{runtime}: {detail}");
                    available.push(runtime);
                }
                Err(why) => {
                    println!("{runtime} does not work here: {}", why.lines().next().unwrap_or(&why));
                    ensure!(
                        !choice.required.contains(&runtime),
                        "{runtime} is required and does not work here: {why}"
                    );
                }
            }
        }
        available
    };
    let in_tier = |fault: &Fault| choice.tier == Tier::Full || fault.tier == Tier::Core;
    let faults = crate::faults::all(&choice.runtimes, &available).into_iter().filter(in_tier);
    let trials = faults.map(|fault| {
        let lacks_runtime = !fault.needs.iter().all(|needed| available.contains(needed));
        let lacks_program = fault.program.filter(|program| !is_in_path(program));
        let is_skipped = !arguments.list && (lacks_runtime || lacks_program.is_some());
        if is_skipped {
            let needs = fault.needs.iter().map(|needed| needed.as_str()).chain(fault.program);
            println!("skipped: {}: it needs {}", fault.name, needs.collect::<Vec<_>>().join(", "));
        }
        Trial::test(fault.name, move || (fault.run)().map_err(|error| Failed::from(format!("{error:#}"))))
            .with_ignored_flag(is_skipped)
    });
    let mut tally = Tally::default();
    tally.add(&libtest_mimic::run(arguments, trials.collect()));
    println!("{tally}");
    Ok(tally.failed == 0)
}

fn is_in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// Lost is one that does not end with its command's code, whatever happened.
fn run_boots(count: u32) -> Result<bool> {
    let choice = Choice::from_environment()?;
    let vms: Vec<_> = choice.runtimes.into_iter().filter(|runtime| runtime.is_microvm()).collect();
    let site = Site::prepare()?;
    let watch = site.watch()?;
    let works = |found: &Availability| found.detail.is_ok() && vms.contains(&found.runtime);
    let found = site.survey()?.into_iter().find(works).context("no runtime that boots VMs works here")?;
    let world = World::new(&site, found.runtime, "boot");
    let (mut times, mut lost) = (Vec::new(), 0);
    for number in 1..=count {
        match world.shell("exit 42").and_then(|finished| finished.ends_with(42)) {
            Ok(finished) => times.push(finished.took),
            Err(error) => {
                lost += 1;
                println!("boot {number} was lost: {error:#}");
            }
        }
    }
    times.sort_unstable();
    if let (Some(median), Some(slowest)) = (times.get(times.len() / 2), times.last()) {
        println!("median {:.1} s, slowest {:.1} s", median.as_secs_f64(), slowest.as_secs_f64());
    }
    let leaks = watch.settle(SETTLE)?;
    print!("{leaks}");
    println!("{} boots of {}: {} passed, {lost} failed, 0 skipped", count, found.runtime, times.len());
    Ok(lost == 0 && leaks.is_empty())
}
