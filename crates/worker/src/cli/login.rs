//! `login` and `logout`: credentials for registries, kept where docker keeps them.

use std::io::{BufRead, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;

use beta9_registry::{Credentials, Kept, Secret};
use beta9_types::RegistryHost;
use clap::Args;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::api;
use crate::cli::pull::{docker_config, message};
use crate::cli::{Failure, Outcome};
use crate::client::Client;
use crate::terminal;

/// Longest password that is read: access tokens are long.
const MAX_PASSWORD: u64 = 64 << 10;

#[derive(Args)]
pub(super) struct LoginArgs {
    /// The user; asked for on a terminal where absent.
    #[arg(short, long, value_name = "USER")]
    username: Option<String>,
    /// Read the password from stdin instead of asking for it on the terminal.
    #[arg(long)]
    password_stdin: bool,
    /// What docker takes, and everybody on this machine can read.
    #[arg(short, long, hide = true, value_name = "PASSWORD")]
    password: Option<String>,
    /// Speak HTTP without TLS, to whoever listens. Registries on loopback need no flag.
    #[arg(long)]
    plain_http: bool,
    /// The registry: HOST[:PORT].
    #[arg(default_value = "docker.io")]
    registry: RegistryHost,
}

#[derive(Args)]
pub(super) struct LogoutArgs {
    /// The registry: HOST[:PORT].
    #[arg(default_value = "docker.io")]
    registry: RegistryHost,
}

pub(super) async fn login(client: &mut Client, args: LoginArgs) -> Outcome {
    if args.password.is_some() {
        let text = "a password on the command line can be read by everybody here: use --password-stdin";
        return Err(Failure::new(text));
    }
    let mut config = docker_config()?;
    let username = match args.username {
        Some(username) => username,
        None if args.password_stdin => return Err(Failure::new("--password-stdin needs --username")),
        None => ask("Username: ").await?,
    };
    let password = if args.password_stdin { from_stdin()? } else { ask_secretly("Password: ").await? };
    if username.is_empty() || username.contains(':') || password.reveal().is_empty() {
        return Err(Failure::new("user and password must not be empty, and the user must have no colon"));
    }
    let credentials = Credentials::Password { username, password };
    let request = api::CheckLoginRequest {
        registry: args.registry.to_string(),
        plain_http: args.plain_http.then_some(true),
        credentials: Some(message(&credentials)),
    };
    client.images.check_login(request).await?;
    let kept = config.store(&args.registry, &credentials).await.map_err(|e| Failure::new(e.chain()))?;
    match kept {
        Kept::Helper(helper) => terminal::line(&format!("logged in; the password is with {helper}"))?,
        Kept::File(path) => {
            let text = format!(
                "{} holds the password for its readers: a credential helper (credsStore) would not",
                path.display()
            );
            terminal::warning(&text);
            terminal::line("logged in")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn logout(args: LogoutArgs) -> Outcome {
    let found = docker_config()?.erase(&args.registry).await.map_err(|e| Failure::new(e.chain()))?;
    let text = if found {
        format!("logged out of {}", args.registry)
    } else {
        format!("there were no credentials for {}", args.registry)
    };
    terminal::line(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Everything up to the end; a newline there is the shell's.
fn from_stdin() -> Result<Secret, Failure> {
    let mut text = String::new();
    let read = std::io::stdin().lock().take(MAX_PASSWORD).read_to_string(&mut text);
    read.map_err(|e| Failure::new(format!("read the password from stdin: {e}")))?;
    Ok(Secret::new(text.trim_end_matches(['\n', '\r'])))
}

async fn ask(what: &str) -> Result<String, Failure> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        let text = "there is no terminal to ask on: use --username and --password-stdin";
        return Err(Failure::new(text));
    }
    let _ = write!(std::io::stderr(), "{what}");
    let line = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().lock().take(MAX_PASSWORD).read_line(&mut line).map(|_| line)
    });
    let line = tokio::select! {
        line = line => line,
        _ = tokio::signal::ctrl_c() => return Err(Failure { message: String::new(), code: 130 }),
    };
    let failed = |e: &dyn std::fmt::Display| Failure::new(format!("read from the terminal: {e}"));
    let line = line.map_err(|e| failed(&e))?.map_err(|e| failed(&e))?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

async fn ask_secretly(what: &str) -> Result<Secret, Failure> {
    let answer = {
        let _silent = Silent::new();
        ask(what).await
    };
    // The newline was not echoed either.
    let _ = writeln!(std::io::stderr());
    answer.map(Secret::new)
}

/// A terminal that shows nothing of what is typed, until this is dropped.
struct Silent(Option<Termios>);

impl Silent {
    fn new() -> Self {
        let stdin = std::io::stdin();
        let Ok(before) = tcgetattr(stdin.as_fd()) else { return Self(None) };
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        let is_set = tcsetattr(stdin.as_fd(), OptionalActions::Flush, &silent).is_ok();
        Self(is_set.then_some(before))
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(std::io::stdin().as_fd(), OptionalActions::Flush, before);
        }
    }
}
