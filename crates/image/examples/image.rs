//! Tries the image store by hand:
//!
//! ```text
//! image ROOT import FILE [NAME]
//! image ROOT list
//! image ROOT tree|block NAME
//! image ROOT scratch FILE MIB
//! ```

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use beta9_image::{Error, Image, Step, Store};
use beta9_types::ImageReference;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let started = Instant::now();
    match run(&arguments) {
        Ok(true) => {
            eprintln!("{} ms", started.elapsed().as_millis());
            ExitCode::SUCCESS
        }
        Ok(false) => {
            eprintln!(
                "usage: image ROOT import FILE [NAME] | list | tree NAME | block NAME | scratch FILE MIB"
            );
            ExitCode::from(2)
        }
        Err(error) => {
            eprintln!("{}", error.chain());
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Result<bool, Error> {
    let [root, command, arguments @ ..] = arguments else { return Ok(false) };
    let store = Store::open(Path::new(root))?.with_progress(|step: Step, done: u64, total: Option<u64>| {
        if total == Some(done) || done == 0 {
            eprintln!("{} {done}", step.as_str());
        }
    });
    match (*command, arguments) {
        ("import", [file]) => show(&store.import(Path::new(file), None)?),
        ("import", [file, name]) => {
            let Ok(name) = ImageReference::parse(name) else { return Ok(false) };
            show(&store.import(Path::new(file), Some(&name))?);
        }
        ("list", []) => store.list()?.iter().for_each(show),
        ("tree", [name]) => println!("{}", store.tree(&store.find(name)?)?.display()),
        ("block", [name]) => {
            let block = store.block(&store.find(name)?)?;
            println!("{} {}", block.format, block.path.display());
        }
        ("scratch", [file, size]) => {
            let Ok(size) = size.parse::<u64>() else { return Ok(false) };
            store.create_scratch(Path::new(file), size << 20)?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn show(image: &Image) {
    let layers = image.layers.len();
    println!("{} {} {} layers {} bytes", image.reference, image.digest.short(), layers, image.size);
}
