//! Manifests and indexes: what a registry says that an image is.

use beta9_types::{Digest, Platform};
use reqwest::header::{ACCEPT, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::auth::Session;
use crate::{Error, ErrorKind, Result};

/// Largest manifest or index: registries refuse larger ones.
const MAX_MANIFEST: usize = 4 << 20;
/// An index that points to an index that points to … is a trap.
const MAX_INDEXES: usize = 3;
/// Most images of an index.
const MAX_ENTRIES: usize = 4096;

/// In the order of preference.
const MEDIA_TYPES: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// One of the two documents that a name may stand for.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: Option<u32>,
    media_type: Option<String>,
    manifests: Option<Vec<Entry>>,
    layers: Option<serde::de::IgnoredAny>,
}

/// One image of an index.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    media_type: Option<String>,
    digest: String,
    size: u64,
    platform: Option<EntryPlatform>,
}

#[derive(Deserialize)]
struct EntryPlatform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// A manifest as the registry has it, byte for byte.
pub(crate) struct Manifest {
    pub(crate) bytes: Vec<u8>,
}

/// Gets the manifest of a tag or digest, for one platform.
pub(crate) async fn fetch(
    session: &Session,
    repository: &str,
    tag_or_digest: &str,
    platform: &Platform,
) -> Result<Manifest> {
    let mut place = tag_or_digest.to_owned();
    let mut size = None;
    for _ in 0..=MAX_INDEXES {
        let bytes = document(session, repository, &place, size).await?;
        match parse(&bytes)? {
            Parsed::Manifest => return Ok(Manifest { bytes }),
            Parsed::Index(entries) => {
                let chosen = choose(&entries, platform)?;
                place = Digest::parse(&chosen.digest).map_err(unusable)?.to_string();
                size = Some(chosen.size);
            }
        }
    }
    Err(Error::new(ErrorKind::Protocol, format!("its indexes are more than {MAX_INDEXES} deep")))
}

/// The headers of a request for a manifest.
pub(crate) fn accept() -> HeaderMap {
    let mut headers = HeaderMap::new();
    for media_type in MEDIA_TYPES {
        headers.append(ACCEPT, HeaderValue::from_static(media_type));
    }
    headers
}

async fn document(session: &Session, repository: &str, place: &str, size: Option<u64>) -> Result<Vec<u8>> {
    let url = session.transport.url(&format!("{repository}/manifests/{place}"))?;
    let what = format!("manifest {repository}:{place}");
    let response = session.get(Method::GET, url, &accept(), &what).await?;
    if response.status() != StatusCode::OK {
        let message = format!("the registry answered {} for {what}", response.status());
        return Err(Error::new(ErrorKind::Protocol, message));
    }
    let header = response.headers().get(CONTENT_DIGEST).and_then(|value| value.to_str().ok());
    let announced = match (Digest::parse(place), header) {
        (Ok(digest), _) => Some(digest),
        // Other algorithms prove nothing to us, and a tag has no digest of its own.
        (Err(_), header) => header.and_then(|text| Digest::parse(text).ok()),
    };
    let bytes = session.transport.read(response, MAX_MANIFEST, "manifest").await?;
    let found = Digest::from_sha256(Sha256::digest(&bytes).into());
    if let Some(announced) = announced.filter(|announced| *announced != found) {
        let message =
            format!("the registry sent {found} where it announced {announced}; nothing of it is used");
        return Err(Error::new(ErrorKind::Protocol, message));
    }
    if let Some(size) = size.filter(|size| *size != bytes.len() as u64) {
        let message = format!("{what} has {} bytes where {size} were announced", bytes.len());
        return Err(Error::new(ErrorKind::Protocol, message));
    }
    Ok(bytes)
}

/// The digest of what is sent (OCI distribution specification, "Pulling manifests").
pub(crate) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

enum Parsed {
    Manifest,
    Index(Vec<Entry>),
}

