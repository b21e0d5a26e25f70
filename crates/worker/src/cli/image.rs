//! `image`: what can be done with images that are here.

use std::path::PathBuf;
use std::process::ExitCode;

use beta9_types::ImageReference;
use clap::{Args, Subcommand};
use serde_json::json;

use crate::api;
use crate::cli::table::{self, age};
use crate::cli::{Failure, Outcome, OutputFormat, image_view};
use crate::client::Client;
use crate::terminal::{self, Progress};

#[derive(Subcommand)]
pub(super) enum ImageCommand {
    /// Take in an image from a file or directory.
    ///
    /// An OCI layout directory, an OCI archive, a docker archive (`docker save`), or a root file system as a plain tar or
    /// as a directory; which one it is, is told by its content. Archives may be compressed with gzip or zstd. Of a
    /// directory, one file system is read, and nothing may write to it meanwhile.
    Import(ImportArgs),
    /// Write an image to a file or directory.
    Export(ExportArgs),
    /// List images.
    Ls(LsArgs),
    /// Show everything known of images, as JSON.
    Inspect(InspectArgs),
    /// Show how an image was built.
    History(HistoryArgs),
    /// Remove images.
    ///
    /// A name is taken away; with an image's last name its content goes, unless a container needs it. The beginning of a
    /// digest means every name of that image.
    Rm(RmArgs),
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
pub(super) struct ExportArgs {
    /// What to write: oci-archive (an OCI layout in a tar), oci-dir (the same as a directory), or docker-archive (for
    /// `docker load`).
    #[arg(long, value_name = "FORMAT", default_value = "oci-archive",
        value_parser = ["oci-archive", "oci-dir", "docker-archive"])]
    format: String,
    /// A name or the beginning of a digest.
    image: String,
    /// Where to write, on the worker's machine; nothing may be there yet.
    path: PathBuf,
}

#[derive(Args)]
pub(super) struct InspectArgs {
    /// Names or beginnings of digests.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

#[derive(Args)]
pub(super) struct HistoryArgs {
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    output: OutputFormat,
    /// A name or the beginning of a digest.
    image: String,
}

#[derive(Args)]
pub(super) struct RmArgs {
    /// Take names away although containers use the image; its content stays until they are gone.
    #[arg(short, long)]
    force: bool,
    /// Names or beginnings of digests.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
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
        ImageCommand::Export(args) => export(client, args).await,
        ImageCommand::Ls(args) => list(client, args).await,
        ImageCommand::Inspect(args) => image_view::inspect(client, &args.images).await,
        ImageCommand::History(args) => image_view::history(client, &args.image, args.output).await,
        ImageCommand::Rm(args) => remove(client, args).await,
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

async fn export(client: &mut Client, args: ExportArgs) -> Outcome {
    use api::export_image_response::Message;
    let path =
        std::path::absolute(&args.path).map_err(|e| Failure::new(format!("{}: {e}", args.path.display())))?;
    let request = api::ExportImageRequest {
        image: args.image,
        path: path.to_string_lossy().into_owned(),
        format: args.format,
    };
    let mut answers = client.images.export_image(request).await?.into_inner();
    let mut progress = Progress::new();
    while let Some(answer) = answers.message().await? {
        match answer.message {
            Some(Message::Progress(step)) => progress.step(&step.step, step.done_bytes, step.total_bytes),
            Some(Message::Path(path)) => {
                drop(progress);
                terminal::line(&path)?;
                return Ok(ExitCode::SUCCESS);
            }
            None => {}
        }
    }
    Err(Failure::new("the worker closed the connection before the image was written"))
}

async fn remove(client: &mut Client, args: RmArgs) -> Outcome {
    let mut code = ExitCode::SUCCESS;
    for image in args.images {
        let request = api::RemoveImageRequest { image, force: args.force };
        match client.images.remove_image(request).await {
            Ok(answer) => {
                let answer = answer.into_inner();
                for reference in answer.removed_references {
                    terminal::line(&format!("untagged {reference}"))?;
                }
                if !answer.removed_digest.is_empty() {
                    let freed = terminal::bytes(answer.freed_bytes);
                    terminal::line(&format!("removed {}, {freed} freed", answer.removed_digest))?;
                }
            }
            // The others go nevertheless, as with rm.
            Err(status) => {
                terminal::error(status.message());
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
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
        let (name, tag) = match image.reference.parse::<ImageReference>() {
            Ok(reference) => (reference.name().to_owned(), reference.tag().unwrap_or("<none>").to_owned()),
            Err(_) => (image.reference.clone(), String::new()),
        };
        table.add_row([
            name,
            tag,
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
