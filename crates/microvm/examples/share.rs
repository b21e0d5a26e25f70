//! The program's hidden subcommands as a program of their own, for tests: `share CONTAINER PID (ro|rw PATH)...`, listening
//! on stdin, and `share confine CONFINEMENT`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).peekable();
    let outcome = if arguments.next_if(|first| first == "confine").is_some() {
        beta9_microvm::confine(arguments).map(|never| match never {})
    } else {
        beta9_microvm::share::serve(arguments)
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", error.chain());
            ExitCode::FAILURE
        }
    }
}
