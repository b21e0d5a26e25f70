//! OCI image layouts (OCI image spec, image-layout.md), and what all images have in common once they are stored.

use std::path::Path;

use beta9_types::{Digest, ImageReference};
use oci_spec::image::{
    Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, ImageManifestBuilder, MediaType, Os,
};

use super::content::{Content, blob_name};
use super::{Imported, Target, architecture, named, named_after};
use crate::blobs::{Expected, MAX_DOCUMENT, StoredLayer, parse_document};
use crate::compression::Compression;
use crate::index::REF_NAME;
use crate::progress::{Meter, Metered, Step};
use crate::{Error, ErrorKind, Result};

/// The full name of an image, which containerd and docker add: the standard annotation is often the tag alone.
pub(crate) const FULL_NAME: &str = "io.containerd.image.name";

/// An index that points to an index that points to … is a trap.
const MAX_INDEXES: usize = 4;

/// Most layers of an image. Docker stops at 127.
const MAX_LAYERS: usize = 512;

pub(super) fn import(
    target: &Target<'_>,
    content: &dyn Content,
    path: &Path,
    wanted: Option<&ImageReference>,
) -> Result<Imported> {
    let what = format!("the index of {}", path.display());
    let index: ImageIndex = parse_document(&content.document("index.json")?, &what)?;
    let chosen = choose(&index, path, wanted)?;
    let reference = match (wanted, name(chosen)) {
        (Some(reference), _) => reference.clone(),
        (None, Some(Name::Full(reference))) => reference,
        (None, Some(Name::Tag(tag))) => named_after(path, &tag)?,
        (None, None) => named_after(path, "latest")?,
    };
    let descriptor = descend(content, chosen.clone(), path)?;
    let manifest_digest = digest(&descriptor)?;
    let manifest_bytes = content.blob(&manifest_digest)?;
    let manifest: ImageManifest = parse_document(&manifest_bytes, "the image's manifest")?;
    let config_bytes = content.blob(&digest(manifest.config())?)?;
    let config: ImageConfiguration = parse_document(&config_bytes, "the image's configuration")?;
    check_platform(&config, path)?;
    let diff_ids = diff_ids(&config, manifest.layers().len())?;
    let mut sources = Vec::with_capacity(diff_ids.len());
    for layer in manifest.layers() {
        check_layer_type(layer.media_type())?;
        let digest = digest(layer)?;
        sources.push((blob_name(&digest), Expected { digest: Some(digest), size: Some(layer.size()) }));
    }
    store_layers(target, content, sources, &diff_ids)?;
    target.blobs().write_document(&config_bytes)?;
    target.blobs().write_document(&manifest_bytes)?;
    let manifest_size = manifest_bytes.len() as u64;
    Ok(Imported { manifest: manifest_digest, manifest_size, reference })
}

/// Looks for an image in an index that anybody may have made.
#[cfg(fuzzing)]
pub(crate) fn fuzz_index(bytes: &[u8]) -> Result<()> {
    let index: ImageIndex = parse_document(bytes, "the index")?;
    choose(&index, Path::new("image"), None).map(drop)
}

/// What an index calls an image.
#[derive(Debug, PartialEq, Eq)]
enum Name {
    Full(ImageReference),
    Tag(String),
}

impl Name {
    fn is(&self, wanted: &ImageReference) -> bool {
        match self {
            Self::Full(reference) => reference == wanted,
            Self::Tag(tag) => tag == wanted.name_and_tag().1,
        }
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Full(reference) => reference.fmt(f),
            Self::Tag(tag) => write!(f, "NAME:{tag}"),
        }
    }
}

fn name(descriptor: &Descriptor) -> Option<Name> {
    let annotations = descriptor.annotations().as_ref()?;
    if let Some(full) = annotations.get(FULL_NAME).and_then(|text| named(text)) {
        return Some(Name::Full(full));
    }
    let text = annotations.get(REF_NAME)?;
    // The annotation is a tag by the specification and a whole name in practice.
    if text.contains(['/', ':']) { named(text).map(Name::Full) } else { Some(Name::Tag(text.clone())) }
}

