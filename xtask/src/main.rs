//! The project's own chores: `cargo xtask demo`, `test`, `nested`, `guest`.

use std::process::ExitCode;

mod cpio;
mod guest;
mod kernel_modules;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let result = match arguments.next().as_deref() {
        Some("guest") => guest::run(arguments),
        _ => Err("usage: cargo xtask guest".to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}
