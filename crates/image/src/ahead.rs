//! Layers are decompressed and digested on threads of their own, a little ahead of whoever reads them.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use beta9_types::Digest;

use crate::blobs::{Blobs, Digesting};
use crate::compression::decompressed;
use crate::image::Layer;
use crate::progress::Meter;
use crate::{Error, ErrorKind, Result};

/// How much is handed over at once.
const CHUNK: usize = 256 << 10;

/// Chunks that wait to be read, per layer.
const CHUNKS: usize = 16;

/// Reads layers one after the other, each decompressed, and checks each against what the image says of it. The layer
/// after the one that is read is decompressed already.
pub(crate) fn read_layers(
    blobs: &Blobs<'_>,
    layers: &[Layer],
    meter: &mut Meter<'_>,
    mut each: impl FnMut(usize, &mut dyn Read) -> Result<()>,
) -> Result<()> {
    let ratio = blobs.limits.ratio;
    std::thread::scope(|scope| {
        let start = |layer: &Layer| Ok(Ahead::start(scope, blobs.open(&layer.digest)?, ratio));
        let mut next = layers.first().map(start).transpose()?;
        for (number, layer) in layers.iter().enumerate() {
            let Some(mut ahead) = next.take() else { break };
            next = layers.get(number + 1).map(start).transpose()?;
            each(number, &mut Metered { ahead: &mut ahead, meter })?;
            ahead.verify(layer)?;
        }
        Ok(())
    })
}

/// A layer on its way.
struct Ahead<'s> {
    chunks: Receiver<io::Result<Chunk>>,
    /// Chunks that were read go back to be filled again.
    empty: SyncSender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    thread: ScopedJoinHandle<'s, Option<Digest>>,
}

struct Chunk {
    bytes: Vec<u8>,
    /// Compressed bytes taken since the chunk before.
    taken: u64,
}

impl<'s> Ahead<'s> {
    fn start<'e>(scope: &'s Scope<'s, 'e>, blob: File, ratio: u64) -> Self {
        let (filled, chunks) = sync_channel(CHUNKS);
        // Room for every chunk there is, so that giving one back never waits.
        let (empty, recycled) = sync_channel(CHUNKS + 2);
        let thread = scope.spawn(move || match fill(blob, ratio, &filled, &recycled) {
            Ok(digest) => Some(digest),
            Err(error) => {
                // Nobody listens when the reader has failed already.
                let _ = filled.send(Err(error));
                None
            }
        });
        Self { chunks, empty, current: Vec::new(), at: 0, thread }
    }

    /// Checks that the layer, which was read to its end, is what the image says.
    fn verify(self, layer: &Layer) -> Result<()> {
        drop(self.chunks);
        let found = match self.thread.join() {
            Ok(Some(found)) if found == layer.diff_id => return Ok(()),
            Ok(found) => found.map_or_else(|| "something unreadable".to_owned(), |found| found.to_string()),
            Err(panic) => std::panic::resume_unwind(panic),
        };
        let message = format!(
            "layer {} decompresses to {found} where the image says {}; import the image again",
            layer.digest, layer.diff_id
        );
        Err(Error::new(ErrorKind::Mismatch, message))
    }
}

/// The thread's work. It ends early when nobody reads any more.
fn fill(
    blob: File,
    ratio: u64,
    filled: &SyncSender<io::Result<Chunk>>,
    recycled: &Receiver<Vec<u8>>,
) -> io::Result<Digest> {
    let taken = Rc::<Cell<u64>>::default();
    let blob = Taken { reader: blob, taken: Rc::clone(&taken) };
    let mut plain = Digesting::new(decompressed(BufReader::with_capacity(CHUNK, blob), ratio)?);
    let mut told = 0;
    loop {
        let mut bytes = recycled.try_recv().unwrap_or_default();
        bytes.resize(CHUNK, 0);
        let mut length = 0;
        while length < bytes.len() {
            match plain.read(&mut bytes[length..]) {
                Ok(0) => break,
                Ok(count) => length += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let is_last = length < bytes.len();
        bytes.truncate(length);
        let chunk = Chunk { bytes, taken: taken.get() - told };
        told = taken.get();
        if filled.send(Ok(chunk)).is_err() || is_last {
            return Ok(plain.finish());
        }
    }
}

/// Counts what is read of a blob.
struct Taken {
    reader: File,
    taken: Rc<Cell<u64>>,
}

impl Read for Taken {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.taken.set(self.taken.get() + count as u64);
        Ok(count)
    }
}

/// A layer that reports how far it is.
struct Metered<'a, 's, 'p> {
    ahead: &'a mut Ahead<'s>,
    meter: &'a mut Meter<'p>,
}

impl Read for Metered<'_, '_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Self { ahead, meter } = self;
        while ahead.at == ahead.current.len() {
            let Ok(chunk) = ahead.chunks.recv() else { return Ok(0) };
            let Chunk { bytes, taken } = chunk?;
            meter.add(taken);
            let read = std::mem::replace(&mut ahead.current, bytes);
            ahead.at = 0;
            if read.capacity() > 0 {
                let _ = ahead.empty.try_send(read);
            }
        }
        let count = buffer.len().min(ahead.current.len() - ahead.at);
        buffer[..count].copy_from_slice(&ahead.current[ahead.at..ahead.at + count]);
        ahead.at += count;
        Ok(count)
    }
}
