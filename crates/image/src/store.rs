use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use beta9_sys::reaper::Reaper;
use beta9_types::{Digest, ImageReference};
use oci_spec::image::{ImageConfiguration, ImageManifest};

use crate::ahead::read_layers;
use crate::apply::{Applier, Destination, Limits, Spent, read_layer};
use crate::blobs::{Blobs, parse_document};
use crate::block::{self, BlockFormat, BlockImage, Source};
use crate::image::{Documents, Image, Layer};
use crate::index::{self, Record};
use crate::layout::Layout;
use crate::lock::Lock;
use crate::merge::{Copier, Form, Index, Indexer};
use crate::progress::{Meter, Progress, Step, Unwatched};
use crate::source::{self, Target};
use crate::{Error, ErrorKind, Result, scratch, squashfs, tool};

/// The images of one machine. Cheap to clone; several processes may use one directory at the same time.
///
/// Every method works on the calling thread and may take minutes.
#[derive(Clone)]
pub struct Store {
    layout: Layout,
    limits: Limits,
    formats: Vec<BlockFormat>,
    progress: Arc<dyn Progress>,
    reaper: Option<Reaper>,
}

impl Store {
    /// Opens the store in `<root>/images`, which is made if it is missing, and removes what killed processes left
    /// unfinished.
    pub fn open(root: &Path) -> Result<Self> {
        let layout = Layout::create(root)?;
        layout.sweep()?;
        index::initialize(&layout)?;
        Ok(Self {
            layout,
            limits: Limits::default(),
            formats: BlockFormat::ALL.to_vec(),
            progress: Arc::new(Unwatched),
            reaper: None,
        })
    }

    /// The same store with other limits for what images unpack to.
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// The same store, which tells `progress` how far it is.
    pub fn with_progress(self, progress: impl Progress + 'static) -> Self {
        Self { progress: Arc::new(progress), ..self }
    }

    /// The same store in a process whose children are this reaper's.
    pub fn with_reaper(self, reaper: Reaper) -> Self {
        Self { reaper: Some(reaper), ..self }
    }

    /// The same store, which makes block images in the first of these formats that it can.
    pub fn with_formats(self, formats: &[BlockFormat]) -> Self {
        Self { formats: formats.to_vec(), ..self }
    }

    /// Where the store is: `<root>/images`.
    pub fn directory(&self) -> &Path {
        self.layout.directory()
    }

    /// Copies an image into the store and gives it a name: an OCI image layout (a directory or a tar), a docker
    /// archive, or a root file system, in a tar or as a directory. Which one it is, is told by its content.
    ///
    /// Every blob is held against its digest now. That a compressed layer of an image decompresses to what the
    /// configuration says of it is seen when it is first read, to unpack it or to make a block image: another content is an
    /// error then, and nothing is made of it.
    ///
    /// Without a name the image keeps the one that the archive has for it, or else the file's. An archive of several
    /// images is searched for the name.
    pub fn import(&self, path: &Path, reference: Option<&ImageReference>) -> Result<Image> {
        let started = Instant::now();
        let _lease = Lock::shared(&self.layout.lock("content"))?;
        let target = Target { layout: &self.layout, limits: self.limits, progress: &*self.progress };
        let imported = source::import(&target, path, reference)?;
        let record = Record {
            reference: imported.reference,
            manifest: imported.manifest,
            manifest_size: imported.manifest_size,
            imported: index::now(),
        };
        index::set(&self.layout, record.clone())?;
        let image = self.load(&record)?;
        let elapsed_ms = started.elapsed().as_millis();
        tracing::info!(image = %image.reference, digest = %image.digest, elapsed_ms, "image imported");
        Ok(image)
    }

    /// The image of that name.
    pub fn get(&self, reference: &ImageReference) -> Result<Image> {
        let records = index::read(&self.layout)?;
        let is_named = |record: &&Record| record.reference == *reference;
        let digest = reference.digest();
        // A tag of the same name that stands for this very content serves as well.
        let is_meant = |record: &&Record| {
            digest.as_ref() == Some(&record.manifest) && record.reference.name() == reference.name()
        };
        let found = records.iter().find(is_named).or_else(|| records.iter().find(is_meant));
        self.load(found.ok_or_else(|| self.not_found(reference.as_str()))?)
    }

