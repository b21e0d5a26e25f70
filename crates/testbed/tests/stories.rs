//! Parity stories: see `beta9_testbed::stories`.

use std::process::ExitCode;

fn main() -> ExitCode {
    beta9_testbed::suite::stories()
}
