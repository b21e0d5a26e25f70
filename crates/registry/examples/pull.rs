//! Pulls an image into a store and makes its tree: what `bench/images.sh` measures.
//!
//! ```text
//! pull STORE REFERENCE
//! ```

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use beta9_image::Store;
use beta9_registry::{Pull, Registries, Transfer};
use beta9_types::Platform;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [store, reference] = arguments.as_slice() else {
        eprintln!("usage: pull STORE REFERENCE");
        return ExitCode::FAILURE;
    };
    match run(Path::new(store), reference) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(store: &Path, reference: &str) -> Result<(), Box<dyn std::error::Error>> {
    let store = Store::open(store)?;
    let begun = Instant::now();
    let pull = Pull {
        reference: reference.parse()?,
        platform: Platform::here(),
        plain_http: None,
        credentials: None,
        mirror_credentials: Vec::new(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let image = runtime.block_on(Registries::default().pull(&store, pull, Arc::new(|_: Transfer| ())))?;
    println!("pull {} ms", begun.elapsed().as_millis());
    let begun = Instant::now();
    store.tree(&image)?;
    println!("tree {} ms", begun.elapsed().as_millis());
    Ok(())
}
