//! Which images the containers have, and what becomes of the others.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use beta9_image::{Pruned, Unused};
use beta9_supervisor::{ContainerDirectory, Record};
use beta9_types::{ContainerId, Digest};

use crate::error::Result;
use crate::service::lifecycle::image_error;
use crate::service::{Worker, blocking};

type Failure = Box<dyn std::error::Error + Send + Sync>;

impl Worker {
    /// Removes images that no container has.
    pub(super) async fn prune_images(&self, unused: Unused) -> Result<Pruned> {
        let (store, root) = (self.store.clone(), self.root.clone());
        let pruned =
            blocking(move || store.prune(unused, &|| images_in_use(&root))).await?.map_err(image_error)?;
        self.tell_of_pruned(&pruned);
        Ok(pruned)
    }

    /// Keeps the images within the size that the configuration allows, now that there is more of them. `kept` stays: it
    /// has just come and may not be in use yet. That it does not work is no reason for what came before to fail.
    pub(super) async fn keep_image_limit(&self, kept: Digest) {
        let Some(limit) = self.pools().image_limit() else { return };
        let (store, root) = (self.store.clone(), self.root.clone());
        let in_use = move || {
            let mut used = images_in_use(&root)?;
            used.insert(kept.clone());
            Ok(used)
        };
        let evicted = blocking(move || store.evict(limit, &in_use)).await;
        let error = match evicted {
            Ok(Ok(evicted)) => return self.tell_of_pruned(&evicted),
            Ok(Err(error)) => crate::error::chain(&error),
            Err(error) => crate::error::chain(&error),
        };
        tracing::warn!(limit, error, "images cannot be kept within their limit");
    }

    fn tell_of_pruned(&self, pruned: &Pruned) {
        for image in &pruned.images {
            self.tell_of_image("delete", image.as_ref(), &[]);
        }
    }
}

/// The images of all containers on record. A record that cannot be read is an error: its image must not be lost.
fn images_in_use(root: &Path) -> std::result::Result<HashSet<Digest>, Failure> {
    let mut used = HashSet::new();
    for entry in fs::read_dir(ContainerDirectory::all(root))? {
        let name = entry?.file_name();
        let Some(id) = name.to_str().and_then(|name| ContainerId::parse(name).ok()) else { continue };
        if let Some(record) = Record::read(&ContainerDirectory::of(root, &id))? {
            used.insert(record.image_digest);
        }
    }
    Ok(used)
}