fn parse(bytes: &[u8]) -> Result<Parsed> {
    let document: Document = serde_json::from_slice(bytes).map_err(unusable)?;
    match (document.manifests, document.layers) {
        // A document that is both is read one way by us and another way by somebody else (CVE-2021-41190).
        (Some(_), Some(_)) => Err(Error::new(
            ErrorKind::Protocol,
            "the registry's manifest is an index as well; it is not used",
        )),
        (Some(entries), None) if entries.len() <= MAX_ENTRIES => Ok(Parsed::Index(entries)),
        (Some(entries), None) => {
            let message =
                format!("its index has {} images, and {MAX_ENTRIES} are the most accepted", entries.len());
            Err(Error::new(ErrorKind::Limit, message))
        }
        (None, Some(_)) => Ok(Parsed::Manifest),
        (None, None) if document.schema_version == Some(1) => Err(Error::new(
            ErrorKind::Unsupported,
            "it is in docker's oldest format, schema 1; push it again with a newer program",
        )),
        (None, None) => {
            let kind = document.media_type.unwrap_or_default();
            let message = format!("it is no container image ({})", crate::transport::shown(&kind));
            Err(Error::new(ErrorKind::Unsupported, message))
        }
    }
}

fn choose<'e>(entries: &'e [Entry], platform: &Platform) -> Result<&'e Entry> {
    let is_image =
        |entry: &&Entry| entry.media_type.as_deref().is_none_or(|name| MEDIA_TYPES.contains(&name));
    let images: Vec<_> = entries.iter().filter(is_image).collect();
    let fits = |entry: &&&Entry| {
        entry
            .platform
            .as_ref()
            .is_some_and(|found| platform.accepts(&found.os, &found.architecture, found.variant.as_deref()))
    };
    if let Some(found) = images.iter().find(fits) {
        return Ok(found);
    }
    if let [only] = images[..]
        && only.platform.is_none()
    {
        return Ok(only);
    }
    let mut offered: Vec<String> = images
        .iter()
        .filter_map(|entry| entry.platform.as_ref())
        // What attestations are filed under.
        .filter(|found| found.os != "unknown")
        .map(|found| match &found.variant {
            Some(variant) => format!("{}/{}/{variant}", found.os, found.architecture),
            None => format!("{}/{}", found.os, found.architecture),
        })
        .collect();
    offered.sort();
    offered.dedup();
    offered.truncate(12);
    let offered = crate::transport::shown(&offered.join(", "));
    let message = format!("there is no image for {platform}, only for {offered}; choose with --platform");
    Err(Error::new(ErrorKind::Unsupported, message))
}

fn unusable(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::caused(ErrorKind::Protocol, "the registry's manifest is not valid", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(entries: &[(&str, &str, Option<&str>)]) -> Vec<Entry> {
        entries
            .iter()
            .enumerate()
            .map(|(number, (os, architecture, variant))| Entry {
                media_type: None,
                digest: format!("sha256:{number:064x}"),
                size: 1,
                platform: Some(EntryPlatform {
                    os: (*os).to_owned(),
                    architecture: (*architecture).to_owned(),
                    variant: variant.map(str::to_owned),
                }),
            })
            .collect()
    }

    #[test]
    fn the_platform_decides() {
        let entries = index(&[
            ("unknown", "unknown", None),
            ("windows", "amd64", None),
            ("linux", "arm", Some("v6")),
            ("linux", "arm", Some("v7")),
            ("linux", "amd64", None),
        ]);
        let chosen = |text: &str| choose(&entries, &text.parse().unwrap()).map(|entry| entry.digest.clone());
        assert!(chosen("linux/amd64").unwrap().ends_with('4'));
        assert!(chosen("linux/arm/v7").unwrap().ends_with('3'));
        let error = chosen("linux/riscv64").unwrap_err().to_string();
        assert!(error.contains("linux/arm/v6") && !error.contains("unknown"), "{error}");
    }

    #[test]
    fn documents_of_two_kinds_are_neither() {
        assert!(matches!(parse(br#"{"layers":[]}"#), Ok(Parsed::Manifest)));
        assert!(matches!(parse(br#"{"manifests":[]}"#), Ok(Parsed::Index(_))));
        for (bad, kind) in [
            (r#"{"layers":[],"manifests":[]}"#, ErrorKind::Protocol),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#, ErrorKind::Unsupported),
            ("{}", ErrorKind::Unsupported),
            ("<html>", ErrorKind::Protocol),
        ] {
            assert_eq!(parse(bad.as_bytes()).err().unwrap().kind(), kind, "{bad}");
        }
    }
}
