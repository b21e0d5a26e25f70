//! What the fuzz targets call: only there is it compiled.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use oci_spec::image::{ImageConfiguration, ImageIndex, ImageManifest};

use crate::apply::{Applier, Limits, Spent, read_layer};
use crate::blobs::parse_document;
use crate::merge::{Copier, Form, Indexer};
use crate::{ErrorKind, Result, source};

const BLOCK: usize = 512;

/// Unpacks up to four layers, merges them, and unpacks what that made; the layers follow each other at blocks that say
/// `next`.
///
/// # Panics
/// If the two disagree whether the layers are an image.
pub fn layers(bytes: &[u8]) {
    let limits = Limits { entries: 200, bytes: 1 << 22, depth: 8, path_bytes: 600, ..Limits::default() };
    let layers: Vec<_> = split(bytes);
    let place = Place::new();
    let unpacked = unpack(&layers, &limits, &place.0.join("tree"));
    let mut indexer = Indexer::new(limits);
    let mut spent = Spent::new(limits);
    let read =
        layers.iter().try_for_each(|layer| read_layer(layer.as_slice(), &limits, &mut spent, &mut indexer));
    match (&unpacked, &read) {
        // What the kernel or the file system does not want is no fault of the layer's.
        (Err(error), _) if error.kind() == ErrorKind::Io => return,
        _ => assert_eq!(unpacked.is_ok(), read.is_ok(), "{unpacked:?} and {read:?}"),
    }
    if read.is_err() {
        return;
    }
    let index = indexer.finish();
    let mut stream = Vec::new();
    let mut spent = Spent::new(limits);
    let copied = Copier::start(&index, &mut stream, Form::Whole).and_then(|mut copier| {
        layers.iter().try_for_each(|layer| read_layer(layer.as_slice(), &limits, &mut spent, &mut copier))?;
        copier.finish()
    });
    copied.expect("layers that were indexed cannot be copied");
    let wide = Limits { entries: 100_000, bytes: 1 << 26, ..limits };
    match unpack(&[stream], &wide, &place.0.join("again")) {
        Err(error) if error.kind() == ErrorKind::Io => {}
        again => again.expect("what was merged cannot be unpacked"),
    }
}

fn unpack(layers: &[Vec<u8>], limits: &Limits, root: &PathBuf) -> Result<()> {
    DirBuilder::new().mode(0o700).create(root).map_err(|e| crate::Error::io("create", root, e))?;
    let mut applier = Applier::new(root, *limits)?;
    let mut spent = Spent::new(*limits);
    layers.iter().try_for_each(|layer| read_layer(layer.as_slice(), limits, &mut spent, &mut applier))?;
    applier.finish()
}

/// Layers with correct checksums: a fuzzer does not guess them.
fn split(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut layers = vec![Vec::new()];
    for block in bytes.chunks(BLOCK) {
        if block.starts_with(b"next") && layers.len() < 4 {
            layers.push(Vec::new());
            continue;
        }
        let mut block = block.to_vec();
        if block.len() == BLOCK && block.iter().any(|byte| *byte != 0) {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        if let Some(layer) = layers.last_mut() {
            layer.extend_from_slice(&block);
        }
    }
    layers
}

/// A directory for one run, in memory where there is such a place.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        let base = ["/dev/shm", "/tmp"].into_iter().find(|path| std::path::Path::new(path).is_dir());
        let path = PathBuf::from(base.unwrap_or(".")).join(format!("beta9-fuzz-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        DirBuilder::new().mode(0o700).create(&path).expect("cannot make a directory to unpack to");
        Self(path)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Reads a document as each kind that an image has.
pub fn documents(bytes: &[u8]) {
    let _ = source::fuzz_index(bytes);
    if let Ok(index) = parse_document::<ImageIndex>(bytes, "the index") {
        drop(index.to_string());
    }
    if let Ok(manifest) = parse_document::<ImageManifest>(bytes, "the manifest") {
        for layer in manifest.layers().iter().chain([manifest.config()]) {
            let _ = source::check_layer_type(layer.media_type());
            let _ = source::digest_of(layer);
        }
    }
    if let Ok(config) = parse_document::<ImageConfiguration>(bytes, "the configuration") {
        for layers in [0, config.rootfs().diff_ids().len()] {
            let _ = source::diff_ids(&config, layers);
        }
    }
}
