//! What is said on a supervisor's socket, by either side.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| beta9_supervisor::fuzzing::frames(bytes));