/// The image that is meant. Images for other machines, signatures and attestations do not count.
fn choose<'i>(index: &'i ImageIndex, path: &Path, wanted: Option<&ImageReference>) -> Result<&'i Descriptor> {
    let usable: Vec<_> = index.manifests().iter().filter(|descriptor| runs_here(descriptor)).collect();
    let Some(first) = usable.first() else {
        let offered = platforms(index);
        let message =
            format!("{} has no image for linux/{}, only for {offered}", path.display(), architecture());
        return Err(Error::new(ErrorKind::Unsupported, message));
    };
    if usable.iter().all(|descriptor| descriptor.digest() == first.digest()) {
        return Ok(first);
    }
    let named = |wanted: &ImageReference| {
        usable.iter().find(|descriptor| name(descriptor).is_some_and(|name| name.is(wanted)))
    };
    wanted.and_then(named).copied().ok_or_else(|| {
        let names: Vec<_> =
            usable.iter().filter_map(|descriptor| name(descriptor)).map(|name| name.to_string()).collect();
        let message = format!(
            "{} has several images; import one of them by its name: {}",
            path.display(),
            names.join(", ")
        );
        Error::new(ErrorKind::Ambiguous, message)
    })
}

fn runs_here(descriptor: &Descriptor) -> bool {
    let is_image = is_index(descriptor.media_type()) || is_manifest(descriptor.media_type());
    is_image
        && descriptor.platform().as_ref().is_none_or(|platform| {
            *platform.os() == Os::Linux && *platform.architecture() == Arch::from(architecture())
        })
}

fn platforms(index: &ImageIndex) -> String {
    let platforms = index.manifests().iter().filter_map(|descriptor| descriptor.platform().as_ref());
    let mut names: Vec<_> = platforms.map(|p| format!("{}/{}", p.os(), p.architecture())).collect();
    names.sort();
    names.dedup();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

/// Follows indexes to the manifest for this machine.
fn descend(content: &dyn Content, mut descriptor: Descriptor, path: &Path) -> Result<Descriptor> {
    for _ in 0..MAX_INDEXES {
        if !is_index(descriptor.media_type()) {
            return Ok(descriptor);
        }
        let index: ImageIndex = parse_document(&content.blob(&digest(&descriptor)?)?, "the image's index")?;
        descriptor = choose(&index, path, None)?.clone();
    }
    let message = format!("{} has indexes more than {MAX_INDEXES} deep", path.display());
    Err(Error::new(ErrorKind::Limit, message))
}

/// Docker's own types say the same as OCI's.
fn is_index(media_type: &MediaType) -> bool {
    matches!(
        media_type.to_string().as_str(),
        "application/vnd.oci.image.index.v1+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json"
    )
}

fn is_manifest(media_type: &MediaType) -> bool {
    matches!(
        media_type.to_string().as_str(),
        "application/vnd.oci.image.manifest.v1+json" | "application/vnd.docker.distribution.manifest.v2+json"
    )
}

/// Compression is told by content; what matters here is that it is a tar and not encrypted.
pub(crate) fn check_layer_type(media_type: &MediaType) -> Result<()> {
    let name = media_type.to_string();
    let known = [".tar", ".tar+gzip", ".tar.gzip", ".tar+zstd", ".tar.zstd"];
    if known.iter().any(|end| name.ends_with(end)) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        format!("image has a layer of the type {name}, which is not supported"),
    ))
}

pub(crate) fn digest(descriptor: &Descriptor) -> Result<Digest> {
    Digest::parse(descriptor.digest().as_ref()).map_err(|e| {
        Error::caused(ErrorKind::Unsupported, "image names content by a digest that is not supported", e)
    })
}

/// Refuses an image for another machine: it would unpack and then not run.
pub(super) fn check_platform(config: &ImageConfiguration, path: &Path) -> Result<()> {
    if *config.os() == Os::Linux && *config.architecture() == Arch::from(architecture()) {
        return Ok(());
    }
    let message = format!(
        "{} is an image for {}/{}, and this machine is linux/{}",
        path.display(),
        config.os(),
        config.architecture(),
        architecture()
    );
    Err(Error::new(ErrorKind::Unsupported, message))
}

