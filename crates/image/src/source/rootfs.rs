//! A root file system, as a tar or as a directory: an image of one layer that says nothing about how to run it.

use std::path::Path;

use beta9_types::ImageReference;
use oci_spec::image::{ImageConfigurationBuilder, RootFsBuilder};

use super::oci::store_manifest;
use super::tree::Tree;
use super::{Imported, Target, architecture, named_after, open};
use crate::blobs::{Expected, StoredLayer};
use crate::progress::{Meter, Metered, Step};
use crate::{Error, ErrorKind, Result};

pub(super) fn import(target: &Target<'_>, path: &Path, wanted: Option<&ImageReference>) -> Result<Imported> {
    let reference = match wanted {
        Some(reference) => reference.clone(),
        None => named_after(path, "latest")?,
    };
    let reader = open(path)?;
    let size = reader.get_ref().metadata().map_err(|e| Error::io("look up", path, e))?.len();
    let mut meter = Meter::start(target.progress, Step::Copy, Some(size));
    let layer = target.blobs().write_layer(Metered { reader, meter: &mut meter }, &Expected::default())?;
    finish(target, layer, reference)
}

/// The same from the directory that would be packed.
pub(super) fn import_tree(
    target: &Target<'_>,
    path: &Path,
    wanted: Option<&ImageReference>,
) -> Result<Imported> {
    let reference = match wanted {
        Some(reference) => reference.clone(),
        None => named_after(path, "latest")?,
    };
    let reader = Tree::open(path, target.layout.directory(), target.limits)?;
    let mut meter = Meter::start(target.progress, Step::Copy, None);
    let layer = target.blobs().write_layer(Metered { reader, meter: &mut meter }, &Expected::default())?;
    finish(target, layer, reference)
}

fn finish(target: &Target<'_>, layer: StoredLayer, reference: ImageReference) -> Result<Imported> {
    let invalid = |e| Error::caused(ErrorKind::Invalid, "cannot describe the image", e);
    let diff_id = layer.diff_id.as_ref().unwrap_or(&layer.digest);
    let root = RootFsBuilder::default().typ("layers").diff_ids(vec![diff_id.to_string()]);
    // No time of creation: equal tars make equal images.
    let config = ImageConfigurationBuilder::default()
        .architecture(architecture())
        .os("linux")
        .rootfs(root.build().map_err(invalid)?)
        .build()
        .map_err(invalid)?;
    let config = config.to_string().map_err(invalid)?.into_bytes();
    let (manifest, manifest_size) = store_manifest(target, config, &[layer])?;
    Ok(Imported { manifest, manifest_size, reference })
}
