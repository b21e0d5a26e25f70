//! The project's own chores, from a fresh Debian 12 machine to a tested build: `cargo xtask --help`.

mod debian;
mod debian_kernel;
mod image;
mod nested;
mod process;
mod project;
mod setup;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::project::Project;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's own chores")]
struct Arguments {
    #[command(subcommand)]
    command: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Install what building, testing and showing the project needs on a Debian 12 machine (needs root).
    Setup,
    /// Run a command in a nested machine with a KVM that boots real guests and with cgroup v2 alone (needs root).
    Nested(nested::Options),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Chore::Setup => set_up(),
        Chore::Nested(options) => nested::run(&Project::here(), &options),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn set_up() -> Result<ExitCode> {
    let ready = setup::run(&Project::here())?;
    println!("tools     {}", ready.tools.display());
    println!("debian    {}", ready.images.debian.tar.display());
    println!("          {}", ready.images.debian.layout.display());
    println!("busybox   {}", ready.images.busybox.tar.display());
    println!("          {}", ready.images.busybox.layout.display());
    println!("kernel    {}", ready.kernel.image.display());
    Ok(ExitCode::SUCCESS)
}
