//! The command line: one file per command, and nothing that the API does not do.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "the comments are help texts, in which brackets mean options"
)]

mod attach;
mod cidfile;
mod config;
mod container;
mod cp;
mod docker;
mod doctor;
mod events;
mod exec;
mod filter;
mod flags;
mod image;
mod image_view;
mod init;
mod inspect;
mod internal;
mod kernel;
mod login;
mod logs;
mod operate;
mod port;
mod ps;
mod pull;
mod run;
mod serve;
mod session;
mod stats;
mod status;
mod table;
mod template;
mod timeline;
mod transfer;
mod usage;
mod volume;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use beta9_supervisor::Purpose;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::client::Client;

/// Runs OCI containers in exactly the isolation they need: runc, gVisor, or a microVM of their own.
///
/// The same image and the same command line run in each of them; `--runtime` or the pool decides.
/// Commands talk to the worker that serves the root directory; without one they do its work themselves.
#[derive(Parser)]
#[command(name = "beta9-worker", version, max_term_width = 100, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Args, Clone)]
pub(crate) struct Global {
    /// State directory: images, containers, and the socket of the worker that serves it. The configuration's
    /// `worker.root` where absent, else /var/lib/beta9.
    #[arg(long, global = true, value_name = "DIR", env = "BETA9_ROOT")]
    pub(crate) root: Option<PathBuf>,
    /// Configuration file. /etc/beta9/worker.yaml where absent and present.
    #[arg(long, global = true, value_name = "FILE", env = "BETA9_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Say more: once for what is going on, twice for everything.
    #[arg(long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// How a table is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// For eyes.
    Table,
    /// For programs: one JSON document.
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Create a container from an image and run it.
    Run(Box<run::RunArgs>),
    /// Create a container and start nothing yet: `start` does.
    Create(Box<run::RunArgs>),
    /// Start containers that were created or are over.
    Start(container::StartArgs),
    /// Stop containers if they run, and start them again.
    Restart(container::StopArgs),
    /// Give a container another name.
    Rename(container::RenameArgs),
    /// Run another command in a running container.
    Exec(Box<exec::ExecArgs>),
    /// Take part in the input and output of a running container.
    Attach(attach::AttachArgs),
    /// Bring an image from a registry.
    Pull(pull::PullArgs),
    /// Send an image to a registry.
    Push(pull::PushArgs),
    /// Store credentials for a registry.
    Login(login::LoginArgs),
    /// Forget the credentials for a registry.
    Logout(login::LogoutArgs),
    /// List containers.
    Ps(ps::PsArgs),
    /// Print what a container wrote.
    Logs(logs::LogsArgs),
    /// Wait for containers to end and print their exit codes.
    Wait(container::WaitArgs),
    /// Show everything known of containers, as JSON or as a timeline.
    Inspect(inspect::InspectArgs),
    /// Show where a container's ports are served on this host.
    Port(port::PortArgs),
    /// Stop containers: their stop signal, then SIGKILL after a grace period.
    Stop(container::StopArgs),
    /// Send a signal to containers.
    Kill(container::KillArgs),
    /// Remove containers that are over.
    Rm(container::RmArgs),
    /// Freeze every process of containers.
    Pause(operate::FreezeArgs),
    /// Let the processes of paused containers go on.
    Unpause(operate::FreezeArgs),
    /// Show what containers use, again and again.
    Stats(stats::StatsArgs),
    /// List the processes of a container.
    Top(operate::TopArgs),
    /// Change limits of containers.
    Update(operate::UpdateArgs),
    /// Copy files between a container and this machine.
    Cp(cp::CpArgs),
    /// Print what happens to containers. Needs a worker that serves.
    Events(events::EventsArgs),
    /// Import and list images.
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Make, list and remove volumes.
    #[command(subcommand)]
    Volume(volume::VolumeCommand),
    /// Serve pools: the daemon that other commands and gRPC clients talk to.
    Serve(serve::ServeArgs),
    /// Show pools, their runtimes and why they are what they are.
    Status(status::StatusArgs),
    /// Show or check the configuration.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Install, list and remove the kernel that VMs boot.
    #[command(subcommand)]
    Kernel(kernel::KernelCommand),
    /// Check what this machine can run, and say what to do about the rest.
    Doctor(doctor::DoctorArgs),
    /// Be PID 1 of a pod: reap, and keep a worker serving.
    Init(init::InitArgs),
    /// Commands for all containers at once.
    #[command(subcommand)]
    Container(container::ContainerCommand),
    /// Print a script that completes commands and flags in a shell.
    ///
    /// For bash: `source <(beta9-worker completion bash)`.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Own one container. Started by the worker.
    #[command(hide = true)]
    Supervise {
        /// The container's directory.
        directory: PathBuf,
        /// Only clean up after a supervisor that died.
        #[arg(long)]
        recover: bool,
        /// Only lend out the files of a container that does not run.
        #[arg(long, conflicts_with = "recover")]
        lend: bool,
    },
    /// Boot one VM to its init and report. Started by the worker.
    #[command(hide = true)]
    Probe {
        /// firecracker or qemu.
        runtime: beta9_types::RuntimeKind,
    },
    /// Take an image in. Started by the worker.
    #[command(hide = true)]
    TakeIn {
        /// The worker's root directory.
        root: PathBuf,
        /// What to take in.
        path: PathBuf,
        /// The image's name.
        tag: Option<beta9_types::ImageReference>,
    },
    /// Serves the host directories of one microVM container to its guest.
    #[command(hide = true)]
    Share {
        /// What `beta9_microvm::share::serve` takes.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Becomes a program of a VM, which sees of the host what it needs. Started by supervisors.
    #[command(hide = true)]
    Confine {
        /// What `beta9_microvm::confine` takes.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

/// A command that did not do what was asked: what to say, and the exit code.
pub(crate) struct Failure {
    pub(crate) message: String,
    pub(crate) code: u8,
}

impl Failure {
    /// Our own failure.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 1 }
    }

    /// The failure of a command that would have returned a container's exit code.
    pub(crate) fn with_code(self, code: u8) -> Self {
        Self { code, ..self }
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        Self::new(status.message())
    }
}

impl From<crate::error::Error> for Failure {
    fn from(error: crate::error::Error) -> Self {
        Self::new(crate::error::chain(&error))
    }
}

pub(crate) type Outcome = Result<ExitCode, Failure>;

/// Parses the command line and does what it says. Returns the process's exit code.
pub(crate) fn main() -> ExitCode {
    let Cli { global, command } = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let words: Vec<OsString> = std::env::args_os().collect();
            let failure = usage::failure(&error, &words);
            crate::terminal::error(&failure.message);
            return ExitCode::from(failure.code);
        }
    };
    // Processes of other kinds than a client come first: they must start with one thread.
    let outcome = match command {
        Command::Supervise { directory, recover, lend } => {
            let purpose = match (recover, lend) {
                (true, _) => Purpose::Recover,
                (false, true) => Purpose::Lend,
                (false, false) => Purpose::Start,
            };
            internal::supervise(directory, purpose)
        }
        Command::Probe { runtime } => internal::probe(runtime),
        Command::TakeIn { root, path, tag } => internal::take_in(&root, &path, tag.as_ref()),
        Command::Share { arguments } => internal::share(arguments),
        Command::Confine { arguments } => internal::confine(arguments),
        Command::Init(args) => init::run(args),
        Command::Completion { shell } => completion(shell),
        command => client_command(&global, command),
    };
    match outcome {
        Ok(code) => code,
        Err(failure) => {
            crate::terminal::error(&failure.message);
            ExitCode::from(failure.code)
        }
    }
}

