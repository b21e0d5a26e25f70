use std::io::{self, Read, Write};

use serde::{Serialize, de::DeserializeOwned};

/// Bytes of a frame header.
pub const HEADER_LEN: usize = 8;
/// Longest body of any frame: bounds what a peer can make us allocate.
pub const MAX_BODY: usize = 1 << 20;
/// Longest body of a data frame.
pub const MAX_DATA: usize = 64 << 10;

/// What a frame's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// One postcard-encoded message.
    Message,
    /// Bytes of a stream.
    Data,
}

/// A peer broke the protocol, or the transport failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A length over the cap for its kind.
    #[error("frame of {length} bytes is over the limit of {limit}")]
    TooLong {
        /// What the header says.
        length: usize,
        /// What is allowed.
        limit: usize,
    },
    /// A header that no version of the protocol writes.
    #[error("malformed frame header {0:02x?}")]
    BadHeader([u8; HEADER_LEN]),
    /// A body that is not the message expected here, or has bytes after it.
    #[error("malformed {0} message")]
    BadMessage(&'static str),
    /// The transport failed.
    #[error("frame transport")]
    Io(#[from] io::Error),
}

/// A checked frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// What follows.
    pub kind: FrameKind,
    /// How many bytes follow; never over the cap of the kind.
    pub length: usize,
}

impl FrameHeader {
    /// Checks a header from the peer.
    pub fn parse(bytes: [u8; HEADER_LEN]) -> Result<Self, Error> {
        let [a, b, c, d, kind, 0, 0, 0] = bytes else { return Err(Error::BadHeader(bytes)) };
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        let (kind, limit) = match kind {
            0 => (FrameKind::Message, MAX_BODY),
            1 => (FrameKind::Data, MAX_DATA),
            _ => return Err(Error::BadHeader(bytes)),
        };
        if length > limit {
            return Err(Error::TooLong { length, limit });
        }
        Ok(Self { kind, length })
    }

    fn to_bytes(self) -> [u8; HEADER_LEN] {
        // Bodies are checked against MAX_BODY before a header is made, so the length fits.
        let [a, b, c, d] = (self.length as u32).to_le_bytes();
        let kind = match self.kind {
            FrameKind::Message => 0,
            FrameKind::Data => 1,
        };
        [a, b, c, d, kind, 0, 0, 0]
    }
}

/// A whole frame as it was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// An encoded message, for [`decode`].
    Message(Vec<u8>),
    /// Bytes of a stream.
    Data(Vec<u8>),
}

/// A whole message frame, header and body, ready to be written.
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, Error> {
    let bytes =
        postcard::to_extend(message, vec![0; HEADER_LEN]).map_err(|_| Error::BadMessage("outgoing"))?;
    frame(FrameKind::Message, bytes, MAX_BODY)
}

fn frame(kind: FrameKind, mut bytes: Vec<u8>, limit: usize) -> Result<Vec<u8>, Error> {
    let length = bytes.len() - HEADER_LEN;
    if length > limit {
        return Err(Error::TooLong { length, limit });
    }
    bytes[..HEADER_LEN].copy_from_slice(&FrameHeader { kind, length }.to_bytes());
    Ok(bytes)
}

/// Reads one message from a frame body; bytes left over are an error.
pub fn decode<T: DeserializeOwned>(what: &'static str, body: &[u8]) -> Result<T, Error> {
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        _ => Err(Error::BadMessage(what)),
    }
}

/// Reads one frame; blocks until it is whole.
pub fn read_frame(from: &mut impl Read) -> Result<Frame, Error> {
    let mut header = [0; HEADER_LEN];
    from.read_exact(&mut header)?;
    let header = FrameHeader::parse(header)?;
    let mut body = vec![0; header.length];
    from.read_exact(&mut body)?;
    Ok(match header.kind {
        FrameKind::Message => Frame::Message(body),
        FrameKind::Data => Frame::Data(body),
    })
}

/// Writes one message frame in a single write.
pub fn write_message(to: &mut impl Write, message: &impl Serialize) -> Result<(), Error> {
    Ok(to.write_all(&encode(message)?)?)
}

/// Writes one data frame. `scratch` is reused between calls to save an allocation per frame.
pub fn write_data(to: &mut impl Write, data: &[u8], scratch: &mut Vec<u8>) -> Result<(), Error> {
    scratch.clear();
    scratch.resize(HEADER_LEN, 0);
    scratch.extend_from_slice(data);
    let bytes = frame(FrameKind::Data, std::mem::take(scratch), MAX_DATA)?;
    to.write_all(&bytes)?;
    *scratch = bytes;
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{FromGuest, StreamControl};

    #[test]
    fn lengths_over_the_cap_are_refused_before_anything_is_allocated() {
        let mut header = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
        assert!(matches!(FrameHeader::parse(header), Err(Error::TooLong { .. })));
        header = [1, 0, 1, 0, 1, 0, 0, 0];
        assert!(matches!(FrameHeader::parse(header), Err(Error::TooLong { limit: MAX_DATA, .. })));
        header = [0, 0, 0, 0, 0, 0, 0, 1];
        assert!(matches!(FrameHeader::parse(header), Err(Error::BadHeader(_))));
    }

    #[test]
    fn bytes_after_a_message_are_an_error() {
        let mut frame = encode(&StreamControl::EndAck).unwrap();
        frame.push(0);
        assert!(decode::<StreamControl>("stream", &frame[HEADER_LEN..]).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_the_decoder(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read_frame(&mut bytes.as_slice());
            let _ = decode::<FromGuest>("guest", &bytes);
        }

        #[test]
        fn data_survives_a_round_trip(data in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let (mut wire, mut scratch) = (Vec::new(), Vec::new());
            write_data(&mut wire, &data, &mut scratch).unwrap();
            prop_assert_eq!(read_frame(&mut wire.as_slice()).unwrap(), Frame::Data(data));
        }
    }
}
