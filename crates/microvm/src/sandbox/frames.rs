//! Frames of the wire protocol on an asynchronous stream.

use std::io;

use beta9_wire::{Error, FrameHeader, FrameKind, HEADER_LEN, MAX_DATA};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// A whole frame from the guest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// An encoded message, for [`beta9_wire::decode`].
    Message(Bytes),
    /// Bytes of a stream.
    Data(Bytes),
}

/// Reads frames. Memory stays below one frame of the largest size and one of data, whatever the guest sends.
pub(super) struct FrameReader<R> {
    from: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from, buffer: BytesMut::new() }
    }

    /// The next frame; `None` when the connection ended between two. Nothing is lost if it is cancelled.
    pub(super) async fn next(&mut self) -> Result<Option<Received>, Error> {
        loop {
            let missing = match self.header()? {
                Some(header) => {
                    let whole = HEADER_LEN + header.length;
                    if self.buffer.len() >= whole {
                        return Ok(Some(self.take(header)));
                    }
                    whole - self.buffer.len()
                }
                None => HEADER_LEN,
            };
            self.buffer.reserve(missing.max(MAX_DATA));
            if self.from.read_buf(&mut self.buffer).await? == 0 {
                let whole = self.buffer.is_empty();
                return if whole {
                    Ok(None)
                } else {
                    Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
                };
            }
        }
    }

    fn header(&self) -> Result<Option<FrameHeader>, Error> {
        self.buffer.first_chunk().map(|bytes| FrameHeader::parse(*bytes)).transpose()
    }

    fn take(&mut self, header: FrameHeader) -> Received {
        let _header = self.buffer.split_to(HEADER_LEN);
        let body = self.buffer.split_to(header.length).freeze();
        match header.kind {
            FrameKind::Message => Received::Message(body),
            FrameKind::Data => Received::Data(body),
        }
    }
}

#[cfg(test)]
mod tests {
    use beta9_wire::{StreamControl, encode, write_data};

    use super::*;

    #[tokio::test]
    async fn frames_come_out_whole_however_they_went_in() {
        let mut bytes = encode(&StreamControl::EndAck).unwrap();
        write_data(&mut bytes, &[7; 1000], &mut Vec::new()).unwrap();
        let (mut write, read) = tokio::io::duplex(3);
        let writer = tokio::spawn(async move {
            tokio::io::AsyncWriteExt::write_all(&mut write, &bytes).await.unwrap();
        });
        let mut frames = FrameReader::new(read);
        assert!(matches!(frames.next().await.unwrap(), Some(Received::Message(_))));
        assert_eq!(frames.next().await.unwrap(), Some(Received::Data(Bytes::from(vec![7; 1000]))));
        assert_eq!(frames.next().await.unwrap(), None);
        writer.await.unwrap();
    }

    #[tokio::test]
    async fn a_frame_cut_short_and_one_too_long_are_errors() {
        assert!(matches!(FrameReader::new(&[1, 0, 0][..]).next().await, Err(Error::Io(_))));
        let header = [0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0];
        assert!(matches!(FrameReader::new(&header[..]).next().await, Err(Error::TooLong { .. })));
    }
}
