//! The commands that do one thing to each of the containers they name: `wait`, `stop`, `kill`, `rm`.

use std::process::ExitCode;

use clap::Args;

use crate::api;
use crate::cli::{Failure, Outcome};
use crate::client::Client;
use crate::terminal;

#[derive(Args)]
pub(super) struct WaitArgs {
    /// Ids, beginnings of ids, or names.
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Args)]
pub(super) struct StopArgs {
    /// Seconds between SIGTERM and SIGKILL.
    #[arg(short, long, value_name = "SECONDS", default_value_t = 10)]
    time: u64,
    /// Ids, beginnings of ids, or names.
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Args)]
pub(super) struct KillArgs {
    /// The signal, by name (KILL, SIGTERM) or number.
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL", value_parser = parse_signal)]
    signal: i32,
    /// Ids, beginnings of ids, or names.
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Args)]
pub(super) struct RmArgs {
    /// Kill containers that run.
    #[arg(short, long)]
    force: bool,
    /// Ids, beginnings of ids, or names.
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

pub(super) async fn wait(client: &mut Client, args: WaitArgs) -> Outcome {
    each(args.containers, async |container| {
        let answer = client.containers.wait(api::WaitRequest { container }).await?.into_inner();
        terminal::line(&answer.exit.unwrap_or_default().code.to_string())
    })
    .await
}

pub(super) async fn stop(client: &mut Client, args: StopArgs) -> Outcome {
    each(args.containers, async |container| {
        let request =
            api::StopRequest { container: container.clone(), grace_ms: Some(args.time.saturating_mul(1000)) };
        client.containers.stop(request).await?;
        terminal::line(&container)
    })
    .await
}

pub(super) async fn kill(client: &mut Client, args: KillArgs) -> Outcome {
    each(args.containers, async |container| {
        let request = api::KillRequest { container: container.clone(), signal: args.signal, all: false };
        client.containers.kill(request).await?;
        terminal::line(&container)
    })
    .await
}

pub(super) async fn rm(client: &mut Client, args: RmArgs) -> Outcome {
    each(args.containers, async |container| {
        let request = api::RemoveRequest { container: container.clone(), force: args.force };
        client.containers.remove(request).await?;
        terminal::line(&container)
    })
    .await
}

/// Does it to every container, also when one fails; fails if one did.
pub(super) async fn each(
    containers: Vec<String>,
    mut action: impl AsyncFnMut(String) -> Result<(), Failure>,
) -> Outcome {
    let mut code = ExitCode::SUCCESS;
    for container in containers {
        if let Err(failure) = action(container).await {
            terminal::error(&failure.message);
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

/// `KILL`, `SIGKILL`, `sigkill` and `9` are the same signal.
fn parse_signal(text: &str) -> Result<i32, String> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
        "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
        "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = match name.parse::<i32>() {
        Ok(number) => Some(number).filter(|number| (1..=64).contains(number)),
        Err(_) => {
            NAMES.iter().position(|known| *known == name).and_then(|index| i32::try_from(index + 1).ok())
        }
    };
    number.ok_or_else(|| "use a name such as TERM or KILL, or a number from 1 to 64".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [("KILL", 9), ("SIGTERM", 15), ("sigint", 2), ("9", 9), ("SYS", 31), ("64", 64)]
        {
            assert_eq!(parse_signal(text).unwrap(), number);
        }
        for bad in ["", "0", "65", "NOPE", "-9"] {
            assert!(parse_signal(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
