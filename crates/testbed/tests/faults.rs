//! Faults: see `beta9_testbed::faults`.

use std::process::ExitCode;

fn main() -> ExitCode {
    beta9_testbed::suite::faults()
}
