//! Taking names away, and with the last name of an image its content.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;

use beta9_types::{Digest, ImageReference};

use crate::index;
use crate::lock::Lock;
use crate::{Error, ErrorKind, Image, Result, Store};

impl Store {
    /// Takes a name away from the image that it stands for. The content stays until [`Store::remove_content`].
    pub fn unname(&self, reference: &ImageReference) -> Result<Image> {
        let image = self.get(reference)?;
        match index::remove(self.layout(), &image.reference)? {
            (Some(_), _) => Ok(image),
            (None, _) => Err(Error::new(ErrorKind::NotFound, format!("image {reference} is gone already"))),
        }
    }

    /// Every name of the image with that digest.
    pub fn names(&self, digest: &Digest) -> Result<Vec<ImageReference>> {
        let records = index::read(self.layout())?.into_iter();
        Ok(records.filter(|record| record.manifest == *digest).map(|record| record.reference).collect())
    }

    /// Removes what only this image needed, if it has no name any more: its tree, its block image and blobs that no
    /// other image has. Returns the bytes of the blobs.
    ///
    /// While something is pulled or imported nothing is removed: it could be just what that image has found to be here.
    pub fn remove_content(&self, image: &Image) -> Result<u64> {
        let Some(_alone) = Lock::try_exclusive(&self.layout().lock("content"))? else { return Ok(0) };
        if !self.names(&image.digest)?.is_empty() {
            return Ok(0);
        }
        // A container that is being made of it right now keeps it; a later prune takes it.
        let Some(_unleased) = Lock::try_exclusive(&self.use_lock(&image.digest))? else { return Ok(0) };
        self.discard_made(&image.digest)?;
        // The manifest goes last, so that what is left of an interrupted removal can still be read.
        let layers = image.layers.iter().map(|layer| layer.digest.clone());
        self.remove_blobs(layers.chain([self.config_digest(image)?, image.digest.clone()]).collect())
    }

    /// Removes those of these blobs that no image has. Returns their bytes.
    pub(crate) fn remove_unused(&self, blobs: Vec<Digest>) -> Result<u64> {
        match Lock::try_exclusive(&self.layout().lock("content"))? {
            Some(_alone) => self.remove_blobs(blobs),
            None => Ok(0),
        }
    }

    /// The same for whoever holds the lock.
    fn remove_blobs(&self, blobs: Vec<Digest>) -> Result<u64> {
        let mut kept = HashSet::new();
        for record in index::read(self.layout())? {
            let other = self.load(&record)?;
            kept.extend(other.layers.iter().map(|layer| layer.digest.clone()));
            kept.insert(self.config_digest(&other)?);
            kept.insert(other.digest);
        }
        let mut freed = 0;
        for digest in blobs.into_iter().filter(|digest| !kept.contains(digest)) {
            freed += remove_file(&self.layout().blob(&digest))?;
        }
        Ok(freed)
    }

    fn config_digest(&self, image: &Image) -> Result<Digest> {
        Ok(Digest::from_sha256(<sha2::Sha256 as sha2::Digest>::digest(self.documents(image)?.config).into()))
    }
}

/// Returns the bytes that went; none when there was no such file.
fn remove_file(path: &Path) -> Result<u64> {
    let size = fs::symlink_metadata(path).map_or(0, |found| found.len());
    match fs::remove_file(path) {
        Ok(()) => Ok(size),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(Error::io("remove", path, error)),
    }
}
