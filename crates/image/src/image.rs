use std::time::SystemTime;

use beta9_types::{Digest, ImageReference};
use oci_spec::image::ImageConfiguration;

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The name it goes by here.
    pub reference: ImageReference,
    /// The digest of its manifest: what it is, under any name.
    pub digest: Digest,
    /// How to run it.
    pub config: ImageConfiguration,
    /// Bytes of its configuration and layers as they are stored.
    pub size: u64,
    /// When it was built, in RFC 3339, if its maker said so.
    pub created: Option<String>,
    /// When it got its name here.
    pub imported: SystemTime,
    /// From the lowest to the topmost.
    pub layers: Vec<Layer>,
}

/// An image's own documents, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Documents {
    /// Its manifest.
    pub manifest: Vec<u8>,
    /// Its configuration.
    pub config: Vec<u8>,
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The digest of the blob.
    pub digest: Digest,
    /// The blob's bytes.
    pub size: u64,
    /// The digest of the decompressed layer.
    pub diff_id: Digest,
}
