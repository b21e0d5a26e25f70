//! `logs`: what a container wrote, stdout to stdout and stderr to stderr.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;

use crate::api;
use crate::cli::{Failure, Outcome};
use crate::client::Client;

#[derive(Args)]
pub(super) struct LogsArgs {
    /// Go on until the container is over.
    #[arg(short, long)]
    follow: bool,
    /// Print when each line was written.
    #[arg(short, long)]
    timestamps: bool,
    /// Id, beginning of an id, or name.
    container: String,
}

pub(super) async fn run(client: &mut Client, args: LogsArgs) -> Outcome {
    let request = api::LogsRequest { container: args.container, follow: args.follow };
    let mut answers = client.containers.logs(request).await?.into_inner();
    let (mut stdout, mut stderr) = (std::io::stdout().lock(), std::io::stderr().lock());
    let mut is_line_start = true;
    while let Some(answer) = answers.message().await? {
        for entry in answer.entries {
            let to: &mut dyn Write = match entry.stream() {
                api::Stream::Stderr => &mut stderr,
                _ => &mut stdout,
            };
            let stamp =
                if args.timestamps && is_line_start { format!("{} ", entry.time) } else { String::new() };
            is_line_start = entry.content.ends_with(b"\n");
            to.write_all(stamp.as_bytes()).and_then(|()| to.write_all(&entry.content)).map_err(
                |e| match e.kind() {
                    std::io::ErrorKind::BrokenPipe => Failure { message: String::new(), code: 141 },
                    _ => Failure::new(format!("write the log: {e}")),
                },
            )?;
        }
        stdout.flush().map_err(|e| Failure::new(format!("write the log: {e}")))?;
    }
    Ok(ExitCode::SUCCESS)
}
