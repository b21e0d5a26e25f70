//! `logs`: what a container wrote, stdout to stdout and stderr to stderr.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;

use crate::api;
use crate::cli::{Failure, Outcome};
use crate::client::Client;
use crate::point_in_time::time;

#[derive(Args)]
pub(super) struct LogsArgs {
    /// Go on until the container is over.
    #[arg(short, long)]
    follow: bool,
    /// Print when each line was written.
    #[arg(short, long)]
    timestamps: bool,
    /// Only lines since a time (2026-01-31, 2026-01-31T12:00:00Z, seconds since 1970) or since so long ago (90s, 1h30m).
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<u64>,
    /// Only lines up to a time.
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<u64>,
    /// Only so many lines of those at the end; all for every one.
    #[arg(short = 'n', long, value_name = "LINES", default_value = "all", value_parser = parse_tail)]
    tail: Tail,
    /// Id, beginning of an id, or name.
    container: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tail {
    All,
    Lines(u64),
}

fn parse_tail(text: &str) -> Result<Tail, String> {
    match text {
        "all" => Ok(Tail::All),
        text => text.parse().map(Tail::Lines).map_err(|_| "use a number of lines, or all".to_owned()),
    }
}

pub(super) async fn run(client: &mut Client, args: LogsArgs) -> Outcome {
    let request = api::LogsRequest {
        container: args.container,
        follow: args.follow,
        since_unix_ns: args.since,
        until_unix_ns: args.until,
        tail: match args.tail {
            Tail::All => None,
            Tail::Lines(lines) => Some(lines),
        },
    };
    let mut answers = client.containers.logs(request).await?.into_inner();
    let (mut stdout, mut stderr) = (std::io::stdout().lock(), std::io::stderr().lock());
    // Of each stream, because the pieces of one line may have those of the other between them.
    let mut in_line = [false; 2];
    while let Some(answer) = answers.message().await? {
        for entry in answer.entries {
            let is_stderr = entry.stream() == api::Stream::Stderr;
            let to: &mut dyn Write = if is_stderr { &mut stderr } else { &mut stdout };
            let in_line = &mut in_line[usize::from(is_stderr)];
            let stamp = if args.timestamps && !*in_line { format!("{} ", entry.time) } else { String::new() };
            *in_line = !entry.content.ends_with(b"\n");
            to.write_all(stamp.as_bytes()).and_then(|()| to.write_all(&entry.content)).map_err(failed)?;
        }
        stdout.flush().map_err(failed)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn failed(e: std::io::Error) -> Failure {
    match e.kind() {
        std::io::ErrorKind::BrokenPipe => Failure { message: String::new(), code: 141 },
        _ => Failure::new(format!("write the log: {e}")),
    }
}
