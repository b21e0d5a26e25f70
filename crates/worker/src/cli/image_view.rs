//! `image inspect` and `image history`: what an image says of itself.

use std::process::ExitCode;

use oci_spec::image::ImageConfiguration;
use serde_json::{Value, json};

use crate::api;
use crate::cli::table;
use crate::cli::template::Template;
use crate::cli::transfer::short;
use crate::cli::{Failure, Outcome, OutputFormat};
use crate::client::Client;
use crate::terminal;

pub(super) async fn inspect(client: &mut Client, images: &[String], format: Option<&str>) -> Outcome {
    let template = format.map(Template::parse).transpose()?;
    let mut found = Vec::new();
    for image in images {
        found.push(json(&ask(client, image).await?)?);
    }
    if let Some(template) = template {
        for image in &found {
            terminal::line(&template.fill(image)?)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    terminal::json(&found)?;
    Ok(ExitCode::SUCCESS)
}

async fn ask(client: &mut Client, image: &str) -> Result<api::InspectImageResponse, Failure> {
    let request = api::InspectImageRequest { image: image.to_owned() };
    Ok(client.images.inspect_image(request).await?.into_inner())
}

fn document(bytes: &[u8], what: &str) -> Result<Value, Failure> {
    serde_json::from_slice(bytes).map_err(|e| Failure::new(format!("the image's {what} is not valid: {e}")))
}

fn json(answer: &api::InspectImageResponse) -> Result<Value, Failure> {
    let image = answer.image.clone().unwrap_or_default();
    let layer = |layer: &api::ImageLayer| json!({ "digest": layer.digest, "size_bytes": layer.size_bytes, "diff_id": layer.diff_id });
    Ok(json!({
        "reference": image.reference,
        "references": answer.references,
        "digest": image.digest,
        "size_bytes": image.size_bytes,
        "imported_us": image.imported_us,
        "layers": answer.layers.iter().map(layer).collect::<Vec<_>>(),
        "manifest": document(&answer.manifest, "manifest")?,
        "config": document(&answer.config, "configuration")?,
    }))
}

/// One step of a build.
struct Entry {
    created: String,
    by: String,
    comment: String,
    /// The layer that it made, if it made one.
    layer: Option<api::ImageLayer>,
}

pub(super) async fn history(client: &mut Client, image: &str, output: OutputFormat) -> Outcome {
    let answer = ask(client, image).await?;
    let config: ImageConfiguration = serde_json::from_slice(&answer.config)
        .map_err(|e| Failure::new(format!("the image's configuration is not valid: {e}")))?;
    let entries = entries(&config, answer.layers);
    if output == OutputFormat::Json {
        let entry = |entry: &Entry| {
            json!({
                "created": entry.created,
                "created_by": entry.by,
                "comment": entry.comment,
                "layer": entry.layer.as_ref().map(|layer| &layer.digest),
                "size_bytes": entry.layer.as_ref().map_or(0, |layer| layer.size_bytes),
            })
        };
        terminal::json(&entries.iter().map(entry).collect::<Vec<_>>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = table::new(["LAYER", "CREATED", "SIZE", "CREATED BY"]);
    for entry in &entries {
        table.add_row([
            entry.layer.as_ref().map_or_else(String::new, |layer| short(&layer.digest)),
            entry.created.clone(),
            terminal::bytes(entry.layer.as_ref().map_or(0, |layer| layer.size_bytes)),
            one_line(&entry.by),
        ]);
    }
    terminal::line(&table.trim_fmt())?;
    Ok(ExitCode::SUCCESS)
}

/// The newest first, as docker shows them. Layers that no entry speaks of are there as well.
fn entries(config: &ImageConfiguration, layers: Vec<api::ImageLayer>) -> Vec<Entry> {
    let mut layers = layers.into_iter();
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let told = config.history().iter().flatten();
    let mut entries: Vec<_> = told
        .map(|entry| Entry {
            created: text(entry.created()),
            by: text(entry.created_by()),
            comment: text(entry.comment()),
            layer: if entry.empty_layer() == Some(true) { None } else { layers.next() },
        })
        .collect();
    let untold = |layer| Entry {
        created: String::new(),
        by: String::new(),
        comment: String::new(),
        layer: Some(layer),
    };
    entries.extend(layers.map(untold));
    entries.reverse();
    entries
}

/// Whatever an image's builder wrote, on one line and without control characters.
fn one_line(text: &str) -> String {
    const WIDTH: usize = 72;
    let words: Vec<_> = text.split_whitespace().collect();
    let clean: String = words.join(" ").chars().filter(|c| !c.is_control()).collect();
    match clean.char_indices().nth(WIDTH) {
        Some((end, _)) => format!("{}…", &clean[..end]),
        None => clean,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_belong_to_the_entries_that_made_them() {
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [] },
            "history": [{ "created_by": "one" }, { "created_by": "two", "empty_layer": true }],
        });
        let config: ImageConfiguration = serde_json::from_value(config).unwrap();
        let layer = |digest: &str| api::ImageLayer { digest: digest.to_owned(), ..Default::default() };
        let found = entries(&config, vec![layer("a"), layer("b")]);
        let shown: Vec<_> = found
            .iter()
            .map(|entry| (entry.by.as_str(), entry.layer.as_ref().map(|layer| layer.digest.as_str())))
            .collect();
        assert_eq!(shown, [("", Some("b")), ("two", None), ("one", Some("a"))]);
    }

    #[test]
    fn what_is_shown_is_short_and_tame() {
        assert_eq!(one_line("a\n\t b\u{1b}[31m"), "a b[31m");
        assert_eq!(one_line(&"x".repeat(100)).chars().count(), 73);
    }
}
