//! What the fuzz targets call: only there, and in tests, is it compiled.

use tokio_util::bytes::{Bytes, BytesMut};
use tokio_util::codec::Decoder;

use crate::operate::CopyPiece;
use crate::protocol::{Input, Piece, Reply, Request, Update, codec};

/// Reads what either side of a supervisor's socket may be sent: frames, and in each whatever a frame can be.
///
/// # Panics
/// If what was read is not read again from what it is written as.
pub fn frames(bytes: &[u8]) {
    let mut buffer = BytesMut::from(bytes);
    let mut codec = codec();
    while let Ok(Some(frame)) = codec.decode(&mut buffer) {
        let frame = frame.freeze();
        let request = serde_json::from_slice::<Request>(&frame);
        let _ = (request, serde_json::from_slice::<Reply>(&frame), serde_json::from_slice::<Update>(&frame));
        again(&frame, Input::decode, Input::encode);
        again(&frame, Piece::decode, Piece::encode);
        again(&frame, CopyPiece::decode, CopyPiece::encode);
    }
}

fn again<T: PartialEq + std::fmt::Debug>(
    frame: &Bytes,
    decode: fn(Bytes) -> Option<T>,
    encode: fn(&T) -> Bytes,
) {
    if let Some(read) = decode(frame.clone()) {
        assert_eq!(decode(encode(&read)), Some(read), "written otherwise than it was read");
    }
}
