//! `config show` and `config check`.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::cli::{Failure, Global, Outcome, OutputFormat};
use crate::pools::Setup;
use crate::terminal;

#[derive(Subcommand)]
pub(super) enum ConfigCommand {
    /// Print the configuration in effect: every default filled in, and where each value comes from.
    Show(ShowArgs),
    /// Check the configuration; fails when it cannot be loaded, and warns of what lowers isolation.
    Check,
}

#[derive(Args)]
pub(super) struct ShowArgs {
    /// How to print: as YAML with comments, or as JSON.
    #[arg(long, value_enum, default_value = "table")]
    output: OutputFormat,
}

pub(super) fn run(global: &Global, command: ConfigCommand) -> Outcome {
    let setup = Setup::load(global)?;
    let config = &setup.config;
    match command {
        ConfigCommand::Show(ShowArgs { output: OutputFormat::Json }) => terminal::json(&config.show_json())?,
        ConfigCommand::Show(_) => terminal::line(config.show_yaml().trim_end())?,
        ConfigCommand::Check => {
            for warning in config.warnings() {
                terminal::warning(&warning.to_string());
            }
            let pools = config.pools();
            let names: Vec<_> =
                pools.iter().map(|pool| format!("{} ({})", pool.name, pool.runtime)).collect();
            let file = config.file().map_or("defaults".to_owned(), |path| path.display().to_string());
            terminal::line(&format!("{file}: ok; pools: {}", names.join(", ")))?;
        }
    }
    Ok::<_, Failure>(ExitCode::SUCCESS)
}