/// Refuses more layers than any image has reason to have.
pub(crate) fn check_layer_count(layers: usize) -> Result<()> {
    if layers <= MAX_LAYERS {
        return Ok(());
    }
    let message = format!("image has {layers} layers; at most {MAX_LAYERS} are supported");
    Err(Error::new(ErrorKind::Invalid, message))
}

/// The digests of the decompressed layers, one for each layer.
pub(crate) fn diff_ids(config: &ImageConfiguration, layers: usize) -> Result<Vec<Digest>> {
    let announced = config.rootfs().diff_ids();
    check_layer_count(layers)?;
    if announced.len() != layers {
        let message = format!("image has {layers} layers and {} layer digests", announced.len());
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    let parsed = announced.iter().map(|text| Digest::parse(text));
    parsed
        .collect::<Result<_, _>>()
        .map_err(|e| Error::caused(ErrorKind::Invalid, "image has a layer digest that is not supported", e))
}

/// Stores layers from the lowest to the topmost. What the store has already is not read again.
pub(super) fn store_layers(
    target: &Target<'_>,
    content: &dyn Content,
    sources: Vec<(String, Expected)>,
    diff_ids: &[Digest],
) -> Result<Vec<StoredLayer>> {
    let mut total = 0;
    for (name, _) in &sources {
        total += content.open(name)?.1;
    }
    let mut meter = Meter::start(target.progress, Step::Copy, Some(total));
    let mut layers = Vec::with_capacity(sources.len());
    for ((name, expected), diff_id) in sources.into_iter().zip(diff_ids) {
        let (reader, size) = content.open(&name)?;
        // Without a digest of its own a layer may be plain, and then its name is what it decompresses to.
        let known = expected.digest.clone().unwrap_or_else(|| diff_id.clone());
        if target.blobs().has(&known, size) {
            meter.add(size);
            let compression = Compression::Plain;
            layers.push(StoredLayer { digest: known, size, diff_id: Some(diff_id.clone()), compression });
            continue;
        }
        let layer = target.blobs().write_layer(Metered { reader, meter: &mut meter }, &expected)?;
        if let Some(found) = layer.diff_id.as_ref().filter(|found| *found != diff_id) {
            let message = format!(
                "layer {} decompresses to {found} where the image says {diff_id}; the image is damaged",
                layer.digest
            );
            return Err(Error::new(ErrorKind::Mismatch, message));
        }
        layers.push(layer);
    }
    Ok(layers)
}

/// Describes an image that came without a manifest of its own, and stores it.
pub(super) fn store_manifest(
    target: &Target<'_>,
    config: Vec<u8>,
    layers: &[StoredLayer],
) -> Result<(Digest, u64)> {
    let invalid = |e| Error::caused(ErrorKind::Invalid, "cannot describe the image", e);
    let describe = |media_type, size, digest: &Digest| {
        let digest: oci_spec::image::Digest = digest.as_ref().parse().map_err(invalid)?;
        Ok(Descriptor::new(media_type, size, digest))
    };
    let config_digest = target.blobs().write_document(&config)?;
    let layers: Result<Vec<_>> = layers
        .iter()
        .map(|layer| {
            let media_type = match layer.compression {
                Compression::Plain => MediaType::ImageLayer,
                Compression::Gzip => MediaType::ImageLayerGzip,
                Compression::Zstd => MediaType::ImageLayerZstd,
            };
            describe(media_type, layer.size, &layer.digest)
        })
        .collect();
    let manifest = ImageManifestBuilder::default()
        .schema_version(2u32)
        .media_type(MediaType::ImageManifest)
        .config(describe(MediaType::ImageConfig, config.len() as u64, &config_digest)?)
        .layers(layers?)
        .build()
        .map_err(invalid)?;
    let bytes = manifest.to_string().map_err(invalid)?.into_bytes();
    let digest = target.blobs().write_document(&bytes)?;
    debug_assert!(bytes.len() as u64 <= MAX_DOCUMENT);
    Ok((digest, bytes.len() as u64))
}
