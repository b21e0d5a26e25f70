//! `image import`, `image ls` and `image prune`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use crate::api;
use crate::cli::table::{self, age};
use crate::cli::{Failure, Outcome, OutputFormat};
use crate::client::Client;
use crate::terminal::{self, Progress};

#[derive(Subcommand)]
pub(super) enum ImageCommand {
    /// Take in an image from a file or directory.
    ///
    /// An OCI layout directory, an OCI archive, a docker archive (`docker save`) or a plain root file system tar; which
    /// one it is, is told by its content. Archives may be compressed with gzip or zstd.
    Import(ImportArgs),
    /// List images.
    Ls(LsArgs),
    /// Remove what no image needs any more.
    ///
    /// Images that a container has stay in any case, and so does what a container is being made of.
    Prune(PruneArgs),
}

#[derive(Args)]
pub(super) struct ImportArgs {
    /// The image's name; found in the archive or made from the file's name where absent.
    #[arg(short, long, value_name = "NAME[:TAG]")]
    tag: Option<String>,
    /// The file or directory, on the worker's machine.
    path: PathBuf,
}

#[derive(Args)]
pub(super) struct LsArgs {
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    output: OutputFormat,
}

#[derive(Args)]
pub(super) struct PruneArgs {
    /// Remove every image that no container has, too.
    #[arg(short, long)]
    all: bool,
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    output: OutputFormat,
}

pub(super) async fn run(client: &mut Client, command: ImageCommand) -> Outcome {
    match command {
        ImageCommand::Import(args) => import(client, args).await,
        ImageCommand::Ls(args) => list(client, args).await,
        ImageCommand::Prune(args) => prune(client, args).await,
    }
}

async fn import(client: &mut Client, args: ImportArgs) -> Outcome {
    use api::import_response::Message;
    let path = args.path.canonicalize().map_err(|e| Failure::new(format!("{}: {e}", args.path.display())))?;
    let request =
        api::ImportRequest { path: path.to_string_lossy().into_owned(), tag: args.tag.unwrap_or_default() };
    let mut answers = client.images.import(request).await?.into_inner();
    let mut progress = Progress::new();
    while let Some(answer) = answers.message().await? {
        match answer.message {
            Some(Message::Progress(step)) => progress.step(&step.step, step.done_bytes, step.total_bytes),
            Some(Message::Image(image)) => {
                drop(progress);
                terminal::line(&format!("{} {}", image.reference, image.digest))?;
                return Ok(ExitCode::SUCCESS);
            }
            None => {}
        }
    }
    Err(Failure::new("the worker closed the connection before the image was in"))
}

async fn list(client: &mut Client, args: LsArgs) -> Outcome {
    let images = client.images.list_images(api::ListImagesRequest {}).await?.into_inner().images;
    if args.output == OutputFormat::Json {
        let image = |image: &api::Image| {
            json!({
                "reference": image.reference,
                "digest": image.digest,
                "size_bytes": image.size_bytes,
                "imported_us": image.imported_us,
                "layers": image.layers,
            })
        };
        terminal::json(&images.iter().map(image).collect::<Vec<_>>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = table::new(["IMAGE", "TAG", "DIGEST", "IMPORTED", "LAYERS", "SIZE"]);
    for image in images {
        let (name, tag) = image.reference.rsplit_once(':').unwrap_or((&image.reference, ""));
        table.add_row([
            name.to_owned(),
            tag.to_owned(),
            image.digest.trim_start_matches("sha256:").chars().take(12).collect(),
            format!("{} ago", age(image.imported_us)),
            image.layers.to_string(),
            terminal::bytes(image.size_bytes),
        ]);
    }
    terminal::line(&table.trim_fmt())?;
    Ok(ExitCode::SUCCESS)
}

async fn prune(client: &mut Client, args: PruneArgs) -> Outcome {
    let request = api::PruneImagesRequest { all: args.all };
    let api::PruneImagesResponse { images, freed_bytes } =
        client.images.prune_images(request).await?.into_inner();
    if args.output == OutputFormat::Json {
        terminal::json(&json!({ "images": images, "freed_bytes": freed_bytes }))?;
        return Ok(ExitCode::SUCCESS);
    }
    for image in images {
        terminal::line(&image)?;
    }
    terminal::line(&format!("{} freed", terminal::bytes(freed_bytes)))?;
    Ok(ExitCode::SUCCESS)
}
