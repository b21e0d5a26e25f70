//! How much of the disk a container takes.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use beta9_supervisor::{ContainerDirectory, RootfsSource};

use crate::api;
use crate::error::Result;
use crate::service::lifecycle::Described;
use crate::service::{Worker, blocking};

/// Files of one container that are looked at; what is beyond is not counted.
const MAX_FILES: usize = 1_000_000;

impl Worker {
    /// A container as the API tells of it, with its sizes where they are wanted.
    pub(super) async fn told(&self, described: Described, sizes: bool) -> Result<api::Container> {
        if !sizes {
            return Ok(described.into());
        }
        let directory = ContainerDirectory::of(&self.root, &described.record.id);
        let (store, image) = (Arc::clone(&self.store), described.record.image_digest.to_string());
        let written = match &described.record.rootfs {
            RootfsSource::Tree(_) => directory.path().join("upper"),
            RootfsSource::Block { .. } => directory.path().join("scratch.ext4"),
        };
        let found = blocking(move || (allocated(&written), store.find(&image).ok().map(|image| image.size)));
        let (written, image) = found.await?;
        Ok(api::Container { written_bytes: Some(written), image_bytes: image, ..described.into() })
    }
}

/// Bytes on the disk of what is at `path` and below it. Links are not followed, and a file with several names counts once.
fn allocated(path: &Path) -> u64 {
    let mut waiting = vec![path.to_owned()];
    let (mut seen, mut bytes, mut files) = (HashSet::new(), 0u64, 0);
    while let Some(path) = waiting.pop() {
        // It may go away while it is looked at.
        let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
        files += 1;
        if files > MAX_FILES {
            break;
        }
        if meta.nlink() < 2 || meta.is_dir() || seen.insert((meta.dev(), meta.ino())) {
            bytes += meta.blocks() * 512;
        }
        if meta.is_dir() {
            waiting
                .extend(std::fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_counted_once_and_links_are_not_followed() {
        let place = tempfile::tempdir().unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(outside.path(), vec![1; 1 << 20]).unwrap();
        std::fs::create_dir(place.path().join("d")).unwrap();
        std::fs::write(place.path().join("d/f"), vec![1; 256 << 10]).unwrap();
        std::fs::hard_link(place.path().join("d/f"), place.path().join("again")).unwrap();
        std::os::unix::fs::symlink(outside.path(), place.path().join("link")).unwrap();
        let bytes = allocated(place.path());
        assert!((256 << 10..512 << 10).contains(&bytes), "{bytes} bytes");
        assert_eq!(allocated(&place.path().join("none")), 0);
    }
}
