//! The project's own chores, from a fresh Debian 12 machine to a tested build: `cargo xtask --help`.

mod debian;
mod debian_kernel;
mod demo;
mod fuzz;
mod guest;
mod image;
mod kernel;
mod nested;
mod process;
mod project;
mod real_images;
mod setup;
mod test;

use std::process::ExitCode;

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
    Setup(setup::Options),
    /// Make the kernel and the initramfs that the microVM runtimes boot.
    Guest(guest::Options),
    /// Build the guest's own kernel from Debian's source and `kernel/microvm.config` (needs root).
    Kernel(kernel::Options),
    /// Set the machine up and run the tests (needs root).
    Test(test::Options),
    /// Run the fuzz targets, each for a minute.
    Fuzz(fuzz::Options),
    /// Run one program in every runtime, side by side, from a fresh machine on (needs root).
    Demo(demo::Options),
    /// Run a command in a nested machine with a KVM that boots real guests and with cgroup v2 alone (needs root).
    Nested(nested::Options),
}

fn main() -> ExitCode {
    let project = Project::here();
    let outcome = match Arguments::parse().command {
        Chore::Setup(options) => setup::show(&project, &options),
        Chore::Guest(options) => guest::run(&project, &options).map(|_| ExitCode::SUCCESS),
        Chore::Kernel(options) => kernel::run(&project, &options).map(|_| ExitCode::SUCCESS),
        Chore::Test(options) => test::run(&project, &options),
        Chore::Fuzz(options) => fuzz::run(&project, &options),
        Chore::Demo(options) => demo::run(&project, &options),
        Chore::Nested(options) => nested::run(&project, &options),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
