//! The file server as a program of its own, for tests: `share CONTAINER PID (ro|rw PATH)...`, listening on stdin.

use std::process::ExitCode;

fn main() -> ExitCode {
    match beta9_microvm::share::serve(std::env::args_os().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", error.chain());
            ExitCode::FAILURE
        }
    }
}
