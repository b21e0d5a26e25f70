//! What a guest sends to the host, and the host to a guest.
#![no_main]

use beta9_wire::{Frame, FromGuest, StreamControl, StreamOpen, ToGuest, decode, read_frame};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut left = bytes;
    // A stream ends, or breaks; it never yields more than it has.
    while let Ok(frame) = read_frame(&mut left) {
        if let Frame::Message(body) = frame {
            let _ = decode::<FromGuest>("a message of the guest", &body);
            let _ = decode::<ToGuest>("a message to the guest", &body);
            let _ = decode::<StreamOpen>("the opening of a stream", &body);
            let _ = decode::<StreamControl>("a message of a stream", &body);
        }
    }
});
