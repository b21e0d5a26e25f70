//! Boots as many VMs in a row as `BETA9_BOOTS` says: a boot that is lost once in a hundred shows nowhere else.

use std::process::ExitCode;

fn main() -> ExitCode {
    beta9_testbed::suite::boots()
}