    /// The image of that name, or the one whose digest starts like that: `sha256:` and hex digits, or at least
    /// six hex digits alone. A name goes before a digest.
    pub fn find(&self, text: &str) -> Result<Image> {
        if let Ok(reference) = ImageReference::parse(text) {
            match self.get(&reference) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                found => return found,
            }
        }
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        if digits.len() < 6 || !digits.bytes().all(|c| c.is_ascii_hexdigit()) {
            return Err(self.not_found(text));
        }
        let digits = digits.to_ascii_lowercase();
        let mut found = index::read(&self.layout)?;
        found.retain(|record| record.manifest.hex().starts_with(&digits));
        let first = found.first().ok_or_else(|| self.not_found(text))?;
        if found.iter().any(|record| record.manifest != first.manifest) {
            let message = format!("several images have a digest that starts with {digits}; give more digits");
            return Err(Error::new(ErrorKind::Ambiguous, message));
        }
        self.load(first)
    }

    /// Every image, in the order of the names. One whose blobs are damaged is left out with a warning.
    pub fn list(&self) -> Result<Vec<Image>> {
        let mut images = Vec::new();
        for record in index::read(&self.layout)? {
            match self.load(&record) {
                Ok(image) => images.push(image),
                Err(error) => {
                    tracing::warn!(image = %record.reference, error = error.chain(), "image is damaged");
                }
            }
        }
        Ok(images)
    }

    /// The image's unpacked tree: made once, shared by all, never to be written to.
    pub fn tree(&self, image: &Image) -> Result<PathBuf> {
        let place = self.layout.tree(&image.digest);
        if place.is_dir() {
            return Ok(place);
        }
        let _builder = Lock::exclusive(&self.layout.lock(&format!("tree-{}", image.digest.hex())))?;
        if place.is_dir() {
            return Ok(place);
        }
        let started = Instant::now();
        let temporary = self.layout.temporary_directory()?;
        let mut applier = Applier::new(temporary.path(), self.limits)?;
        self.read(image, Step::Unpack, &mut applier)?;
        applier.finish()?;
        temporary.publish_tree(&place)?;
        let elapsed_ms = started.elapsed().as_millis();
        tracing::info!(image = %image.reference, digest = %image.digest, elapsed_ms, "image unpacked");
        Ok(place)
    }

    /// The image's root file system as one read-only file: made once, shared by all. It is made of the layers where a
    /// program is installed that can, else of the tree.
    pub fn block(&self, image: &Image) -> Result<BlockImage> {
        if let Some(found) = self.existing_block(image) {
            return Ok(found);
        }
        let _builder = Lock::exclusive(&self.layout.lock(&format!("block-{}", image.digest.hex())))?;
        if let Some(found) = self.existing_block(image) {
            return Ok(found);
        }
        let started = Instant::now();
        let context = |e: Error| {
            let message = format!("cannot make a block image of {}", image.reference);
            Error::caused(e.kind(), message, e)
        };
        let makers = block::makers(&self.formats, self.reaper.as_ref())?;
        let streams = makers.iter().any(|maker| maker.source != Source::Tree);
        let index = if streams { Some(self.index(image)?) } else { None };
        let chosen = index.as_ref().and_then(|index| block::choose(&makers, index)).or(makers.first());
        let Some(maker) = chosen else { return Err(self.not_found(image.reference.as_str())) };
        let temporary = self.layout.temporary_directory()?;
        let output = temporary.path().join("image");
        match (maker.source, &index) {
            (Source::Stream(form), Some(index)) => {
                let command = block::from_stream(maker, &output, &image.digest, index.root());
                let feed = |pipe| self.merge(image, index, form, pipe);
                tool::run_fed(command, self.reaper.as_ref(), feed).map_err(context)?;
                if form == Form::Squashfs {
                    squashfs::set_root_time(&output, index.root().modified).map_err(context)?;
                }
                self.write_accounts(image, index)?;
            }
            _ => {
                let tree = self.tree(image)?;
                let _meter = Meter::start(&*self.progress, Step::Build, None);
                let reaper = self.reaper.as_ref();
                block::from_tree(maker, &tree, &output, &image.digest, reaper).map_err(context)?;
            }
        }
        let (format, program) = (maker.format, maker.program.display());
        let path = self.layout.block(&image.digest, format.as_str());
        temporary.publish_file(&output, &path)?;
        let elapsed_ms = started.elapsed().as_millis();
        tracing::info!(image = %image.reference, digest = %image.digest, %program, elapsed_ms, "block image made");
        Ok(BlockImage { path, format })
    }

    /// A directory that has the image's `etc/passwd` and `etc/group`, if the image has them: all that is needed to look up
    /// a user. It is a part of what [`Store::block`] makes, or else the unpacked tree.
    pub fn accounts(&self, image: &Image) -> Result<PathBuf> {
        for place in [self.layout.tree(&image.digest), self.layout.accounts(&image.digest)] {
            if place.is_dir() {
                return Ok(place);
            }
        }
        self.tree(image)
    }

    fn write_accounts(&self, image: &Image, index: &Index) -> Result<()> {
        let place = self.layout.accounts(&image.digest);
        let Some(accounts) = index.accounts() else { return Ok(()) };
        if place.is_dir() {
            return Ok(());
        }
        let temporary = self.layout.temporary_directory()?;
        let directory = temporary.path().join("etc");
        fs::create_dir(&directory).map_err(|e| Error::io("create", &directory, e))?;
        for (path, contents) in accounts {
            let path = temporary.path().join(path);
            fs::write(&path, contents).map_err(|e| Error::io("write", &path, e))?;
        }
        temporary.publish_tree(&place)
    }

    /// Reads the layers, and keeps what they leave but the contents.
    fn index(&self, image: &Image) -> Result<Index> {
        let mut indexer = Indexer::new(self.limits);
        self.read(image, Step::Read, &mut indexer)?;
        Ok(indexer.finish())
    }

    /// Writes the layers as one stream.
    fn merge(&self, image: &Image, index: &Index, form: Form, to: impl std::io::Write) -> Result<()> {
        let mut copier = Copier::start(index, to, form)?;
        self.read(image, Step::Build, &mut copier)?;
        copier.finish()
    }

    fn read(&self, image: &Image, step: Step, destination: &mut dyn Destination) -> Result<()> {
        let total = image.layers.iter().map(|layer| layer.size).sum();
        let mut meter = Meter::start(&*self.progress, step, Some(total));
        let mut spent = Spent::new(self.limits);
        let read = read_layers(&self.blobs(), &image.layers, &mut meter, |_, layer| {
            read_layer(layer, &self.limits, &mut spent, destination)
        });
        read.map_err(|e| {
            let message = format!("cannot unpack image {}", image.reference);
            Error::caused(e.kind(), message, e)
        })
    }

    fn existing_block(&self, image: &Image) -> Option<BlockImage> {
        self.formats.iter().find_map(|format| {
            let path = self.layout.block(&image.digest, format.as_str());
            path.is_file().then_some(BlockImage { path, format: *format })
        })
    }

    /// Creates the writable disk of one VM: see [`scratch::create`].
    pub fn create_scratch(&self, destination: &Path, size: u64) -> Result<()> {
        scratch::create_in(&self.layout, destination, size, self.reaper.as_ref())
    }

    /// The image's own documents.
    pub fn documents(&self, image: &Image) -> Result<Documents> {
        let manifest = self.blobs().document(&image.digest)?;
        let parsed: ImageManifest = parse_document(&manifest, "the image's manifest")?;
        let config = self.blobs().document(&source::digest_of(parsed.config())?)?;
        Ok(Documents { manifest, config })
    }

    /// A blob of an image, verified when it was stored.
    pub fn open_blob(&self, digest: &Digest) -> Result<File> {
        self.blobs().open(digest)
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn progress(&self) -> &dyn Progress {
        &*self.progress
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    pub(crate) fn blobs(&self) -> Blobs<'_> {
        Blobs { layout: &self.layout, limits: self.limits }
    }

    pub(crate) fn load(&self, record: &Record) -> Result<Image> {
        let bytes = self.blobs().document(&record.manifest)?;
        let manifest: ImageManifest = parse_document(&bytes, "the image's manifest")?;
        let digest = |descriptor: &oci_spec::image::Descriptor| {
            Digest::parse(descriptor.digest().as_ref())
                .map_err(|e| Error::caused(ErrorKind::Invalid, "the image's manifest is not valid", e))
        };
        let bytes = self.blobs().document(&digest(manifest.config())?)?;
        let config: ImageConfiguration = parse_document(&bytes, "the image's configuration")?;
        let diff_ids = source::diff_ids(&config, manifest.layers().len())?;
        let mut layers = Vec::with_capacity(diff_ids.len());
        for (layer, diff_id) in manifest.layers().iter().zip(diff_ids) {
            layers.push(Layer { digest: digest(layer)?, size: layer.size(), diff_id });
        }
        Ok(Image {
            reference: record.reference.clone(),
            digest: record.manifest.clone(),
            size: manifest.config().size() + layers.iter().map(|layer| layer.size).sum::<u64>(),
            created: config.created().clone(),
            imported: record.imported,
            config,
            layers,
        })
    }

    /// The blobs that an image needs: its manifest, its configuration and its layers.
    pub(crate) fn needed_by(&self, manifest: &Digest) -> Result<Vec<Digest>> {
        let bytes = self.blobs().document(manifest)?;
        let parsed: ImageManifest = parse_document(&bytes, "the image's manifest")?;
        let mut needed = vec![manifest.clone(), source::digest_of(parsed.config())?];
        for layer in parsed.layers() {
            needed.push(source::digest_of(layer)?);
        }
        Ok(needed)
    }

    fn not_found(&self, what: &str) -> Error {
        let message = format!(
            "image {what} is not in {}; pull it, or import it with `beta9-worker image import`",
            self.directory().display()
        );
        Error::new(ErrorKind::NotFound, message)
    }
}
