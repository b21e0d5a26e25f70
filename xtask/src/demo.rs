//! `cargo xtask demo`: from a fresh machine to one Python program that runs in every runtime, side by side.
//!
//! It sets the machine up, builds the worker and the guest, serves one pool per runtime, and runs the program in each
//! through the command line, as a user would. What it starts it stops again, whatever happens; the image and the
//! configuration stay below `target/demo` to be played with.
//!
//! It fails when a pool cannot run the program, or runs it with another result than the others.

mod pools;
mod session;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use beta9_sys::signalfd::SignalFd;
use rustix::process::Signal;

use crate::guest::Guest;
use crate::process::{cargo, command, output, step};
use crate::project::Project;
use crate::{guest, setup};
use pools::{POOLS, Ran, Row};
use session::Session;

/// The image's name in the demonstration's worker.
const IMAGE: &str = "debian";

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Which kernel microVMs boot; our own where it was built, else Debian's, if not given
    #[arg(long, value_enum)]
    kernel: Option<guest::Choice>,
}

/// Runs the demonstration.
pub(crate) fn run(project: &Project, options: &Options) -> Result<ExitCode> {
    let ready = setup::run(project)?;
    let guest = guest::run(project, &guest::Options::with_kernel(options.kernel))?;
    let program = step("build beta9-worker, optimised", || build(project))?;

    let place = project.root().join("target/demo");
    fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
    let config = place.join("worker.yaml");
    fs::write(&config, pools::config(&place, &guest, &ready.tools)?)
        .with_context(|| format!("cannot write {}", config.display()))?;

    // Before any thread exists: they all must leave these signals alone.
    let signals = SignalFd::take(&[Signal::INT, Signal::TERM, Signal::HUP])?;
    let session = Arc::new(Session::new(program, config, place.join("worker.log"), project.path()?));
    let (events, inbox) = channel();
    watch(signals, events.clone());
    let (shown, image) = (Arc::clone(&session), ready.images.debian.layout.clone());
    thread::spawn(move || {
        let _ = events.send(Event::Shown(show(&shown, &image)));
        // A worker dies with the thread that started it, and its end is the session's to choose.
        loop {
            thread::park();
        }
    });
    let event = inbox.recv().context("the demonstration ended without a result")?;
    let closed = session.close();
    let outcome = match event {
        Event::Shown(outcome) => outcome,
        Event::Interrupted(signal) => {
            closed?;
            eprintln!("interrupted; everything that was started is stopped and removed");
            // What a shell shows for a command that a signal ended.
            return Ok(ExitCode::from(128 + u8::try_from(signal).unwrap_or(0)));
        }
    };
    let rows = outcome?;
    closed?;
    finish(&session, &rows, &guest)
}

enum Event {
    Shown(Result<Vec<Row>>),
    Interrupted(i32),
}

fn watch(signals: SignalFd, events: Sender<Event>) {
    thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            let _ = events.send(Event::Interrupted(signal));
        }
    });
}

fn build(project: &Project) -> Result<PathBuf> {
    let mut build = command(&cargo(), ["build", "--quiet", "--release", "-p", "beta9-worker"]);
    output(build.current_dir(project.root()))?;
    Ok(project.cargo_target().join("release/beta9-worker"))
}

/// Everything between the start of the worker and its stop.
fn show(session: &Session, image: &Path) -> Result<Vec<Row>> {
    session.remove_containers().context("cannot remove what an earlier demonstration left")?;
    step("start the worker", || session.serve())?;
    if !session.has_image(IMAGE)? {
        step(&format!("import image {IMAGE}"), || {
            session.succeed(&["image", "import", "--tag", IMAGE, &image.to_string_lossy()])
        })?;
    }
    let found = step("choose the pools' runtimes by trying them", || session.pools())?;
    println!("\nThe worker's log:");
    for line in session.log_lines() {
        println!("   {}", table::log_line(&line));
    }
    println!();
    POOLS
        .iter()
        .map(|name| {
            let pool = found.iter().find(|pool| pool.name == *name);
            let pool = pool.with_context(|| format!("the worker does not know pool {name}"))?.clone();
            let ran = if pool.ready { Some(run_in(session, &pool.name)?) } else { None };
            Ok(Row { pool, ran })
        })
        .collect()
}

fn run_in(session: &Session, pool: &str) -> Result<Ran> {
    let ran = step(&format!("run a Python program in pool {pool}"), || session.run_program(pool, IMAGE))?;
    for line in ran.output.lines() {
        println!("   {pool} | {line}");
    }
    if !ran.errors.is_empty() {
        println!("   {pool} ! {}", ran.errors.trim_end());
    }
    Ok(ran)
}

fn finish(session: &Session, rows: &[Row], guest: &Guest) -> Result<ExitCode> {
    println!("\n{}", table::draw(rows));
    println!(
        "Everything that was started is stopped and removed. The image and the pools are there to play with:\n"
    );
    let worker = format!("{} --config {}", short(session.program()), short(session.config()));
    for arguments in [
        &format!("run --rm --pool microvm {IMAGE} python3 -c 'import platform; print(platform.uname())'"),
        &format!("run --rm --runtime gvisor -m 256m -v ./docs:/docs:ro {IMAGE} ls /docs"),
        &format!("run -d --name sleeper {IMAGE} sleep 60"),
        "inspect --timeline sleeper",
        "rm -f sleeper",
        "status",
    ] {
        println!("   {worker} {arguments}");
    }
    println!("\nThe microVMs boot {}.", short(&guest.kernel));
    let failed: Vec<_> = rows.iter().filter_map(Row::failure).collect();
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    if !rows.iter().any(Row::is_microvm) {
        bail!("no pool ran in a microVM");
    }
    Ok(ExitCode::SUCCESS)
}

/// A path as it is typed from here.
fn short(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).display().to_string()
}
