//! `exec`: run another process in a running container, and return its exit code.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use tokio::sync::mpsc;

use crate::api;
use crate::cli::session::{
    self, Ended, Heard, Hears, OUR_FAILURE, Options, Process, Signals, Stdin, Terminal,
};
use crate::cli::{Failure, Outcome};
use crate::client::Client;
use crate::detach_keys::DetachKeys;

const EXAMPLES: &str = "\
Examples:
  beta9-worker exec web ps
  beta9-worker exec -it web sh
  tar c . | beta9-worker exec -i -w /srv web tar x

Exit codes: the command's own; 128+n when signal n ended it; 125 when it could not be run, 126 when it cannot be
executed, 127 when it does not exist.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ExecArgs {
    /// Keep stdin open and pass it on.
    #[arg(short, long)]
    interactive: bool,
    /// Give the process a terminal.
    #[arg(short, long)]
    tty: bool,
    /// Run in the background.
    #[arg(short, long, conflicts_with = "interactive")]
    detach: bool,
    /// Set an environment variable; without =VALUE the value of the same variable here.
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Set environment variables from a file of NAME=VALUE lines; -e wins.
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Working directory inside the container.
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Run as this user, by name or number, optionally with a group.
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// The keys that leave the process's terminal and let it run on.
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: DetachKeys,
    /// Id, beginning of an id, or name.
    container: String,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(super) async fn run(client: &mut Client, args: ExecArgs) -> Outcome {
    run_in(client, args).await.map_err(|failure| match failure.code {
        1 => failure.with_code(OUR_FAILURE),
        _ => failure,
    })
}

async fn run_in(client: &mut Client, args: ExecArgs) -> Outcome {
    session::check_terminal(args.interactive, args.tty)?;
    let mut env = super::flags::variables_of(&args.env_file)?;
    env.extend(args.env.into_iter().filter_map(super::run::variable));
    let open = api::ExecOpen {
        container: args.container.clone(),
        command: args.command,
        env,
        cwd: args.workdir.unwrap_or_default(),
        user: args.user.unwrap_or_default(),
        stdin: args.interactive,
        terminal: session::new_terminal(args.tty),
        detach: args.detach,
    };
    let (say, said) = mpsc::channel(4);
    let mut output = client.containers.exec(session::exec_messages(open, said)).await?.into_inner();
    let first = output.message().await?;
    let exec = match first {
        Some(api::ExecResponse { message: Some(api::exec_response::Message::Started(started)) }) => {
            started.exec
        }
        Some(other) => match other.heard() {
            Heard::Exit(exit) => return session::exit_code(&exit),
            _ => return Err(Failure::new("the worker did not say that the process started")),
        },
        None => return Err(Failure::new("the worker closed the connection before the process started")),
    };
    if args.detach {
        return Ok(ExitCode::SUCCESS);
    }
    let process = Process { container: args.container.clone(), exec };
    let options = Options {
        stdin: if args.interactive { Stdin::PassedOn } else { Stdin::Ours },
        terminal: if args.tty { Terminal::New } else { Terminal::None },
        signals: Signals::PassedOn,
        keys: args.detach_keys,
    };
    match session::run(client, process, options, output, say).await? {
        Ended::Exit(exit) => session::exit_code(&exit),
        Ended::Detached => {
            eprintln!("\ndetached; the process goes on in the container");
            Ok(ExitCode::SUCCESS)
        }
    }
}
