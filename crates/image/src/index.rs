//! Which names the store knows: an OCI image index, so that the store is an OCI image layout.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use beta9_types::{Digest, ImageReference};
use oci_spec::image::{Descriptor, ImageIndex, MediaType};

use crate::blobs::parse_document;
use crate::layout::Layout;
use crate::lock::Lock;
use crate::{Error, Result};

/// The name of an image (OCI image spec, annotations.md).
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// When an image got its name here, in seconds since 1970.
const IMPORTED: &str = "dev.beta9.image.imported";

/// One name and what it stands for.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) reference: ImageReference,
    pub(crate) manifest: Digest,
    pub(crate) manifest_size: u64,
    pub(crate) imported: SystemTime,
}

/// The time as the index keeps it.
pub(crate) fn now() -> SystemTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// Every name, in alphabetical order.
pub(crate) fn read(layout: &Layout) -> Result<Vec<Record>> {
    let path = layout.index();
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("read", &path, error)),
    };
    let index: ImageIndex = parse_document(&bytes, &format!("the store's index {}", path.display()))?;
    let mut records: Vec<_> = index.manifests().iter().filter_map(record).collect();
    records.sort_by(|a, b| a.reference.cmp(&b.reference));
    Ok(records)
}

/// Lets a name stand for this manifest, whatever it stood for before.
pub(crate) fn set(layout: &Layout, record: Record) -> Result<()> {
    let _writer = Lock::exclusive(&layout.lock("index"))?;
    let mut records = read(layout)?;
    records.retain(|other| other.reference != record.reference);
    records.push(record);
    records.sort_by(|a, b| a.reference.cmp(&b.reference));
    write(layout, &records)
}

/// Takes a name away. Returns what it stood for, and the names that are left.
pub(crate) fn remove(layout: &Layout, reference: &ImageReference) -> Result<(Option<Record>, Vec<Record>)> {
    let _writer = Lock::exclusive(&layout.lock("index"))?;
    let mut records = read(layout)?;
    let Some(place) = records.iter().position(|record| record.reference == *reference) else {
        return Ok((None, records));
    };
    let removed = records.remove(place);
    write(layout, &records)?;
    Ok((Some(removed), records))
}

/// Makes an empty store a valid OCI image layout.
pub(crate) fn initialize(layout: &Layout) -> Result<()> {
    if layout.index().exists() && layout.marker().exists() {
        return Ok(());
    }
    let _writer = Lock::exclusive(&layout.lock("index"))?;
    if !layout.marker().exists() {
        replace(layout, &layout.marker(), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    }
    if layout.index().exists() { Ok(()) } else { write(layout, &[]) }
}

fn record(descriptor: &Descriptor) -> Option<Record> {
    let annotations = descriptor.annotations().as_ref()?;
    let seconds = annotations.get(IMPORTED).and_then(|text| text.parse().ok()).unwrap_or(0);
    Some(Record {
        reference: ImageReference::parse(annotations.get(REF_NAME)?).ok()?,
        manifest: Digest::parse(descriptor.digest().as_ref()).ok()?,
        manifest_size: descriptor.size(),
        imported: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
    })
}

fn write(layout: &Layout, records: &[Record]) -> Result<()> {
    let invalid = |e| Error::caused(crate::ErrorKind::Invalid, "cannot describe the store's images", e);
    let mut manifests = Vec::with_capacity(records.len());
    for record in records {
        let digest: oci_spec::image::Digest = record.manifest.as_ref().parse().map_err(invalid)?;
        let seconds = record.imported.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut descriptor = Descriptor::new(MediaType::ImageManifest, record.manifest_size, digest);
        descriptor.set_annotations(Some(HashMap::from([
            (REF_NAME.to_owned(), record.reference.to_string()),
            (IMPORTED.to_owned(), seconds.to_string()),
        ])));
        manifests.push(descriptor);
    }
    let index = oci_spec::image::ImageIndexBuilder::default()
        .schema_version(2u32)
        .media_type(MediaType::ImageIndex)
        .manifests(manifests)
        .build()
        .map_err(invalid)?;
    replace(layout, &layout.index(), index.to_string_pretty().map_err(invalid)?.as_bytes())
}

/// Replaces a small file in one step.
fn replace(layout: &Layout, path: &std::path::Path, bytes: &[u8]) -> Result<()> {
    let (temporary, mut file) = layout.temporary_file()?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    written.map_err(|e| Error::io("write", temporary.path(), e))?;
    temporary.publish(path)
}
