//! What the tests share: an image made here, a registry of ten lines that does what it is told, and Debian's real one.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

pub mod fake;
pub mod real;

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use beta9_image::Store;
use beta9_registry::{Credentials, Pull, Registries, Secret, Status, Transfer, Waits};
use beta9_types::{Digest, ImageReference, Platform};
use serde_json::json;
use sha2::Digest as _;

pub fn digest(bytes: &[u8]) -> String {
    Digest::from_sha256(sha2::Sha256::digest(bytes).into()).to_string()
}

/// An image as a registry has it.
#[derive(Clone)]
pub struct Fixture {
    pub blobs: HashMap<String, Vec<u8>>,
    pub layers: Vec<String>,
    pub config: String,
    pub manifest: Vec<u8>,
}

impl Fixture {
    /// Three layers: plain, gzip, zstd. The contents depend on `seed` and do not compress.
    pub fn new(seed: u64) -> Self {
        Self::with_sizes(seed, &[5_000, 300_000, 700_000])
    }

    pub fn with_sizes(seed: u64, sizes: &[usize]) -> Self {
        let mut blobs = HashMap::new();
        let (mut layers, mut described, mut diff_ids) = (Vec::new(), Vec::new(), Vec::new());
        for (number, size) in sizes.iter().enumerate() {
            let tar = layer(&format!("file-{number}"), &noise(seed + number as u64, *size));
            diff_ids.push(digest(&tar));
            let (bytes, kind) = match number % 3 {
                0 => (tar, "tar"),
                1 => (gzip(&tar), "tar+gzip"),
                _ => (zstd::encode_all(&tar[..], 1).unwrap(), "tar+zstd"),
            };
            described.push(json!({
                "mediaType": format!("application/vnd.oci.image.layer.v1.{kind}"),
                "digest": digest(&bytes), "size": bytes.len(),
            }));
            layers.push(digest(&bytes));
            blobs.insert(digest(&bytes), bytes);
        }
        let config = json!({
            "architecture": architecture(), "os": "linux", "config": { "Cmd": ["true"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
            "history": [{ "created_by": "test", "created": "2024-01-02T03:04:05Z" }],
        })
        .to_string()
        .into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest(&config), "size": config.len(),
            },
            "layers": described,
        })
        .to_string()
        .into_bytes();
        let name = digest(&config);
        blobs.insert(name.clone(), config);
        Self { blobs, layers, config: name, manifest }
    }

    pub fn digest(&self) -> String {
        digest(&self.manifest)
    }

    /// Puts the image into a store, by way of an OCI layout.
    pub fn import(&self, store: &Store, name: &str) -> beta9_image::Image {
        let directory = tempfile::tempdir().unwrap();
        let blobs = directory.path().join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let write = |bytes: &[u8]| fs::write(blobs.join(&digest(bytes)[7..]), bytes).unwrap();
        self.blobs.values().for_each(|bytes| write(bytes));
        write(&self.manifest);
        let index = json!({ "schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": self.digest(), "size": self.manifest.len(),
        }] });
        fs::write(directory.path().join("index.json"), index.to_string()).unwrap();
        fs::write(directory.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        store.import(directory.path(), Some(&reference(name))).unwrap()
    }
}

pub fn architecture() -> String {
    Platform::here().to_string().split('/').nth(1).unwrap().to_owned()
}

fn layer(name: &str, content: &[u8]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, name, content).unwrap();
    archive.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// xorshift: the same for the same seed, and nothing that compresses.
fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    });
    words.flat_map(u64::to_le_bytes).take(size).collect()
}

pub fn reference(text: &str) -> ImageReference {
    text.parse().unwrap()
}

pub fn password(username: &str, password: &str) -> Credentials {
    Credentials::Password { username: username.to_owned(), password: Secret::new(password) }
}

pub fn pull(name: &str) -> Pull {
    Pull {
        reference: reference(name),
        platform: Platform::here(),
        plain_http: None,
        credentials: None,
        mirror_credentials: Vec::new(),
    }
}

/// Waits that let a test end soon.
pub fn impatient() -> Registries {
    Registries::default().with_waits(Waits {
        connect: Duration::from_secs(5),
        idle: Duration::from_millis(400),
        retry: Duration::from_millis(5),
    })
}

/// A registry that is honest about everything but layers.
pub fn honest_but(
    image: Fixture,
    layer: impl Fn(&fake::Asked) -> hyper::Response<fake::Body> + Send + Sync + 'static,
) -> impl Fn(&fake::Asked) -> hyper::Response<fake::Body> + Send + Sync + 'static {
    move |asked| {
        let is_layer = image.layers.iter().any(|digest| asked.path.ends_with(digest.as_str()));
        if is_layer { layer(asked) } else { fake::honest(&image, asked) }
    }
}

/// What was said about layers.
#[derive(Clone, Default)]
pub struct Seen(Arc<Mutex<Vec<Transfer>>>);

impl Seen {
    pub fn watch(&self) -> Arc<dyn beta9_registry::Watch> {
        let seen = Arc::clone(&self.0);
        Arc::new(move |transfer: Transfer| seen.lock().unwrap().push(transfer))
    }

    /// The last word on each blob.
    pub fn last(&self) -> HashMap<String, Status> {
        let seen = self.0.lock().unwrap();
        seen.iter().map(|transfer| (transfer.digest.to_string(), transfer.status)).collect()
    }
}

/// That a failed pull left nothing: no name, no blob, nothing unfinished.
pub fn assert_nothing_left(root: &Path) {
    let store = Store::open(root).unwrap();
    assert!(store.list().unwrap().is_empty(), "an image has a name");
    for place in ["blobs/sha256", "partial", "tmp", "trees", "block"] {
        let directory = root.join("images").join(place);
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        let left: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.is_empty(), "{place} has {left:?}");
    }
}