fn completion(shell: clap_complete::Shell) -> Outcome {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "beta9-worker", &mut text);
    crate::terminal::line(String::from_utf8_lossy(&text).trim_end())?;
    Ok(ExitCode::SUCCESS)
}

fn client_command(global: &Global, command: Command) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| Failure::new(format!("start an event loop: {e}")))?;
    let outcome = runtime.block_on(async {
        match command {
            Command::Serve(args) => serve::run(global, args).await,
            Command::Config(command) => config::run(global, command),
            Command::Kernel(command) => kernel::run(global, command),
            Command::Logout(args) => login::logout(args).await,
            Command::Doctor(args) => doctor::run(global, args).await,
            command => {
                crate::terminal::init_logging(global.verbose);
                let mut client = Client::connect(global).await?;
                match command {
                    Command::Run(args) => run::run(&mut client, *args).await,
                    Command::Create(args) => run::create(&mut client, *args).await,
                    Command::Start(args) => container::start(&mut client, args).await,
                    Command::Restart(args) => container::restart(&mut client, args).await,
                    Command::Rename(args) => container::rename(&mut client, args).await,
                    Command::Exec(args) => exec::run(&mut client, *args).await,
                    Command::Attach(args) => attach::run(&mut client, args).await,
                    Command::Pull(args) => pull::pull(&mut client, args).await,
                    Command::Push(args) => pull::push(&mut client, args).await,
                    Command::Login(args) => login::login(&mut client, args).await,
                    Command::Container(command) => container::run(&mut client, command).await,
                    Command::Ps(args) => ps::run(&mut client, args).await,
                    Command::Logs(args) => logs::run(&mut client, args).await,
                    Command::Wait(args) => container::wait(&mut client, args).await,
                    Command::Inspect(args) => inspect::run(&mut client, args).await,
                    Command::Port(args) => port::run(&mut client, args).await,
                    Command::Stop(args) => container::stop(&mut client, args).await,
                    Command::Kill(args) => container::kill(&mut client, args).await,
                    Command::Rm(args) => container::rm(&mut client, args).await,
                    Command::Pause(args) => operate::pause(&mut client, args).await,
                    Command::Unpause(args) => operate::unpause(&mut client, args).await,
                    Command::Stats(args) => stats::run(&mut client, args).await,
                    Command::Top(args) => operate::top(&mut client, args).await,
                    Command::Update(args) => operate::update(&mut client, args).await,
                    Command::Cp(args) => cp::run(&mut client, args).await,
                    Command::Events(args) => events::run(&mut client, args).await,
                    Command::Image(command) => image::run(&mut client, command).await,
                    Command::Volume(command) => volume::run(&mut client, command).await,
                    Command::Status(args) => status::run(&mut client, args).await,
                    _ => Err(Failure::new("this command was handled before")),
                }
            }
        }
    });
    // A read of stdin that never returns must not hold up the end.
    runtime.shutdown_background();
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_containers_own_flags_are_not_ours() {
        let cli = Cli::try_parse_from(["beta9-worker", "run", "--rm", "image", "sh", "-c", "exit 7", "--rm"]);
        assert!(matches!(cli.unwrap().command, Command::Run(_)));
    }
}
