//! A layer, unpacked and merged: the two must agree, and neither may panic or leave its root.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| beta9_image::fuzzing::layers(bytes));
