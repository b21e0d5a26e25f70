//! `volume`: directories that outlive containers.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use crate::api;
use crate::cli::container::each;
use crate::cli::table::{self, age};
use crate::cli::{Failure, Outcome, OutputFormat};
use crate::client::Client;
use crate::terminal;

#[derive(Subcommand)]
pub(super) enum VolumeCommand {
    /// Make a volume, unless there is one of that name, and print its name.
    Create(CreateArgs),
    /// List volumes.
    Ls(LsArgs),
    /// Show everything known of volumes, as JSON.
    Inspect(InspectArgs),
    /// Remove volumes that no container has.
    Rm(RmArgs),
    /// Remove every volume that no container has and nobody named.
    Prune(PruneArgs),
}

#[derive(Args)]
pub(super) struct CreateArgs {
    /// A note of yours.
    #[arg(long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// Its name; 32 random digits where absent.
    name: Option<String>,
}

#[derive(Args)]
pub(super) struct LsArgs {
    /// Print names alone.
    #[arg(short, long)]
    quiet: bool,
    /// Only volumes that fit: name=PART, label=NAME[=VALUE], dangling=true for those that no container has.
    #[arg(short, long, value_name = "NAME=VALUE")]
    filter: Vec<String>,
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    output: OutputFormat,
}

#[derive(Args)]
pub(super) struct InspectArgs {
    /// Names.
    #[arg(required = true, value_name = "VOLUME")]
    volumes: Vec<String>,
}

#[derive(Args)]
pub(super) struct RmArgs {
    /// That there is none is no failure.
    #[arg(short, long)]
    force: bool,
    /// Names.
    #[arg(required = true, value_name = "VOLUME")]
    volumes: Vec<String>,
}

#[derive(Args)]
pub(super) struct PruneArgs {
    /// Remove volumes that somebody named, too.
    #[arg(short, long)]
    all: bool,
    /// Do not ask first.
    #[arg(short, long)]
    force: bool,
    /// Only volumes that fit, as in label=NAME=VALUE.
    #[arg(long, value_name = "label=NAME[=VALUE]")]
    filter: Vec<String>,
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    output: OutputFormat,
}

pub(super) async fn run(client: &mut Client, command: VolumeCommand) -> Outcome {
    match command {
        VolumeCommand::Create(args) => create(client, args).await,
        VolumeCommand::Ls(args) => list(client, args).await,
        VolumeCommand::Inspect(args) => inspect(client, args).await,
        VolumeCommand::Rm(args) => {
            each(args.volumes, async |name| {
                let request = api::RemoveVolumeRequest { name: name.clone(), force: args.force };
                client.volumes.remove_volume(request).await?;
                terminal::line(&name)
            })
            .await
        }
        VolumeCommand::Prune(args) => prune(client, args).await,
    }
}

async fn create(client: &mut Client, args: CreateArgs) -> Outcome {
    let label = |text: String| match text.split_once('=') {
        Some((name, value)) => (name.to_owned(), value.to_owned()),
        None => (text, String::new()),
    };
    let labels = args.label.into_iter().map(label).collect();
    let request = api::CreateVolumeRequest { name: args.name.unwrap_or_default(), labels };
    let volume = client.volumes.create_volume(request).await?.into_inner().volume.unwrap_or_default();
    terminal::line(&volume.name)?;
    Ok(ExitCode::SUCCESS)
}

async fn list(client: &mut Client, args: LsArgs) -> Outcome {
    let filters = args.filter.iter().map(|text| Filter::parse(text)).collect::<Result<Vec<_>, _>>()?;
    let mut volumes = client.volumes.list_volumes(api::ListVolumesRequest {}).await?.into_inner().volumes;
    volumes.retain(|volume| filters.iter().all(|filter| filter.fits(volume)));
    if args.output == OutputFormat::Json {
        terminal::json(&volumes.iter().map(view).collect::<Vec<_>>())?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.quiet {
        volumes.iter().try_for_each(|volume| terminal::line(&volume.name))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = table::new(["VOLUME", "CREATED", "CONTAINERS"]);
    for volume in volumes {
        let count = volume.containers.len().to_string();
        table.add_row([volume.name, format!("{} ago", age(volume.created_us)), count]);
    }
    terminal::line(&table.trim_fmt())?;
    Ok(ExitCode::SUCCESS)
}

async fn inspect(client: &mut Client, args: InspectArgs) -> Outcome {
    let mut found = Vec::new();
    let code = each(args.volumes, async |name| {
        let answer = client.volumes.inspect_volume(api::InspectVolumeRequest { name }).await?.into_inner();
        found.push(view(&answer.volume.unwrap_or_default()));
        Ok(())
    })
    .await?;
    terminal::json(&found)?;
    Ok(code)
}

async fn prune(client: &mut Client, args: PruneArgs) -> Outcome {
    if !args.force {
        return Err(Failure::new("this removes every volume that no container has: say --force to do it"));
    }
    let label = |text: &String| match text.strip_prefix("label=") {
        Some(label) if !label.is_empty() => Ok(label.to_owned()),
        _ => Err(Failure::new(format!("invalid filter {text:?}: use label=NAME or label=NAME=VALUE"))),
    };
    let labels = args.filter.iter().map(label).collect::<Result<_, _>>()?;
    let request = api::PruneVolumesRequest { all: args.all, labels };
    let api::PruneVolumesResponse { names, freed_bytes } =
        client.volumes.prune_volumes(request).await?.into_inner();
    if args.output == OutputFormat::Json {
        terminal::json(&json!({ "volumes": names, "freed_bytes": freed_bytes }))?;
        return Ok(ExitCode::SUCCESS);
    }
    names.iter().try_for_each(|name| terminal::line(name))?;
    terminal::line(&format!("{} freed", terminal::bytes(freed_bytes)))?;
    Ok(ExitCode::SUCCESS)
}

fn view(volume: &api::Volume) -> serde_json::Value {
    json!({
        "name": volume.name,
        "path": volume.path,
        "created_us": volume.created_us,
        "labels": volume.labels.iter().collect::<std::collections::BTreeMap<_, _>>(),
        "anonymous": volume.anonymous,
        "containers": volume.containers,
    })
}

enum Filter {
    Name(String),
    Label(String, Option<String>),
    Dangling(bool),
}

impl Filter {
    fn parse(text: &str) -> Result<Self, Failure> {
        match text.split_once('=') {
            Some(("name", part)) if !part.is_empty() => Ok(Self::Name(part.to_owned())),
            Some(("label", label)) if !label.is_empty() => Ok(match label.split_once('=') {
                Some((name, value)) => Self::Label(name.to_owned(), Some(value.to_owned())),
                None => Self::Label(label.to_owned(), None),
            }),
            Some(("dangling", "true" | "1")) => Ok(Self::Dangling(true)),
            Some(("dangling", "false" | "0")) => Ok(Self::Dangling(false)),
            _ => Err(Failure::new(format!(
                "invalid filter {text:?}: use name=, label= or dangling=true|false"
            ))),
        }
    }

    fn fits(&self, volume: &api::Volume) -> bool {
        match self {
            Self::Name(part) => volume.name.contains(part.as_str()),
            Self::Label(name, value) => {
                volume.labels.get(name).is_some_and(|known| value.as_ref().is_none_or(|value| value == known))
            }
            Self::Dangling(wanted) => volume.containers.is_empty() == *wanted,
        }
    }
}
