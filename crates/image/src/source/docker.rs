//! Docker archives: `docker save`, and what other programs write in its form.

use std::path::Path;

use beta9_types::{Digest, ImageReference};
use oci_spec::image::ImageConfiguration;
use sha2::{Digest as _, Sha256};

use super::content::Content;
use super::members::{DockerImage, Members};
use super::oci::{check_platform, diff_ids, store_layers, store_manifest};
use super::{Imported, Target, named, named_after};
use crate::blobs::{Expected, parse_document};
use crate::{Error, ErrorKind, Result};

pub(super) fn import(
    target: &Target<'_>,
    members: &Members,
    path: &Path,
    wanted: Option<&ImageReference>,
) -> Result<Imported> {
    let images = members.docker_images()?;
    let image = choose(&images, path, wanted)?;
    let reference = match (wanted, names(image).next()) {
        (Some(reference), _) => reference.clone(),
        (None, Some(reference)) => reference,
        (None, None) => named_after(path, "latest")?,
    };
    let bytes = members.document(&image.config)?;
    check_name(&image.config, &bytes)?;
    let config: ImageConfiguration = parse_document(&bytes, "the image's configuration")?;
    check_platform(&config, path)?;
    let diff_ids = diff_ids(&config, image.layers.len())?;
    let sources = image.layers.iter().map(|name| (name.clone(), Expected::default()));
    let layers = store_layers(target, members, sources.collect(), &diff_ids)?;
    let (manifest, manifest_size) = store_manifest(target, bytes, &layers)?;
    Ok(Imported { manifest, manifest_size, reference })
}

fn names(image: &DockerImage) -> impl Iterator<Item = ImageReference> {
    image.repo_tags.iter().flatten().filter_map(|tag| named(tag))
}

fn choose<'i>(
    images: &'i [DockerImage],
    path: &Path,
    wanted: Option<&ImageReference>,
) -> Result<&'i DockerImage> {
    if let [image] = images {
        return Ok(image);
    }
    let matching =
        |wanted: &ImageReference| images.iter().find(|image| names(image).any(|name| name == *wanted));
    wanted.and_then(matching).ok_or_else(|| {
        let names: Vec<_> = images.iter().flat_map(names).map(|name| name.to_string()).collect();
        let message = format!(
            "{} has several images; import one of them by its name: {}",
            path.display(),
            names.join(", ")
        );
        Error::new(ErrorKind::Ambiguous, message)
    })
}

/// A configuration named after a digest must have it.
fn check_name(name: &str, bytes: &[u8]) -> Result<()> {
    let file = name.rsplit('/').next().unwrap_or(name);
    let Ok(announced) = Digest::parse(&format!("sha256:{}", file.trim_end_matches(".json"))) else {
        return Ok(());
    };
    let found = Digest::from_sha256(Sha256::digest(bytes).into());
    if found == announced {
        return Ok(());
    }
    let message = format!("configuration announced as {announced} is {found}; the image is damaged");
    Err(Error::new(ErrorKind::Mismatch, message))
}
