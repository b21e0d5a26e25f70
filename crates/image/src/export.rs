//! Writing an image out, for other programs and other machines.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use beta9_types::Digest;
use oci_spec::image::{Descriptor, ImageIndexBuilder, ImageManifest, MediaType};
use serde_json::json;

use crate::blobs::parse_document;
use crate::index::REF_NAME;
use crate::progress::{Meter, Metered, Step};
use crate::source::{FULL_NAME, digest_of};
use crate::{Error, ErrorKind, Image, Result, Store};

/// What an image is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportFormat {
    /// An OCI image layout in one tar.
    OciArchive,
    /// An OCI image layout in a directory.
    OciDirectory,
    /// What `docker load` reads.
    DockerArchive,
}

impl ExportFormat {
    /// Every format with its name.
    pub const ALL: [(Self, &str); 3] = [
        (Self::OciArchive, "oci-archive"),
        (Self::OciDirectory, "oci-dir"),
        (Self::DockerArchive, "docker-archive"),
    ];

    /// The format of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, known)| *known == name).map(|(format, _)| format)
    }
}

impl Store {
    /// Writes the image to `path`, where nothing may be yet. It appears there whole or not at all.
    pub fn export(&self, image: &Image, path: &Path, format: ExportFormat) -> Result<()> {
        if fs::symlink_metadata(path).is_ok() {
            let message = format!("{} exists already; remove it, or choose another path", path.display());
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut files = self.files(image, format)?;
        let total = files.iter().map(|file| file.size).sum();
        let mut meter = Meter::start(self.progress(), Step::Copy, Some(total));
        match format {
            ExportFormat::OciDirectory => {
                let temporary = tempfile::Builder::new()
                    .prefix(".beta9-export-")
                    .permissions(Permissions::from_mode(0o755))
                    .tempdir_in(parent)
                    .map_err(|e| Error::io("create a directory in", parent, e))?;
                for file in &mut files {
                    file.write_below(temporary.path(), &mut meter)?;
                }
                let made = temporary.keep();
                fs::rename(&made, path).map_err(|e| {
                    let _ = fs::remove_dir_all(&made);
                    Error::io("create", path, e)
                })
            }
            ExportFormat::OciArchive | ExportFormat::DockerArchive => {
                let temporary = tempfile::Builder::new()
                    .prefix(".beta9-export-")
                    .permissions(Permissions::from_mode(0o644))
                    .tempfile_in(parent)
                    .map_err(|e| Error::io("create a file in", parent, e))?;
                let failed = |e| Error::io("write", path, e);
                let mut archive = tar::Builder::new(BufWriter::with_capacity(256 << 10, temporary.as_file()));
                for file in &mut files {
                    file.append_to(&mut archive, &mut meter).map_err(failed)?;
                }
                let finished = archive.into_inner().and_then(|mut writer| writer.flush());
                finished.and_then(|()| temporary.as_file().sync_all()).map_err(failed)?;
                temporary.persist_noclobber(path).map_err(|e| Error::io("create", path, e.error))?;
                Ok(())
            }
        }
    }

    fn files(&self, image: &Image, format: ExportFormat) -> Result<Vec<Exported>> {
        let manifest_bytes = self.documents(image)?.manifest;
        let manifest: ImageManifest = parse_document(&manifest_bytes, "the image's manifest")?;
        let config = digest_of(manifest.config())?;
        let mut files = Vec::new();
        if format == ExportFormat::DockerArchive {
            let tags: Vec<_> = image.reference.tag().map(|_| image.reference.as_str()).into_iter().collect();
            let layers: Vec<_> = image.layers.iter().map(|layer| blob_name(&layer.digest)).collect();
            let list = json!([{ "Config": blob_name(&config), "RepoTags": tags, "Layers": layers }]);
            files.push(Exported::document("manifest.json", list.to_string().into_bytes()));
        } else {
            files.push(Exported::document("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
            files.push(Exported::document("index.json", index_of(image, &manifest, manifest_bytes.len())?));
        }
        let mut blobs = vec![config];
        if format != ExportFormat::DockerArchive {
            blobs.push(image.digest.clone());
        }
        blobs.extend(image.layers.iter().map(|layer| layer.digest.clone()));
        let mut seen = std::collections::HashSet::new();
        blobs.retain(|digest| seen.insert(digest.clone()));
        for digest in blobs {
            let file = self.open_blob(&digest)?;
            let path = self.layout().blob(&digest);
            let size = file.metadata().map_err(|e| Error::io("look up", &path, e))?.len();
            files.push(Exported { name: blob_name(&digest), size, content: Box::new(file) });
        }
        Ok(files)
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn index_of(image: &Image, manifest: &ImageManifest, size: usize) -> Result<Vec<u8>> {
    let invalid = |e| Error::caused(ErrorKind::Invalid, "cannot describe the image", e);
    let media_type = manifest.media_type().clone().unwrap_or(MediaType::ImageManifest);
    let digest: oci_spec::image::Digest = image.digest.as_ref().parse().map_err(invalid)?;
    let mut descriptor = Descriptor::new(media_type, size as u64, digest);
    // The tag is what the specification means by a name; the whole name is what people want back.
    let mut names = HashMap::from([(FULL_NAME.to_owned(), image.reference.canonical())]);
    names.extend(image.reference.tag().map(|tag| (REF_NAME.to_owned(), tag.to_owned())));
    descriptor.set_annotations(Some(names));
    let index = ImageIndexBuilder::default()
        .schema_version(2u32)
        .media_type(MediaType::ImageIndex)
        .manifests(vec![descriptor])
        .build()
        .map_err(invalid)?;
    Ok(index.to_string().map_err(invalid)?.into_bytes())
}

/// One file of an exported image.
struct Exported {
    name: String,
    size: u64,
    content: Box<dyn Read>,
}

impl Exported {
    fn document(name: &str, bytes: Vec<u8>) -> Self {
        Self { name: name.to_owned(), size: bytes.len() as u64, content: Box::new(io::Cursor::new(bytes)) }
    }

    fn write_below(&mut self, directory: &Path, meter: &mut Meter<'_>) -> Result<()> {
        let path = directory.join(&self.name);
        let parent = path.parent().unwrap_or(directory);
        let made = DirBuilder::new().recursive(true).mode(0o755).create(parent);
        made.map_err(|e| Error::io("create", parent, e))?;
        let copied = File::create_new(&path).and_then(|mut file| {
            io::copy(&mut Metered { reader: &mut self.content, meter }, &mut file)?;
            file.sync_all()
        });
        copied.map_err(|e| Error::io("write", &path, e))
    }

    fn append_to<W: Write>(
        &mut self,
        archive: &mut tar::Builder<W>,
        meter: &mut Meter<'_>,
    ) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(self.size);
        header.set_mode(0o644);
        header.set_mtime(0);
        let reader = Metered { reader: &mut self.content, meter };
        archive.append_data(&mut header, &self.name, reader)
    }
}
