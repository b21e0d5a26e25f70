//! Imports an image into a store and makes a tree, a block image or both of it: what `bench/images.sh` measures.
//!
//! ```text
//! unpack STORE IMAGE [tree] [block]
//! ```

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use beta9_image::{Result, Store};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [store, image, forms @ ..] = arguments.as_slice() else {
        eprintln!("usage: unpack STORE IMAGE [tree] [block]");
        return ExitCode::FAILURE;
    };
    match run(Path::new(store), Path::new(image), forms) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", error.chain());
            ExitCode::FAILURE
        }
    }
}

fn run(store: &Path, image: &Path, forms: &[String]) -> Result<()> {
    let store = Store::open(store)?;
    let begun = Instant::now();
    let image = store.import(image, None)?;
    println!("import {} ms", begun.elapsed().as_millis());
    for form in forms {
        let begun = Instant::now();
        if form == "block" {
            store.block(&image)?;
        } else {
            store.tree(&image)?;
        }
        println!("{form} {} ms", begun.elapsed().as_millis());
    }
    Ok(())
}
