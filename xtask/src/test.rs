//! `cargo xtask test`: the tests of every crate, on this machine, with all that they may need in place.

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::process::{cargo, command};
use crate::project::Project;
use crate::{guest, setup};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Arguments for `cargo test`
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Runs the tests and returns what `cargo test` returns.
pub(crate) fn run(project: &Project, options: &Options) -> Result<ExitCode> {
    setup::run(project)?;
    guest::run(project, &guest::Options::default())?;
    let mut tests = command(&cargo(), ["test", "--workspace", "--no-fail-fast"]);
    tests.args(&options.arguments).current_dir(project.root()).env("PATH", project.path()?);
    let status = tests.status().context("cannot run cargo test")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
