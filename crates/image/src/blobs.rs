//! Content by digest: written once, verified while it is written, never changed.

use std::fs::{self, File, Permissions};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use beta9_types::Digest;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use crate::compression::{Compression, decompressed};
use crate::layout::Layout;
use crate::{Error, ErrorKind, Result};

/// Largest JSON document that is read into memory: registries refuse manifests over 4 MiB.
pub(crate) const MAX_DOCUMENT: u64 = 8 << 20;

/// What is known about a blob before it is read. What is known must turn out to be true.
#[derive(Debug, Clone, Default)]
pub(crate) struct Expected {
    pub(crate) digest: Option<Digest>,
    pub(crate) size: Option<u64>,
}

/// A layer as it was stored.
#[derive(Debug)]
pub(crate) struct StoredLayer {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// The digest of the layer when decompressed, where it was found out.
    pub(crate) diff_id: Option<Digest>,
    pub(crate) compression: Compression,
}

/// The `blobs` directory of a store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Blobs<'a> {
    pub(crate) layout: &'a Layout,
    /// The most that a layer may decompress to, and how many times its size.
    pub(crate) limits: crate::Limits,
}

impl Blobs<'_> {
    /// Whether the blob is there with that size.
    pub(crate) fn has(&self, digest: &Digest, size: u64) -> bool {
        fs::metadata(self.layout.blob(digest)).is_ok_and(|found| found.is_file() && found.len() == size)
    }

    /// Opens a blob. Its digest was verified when it was written.
    pub(crate) fn open(&self, digest: &Digest) -> Result<File> {
        let path = self.layout.blob(digest);
        File::open(&path).map_err(|e| Error::io("open the blob", &path, e))
    }

    /// Reads and checks a JSON document.
    pub(crate) fn document(&self, digest: &Digest) -> Result<Vec<u8>> {
        let path = self.layout.blob(digest);
        let bytes = read_document(self.open(digest)?, &path)?;
        let found = Digest::from_sha256(Sha256::digest(&bytes).into());
        if found == *digest { Ok(bytes) } else { Err(changed(&path, &found)) }
    }

    /// Stores a JSON document.
    pub(crate) fn write_document(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::from_sha256(Sha256::digest(bytes).into());
        if !self.has(&digest, bytes.len() as u64) {
            let mut writer = self.writer()?;
            writer.write_all(bytes).map_err(|e| Error::io("write", writer.path(), e))?;
            writer.finish(&Expected::default())?;
        }
        Ok(digest)
    }

    /// Stores a layer. One without an announced digest is decompressed and digested on the way. One with has to have that
    /// digest; what it decompresses to is held against the image's word for it whenever it is read.
    pub(crate) fn write_layer(&self, reader: impl Read, expected: &Expected) -> Result<StoredLayer> {
        let mut writer = self.writer()?;
        let mut tee = BufReader::with_capacity(BUFFER, Tee { reader, writer: &mut writer });
        let broken = |e| Error::stream(ErrorKind::Invalid, "cannot read the layer", e);
        let compression = Compression::detect(&mut tee).map_err(broken)?;
        let diff_id = match (compression, &expected.digest) {
            // What is stored is what is hashed.
            (Compression::Plain, _) | (_, Some(_)) => None,
            _ => Some(
                self.digest_of(decompressed(&mut tee, self.limits.ratio).map_err(broken)?).map_err(broken)?,
            ),
        };
        // Whatever follows the compressed stream belongs to the blob too.
        io::copy(&mut tee, &mut io::sink()).map_err(broken)?;
        let (digest, size) = writer.finish(expected)?;
        let diff_id = if compression == Compression::Plain { Some(digest.clone()) } else { diff_id };
        Ok(StoredLayer { diff_id, digest, size, compression })
    }

    /// The digest of a decompressed layer, which may be a bomb.
    fn digest_of(&self, reader: impl Read) -> io::Result<Digest> {
        let mut reader = Digesting::new(reader.take(self.limits.bytes));
        let mut buffer = vec![0; BUFFER];
        while reader.read(&mut buffer)? > 0 {}
        if reader.reader.limit() == 0 {
            let message = format!("layer decompresses to more than {} bytes", self.limits.bytes);
            return Err(io::Error::other(Error::new(ErrorKind::Limit, message)));
        }
        Ok(reader.finish())
    }

    fn writer(&self) -> Result<BlobWriter<'_>> {
        let (temporary, file) = self.layout.temporary_file()?;
        Ok(BlobWriter { layout: self.layout, temporary, file, hash: Sha256::new(), size: 0 })
    }
}

const BUFFER: usize = 256 << 10;

struct BlobWriter<'a> {
    layout: &'a Layout,
    temporary: crate::layout::Temporary,
    file: File,
    hash: Sha256,
    size: u64,
}

impl BlobWriter<'_> {
    fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Checks what was written and gives it its name.
    fn finish(self, expected: &Expected) -> Result<(Digest, u64)> {
        let digest = Digest::from_sha256(self.hash.finalize().into());
        if let Some(size) = expected.size.filter(|size| *size != self.size) {
            let message = format!("blob {digest} has {} bytes where {size} were announced", self.size);
            return Err(Error::new(ErrorKind::Mismatch, message));
        }
        if let Some(announced) = expected.digest.as_ref().filter(|announced| **announced != digest) {
            let message = format!("content announced as {announced} is {digest}; the image is damaged");
            return Err(Error::new(ErrorKind::Mismatch, message));
        }
        let path = self.temporary.path();
        let sealed = self.file.set_permissions(Permissions::from_mode(0o444));
        sealed.and_then(|()| self.file.sync_all()).map_err(|e| Error::io("write", path, e))?;
        self.temporary.publish(&self.layout.blob(&digest))?;
        Ok((digest, self.size))
    }
}

impl Write for BlobWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A reader whose bytes are stored as they pass.
struct Tee<'w, 'a, R> {
    reader: R,
    writer: &'w mut BlobWriter<'a>,
}

impl<R: Read> Read for Tee<'_, '_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        match self.writer.write_all(&buffer[..count]) {
            Ok(()) => Ok(count),
            Err(error) => Err(io::Error::other(Error::io("write", self.writer.path(), error))),
        }
    }
}

/// A reader that digests what passes.
pub(crate) struct Digesting<R> {
    reader: R,
    hash: Sha256,
}

impl<R: Read> Digesting<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self { reader, hash: Sha256::new() }
    }

    pub(crate) fn finish(self) -> Digest {
        Digest::from_sha256(self.hash.finalize().into())
    }
}

impl<R: Read> Read for Digesting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

/// Reads a document whole, within the cap. `path` is where it comes from, for messages.
pub(crate) fn read_document(reader: impl Read, path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes).map_err(|e| Error::io("read", path, e))?;
    if bytes.len() as u64 > MAX_DOCUMENT {
        let message = format!("{} is larger than {} MiB", path.display(), MAX_DOCUMENT >> 20);
        return Err(Error::new(ErrorKind::Limit, message));
    }
    Ok(bytes)
}

/// Parses a JSON document. `what` names it, for messages.
pub(crate) fn parse_document<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|e| Error::caused(ErrorKind::Invalid, format!("{what} is not valid"), e))
}

fn changed(path: &Path, found: &Digest) -> Error {
    let message = format!(
        "blob {} has changed on disk and is {found} now; remove it and import the image again",
        path.display()
    );
    Error::new(ErrorKind::Mismatch, message)
}
