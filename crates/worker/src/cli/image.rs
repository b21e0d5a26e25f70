//! `image`: what can be done with images that are here.

use std::path::PathBuf;
use std::process::ExitCode;

use beta9_types::ImageReference;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::api;
use crate::cli::table::{self, age};
use crate::cli::template::Template;
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
    /// Give up when the source has given nothing for so long; 120 where absent.
    #[arg(long, value_name = "SECONDS")]
    patience: Option<u32>,
    /// The file or directory, on the worker's machine.
    path: PathBuf,
}

#[derive(Args)]
pub(super) struct LsArgs {
    /// Digests only, whole.
    #[arg(short, long)]
    quiet: bool,
    /// Print digests whole.
    #[arg(long)]
    no_trunc: bool,
    /// Only images that fit: reference=NAME[:TAG], in which * stands for anything.
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = parse_filter)]
    filter: Vec<String>,
    /// Print each by a template, as in '{{.Repository}}:{{.Tag}}', or as `json`.
    #[arg(long, value_name = "TEMPLATE", conflicts_with = "output")]
    format: Option<String>,
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
    /// Print by a template, as in '{{.digest}}'.
    #[arg(short, long, value_name = "TEMPLATE")]
    format: Option<String>,
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
    /// For docker's scripts: nothing is asked.
    #[arg(short, long, hide = true)]
    force: bool,
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    output: OutputFormat,
}

pub(super) async fn run(client: &mut Client, command: ImageCommand) -> Outcome {
    match command {
        ImageCommand::Import(args) => import(client, args).await,
        ImageCommand::Export(args) => export(client, args).await,
        ImageCommand::Ls(args) => list(client, args).await,
        ImageCommand::Inspect(args) => {
            image_view::inspect(client, &args.images, args.format.as_deref()).await
        }
        ImageCommand::History(args) => image_view::history(client, &args.image, args.output).await,
        ImageCommand::Rm(args) => remove(client, args).await,
        ImageCommand::Prune(args) => prune(client, args).await,
    }
}

async fn import(client: &mut Client, args: ImportArgs) -> Outcome {
    use api::import_response::Message;
    // Its links are for whoever reads it to follow: to look at it may take forever.
    let path =
        std::path::absolute(&args.path).map_err(|e| Failure::new(format!("{}: {e}", args.path.display())))?;
    let request = api::ImportRequest {
        path: path.to_string_lossy().into_owned(),
        tag: args.tag.unwrap_or_default(),
        patience_ms: args.patience.map(|seconds| u64::from(seconds) * 1000),
    };
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
    let mut images = client.images.list_images(api::ListImagesRequest {}).await?.into_inner().images;
    if !args.filter.is_empty() {
        images.retain(|image| args.filter.iter().any(|pattern| fits(pattern, image)));
    }
    if args.quiet {
        for image in images {
            terminal::line(&image.digest)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let template = match args.format.as_deref() {
        Some("json") => Some(Template::parse("{{json .}}")?),
        Some(text) => Some(Template::parse(text.strip_prefix("table ").unwrap_or(text))?),
        None => None,
    };
    if let Some(template) = template {
        for image in &images {
            terminal::line(&template.fill(&fields(image, args.no_trunc))?)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
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
        let (name, tag) = name_and_tag(&image);
        table.add_row([
            name,
            tag,
            digest(&image, args.no_trunc),
            format!("{} ago", age(image.imported_us)),
            image.layers.to_string(),
            terminal::bytes(image.size_bytes),
        ]);
    }
    terminal::line(&table.trim_fmt())?;
    Ok(ExitCode::SUCCESS)
}

fn name_and_tag(image: &api::Image) -> (String, String) {
    match image.reference.parse::<ImageReference>() {
        Ok(reference) => (reference.name().to_owned(), reference.tag().unwrap_or("<none>").to_owned()),
        Err(_) => (image.reference.clone(), String::new()),
    }
}

fn digest(image: &api::Image, whole: bool) -> String {
    if whole {
        return image.digest.clone();
    }
    image.digest.trim_start_matches("sha256:").chars().take(12).collect()
}

/// What a template may name: docker's words.
fn fields(image: &api::Image, whole: bool) -> Value {
    let (name, tag) = name_and_tag(image);
    json!({
        "Repository": name,
        "Tag": tag,
        "ID": digest(image, whole),
        "Digest": image.digest,
        "CreatedSince": format!("{} ago", age(image.imported_us)),
        "Size": terminal::bytes(image.size_bytes),
        "Layers": image.layers,
    })
}

fn parse_filter(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some(("reference", pattern)) if !pattern.is_empty() => Ok(pattern.to_owned()),
        _ => Err("use reference=NAME[:TAG], in which * stands for anything".to_owned()),
    }
}

/// Whether an image has a name, with its tag or without, that fits.
fn fits(pattern: &str, image: &api::Image) -> bool {
    let (name, _) = name_and_tag(image);
    let short = image.reference.strip_prefix("docker.io/library/").unwrap_or(&image.reference);
    [image.reference.as_str(), &name, short, short.split(':').next().unwrap_or_default()]
        .into_iter()
        .any(|name| matches(pattern, name))
}

fn matches(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut left) = name.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        match left.split_once(part) {
            Some((_, after)) => left = after,
            None => return false,
        }
    }
    left.ends_with(last)
}

async fn prune(client: &mut Client, args: PruneArgs) -> Outcome {
    let _ = args.force;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_patterns() {
        for (pattern, name) in [
            ("busybox", "busybox"),
            ("busy*", "busybox"),
            ("*box", "busybox"),
            ("*:1.*", "a/b:1.2"),
            ("*", ""),
            ("a*b*c", "a-b-b-c"),
        ] {
            assert!(matches(pattern, name), "{pattern} does not fit {name}");
        }
        for (pattern, name) in [("busybox", "busybox2"), ("*box", "boxes"), ("a*b*c", "a-c"), ("", "x")] {
            assert!(!matches(pattern, name), "{pattern} fits {name}");
        }
    }
}
