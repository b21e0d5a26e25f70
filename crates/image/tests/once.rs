//! Trees and block images are made once, whoever asks and whoever dies.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use beta9_image::{ErrorKind, Image, Limits, Step, Store};
use common::{assert_same, installed, pack, root_fs};

/// The test's own name, for the process that it starts and kills.
const KILLED: &str = "a_killed_builder_leaves_nothing_half_made";
/// Where the process to be killed has its store.
const VICTIM: &str = "IMAGE_TEST_VICTIM";

fn imported(directory: &Path) -> (Store, Image) {
    let root = directory.join("rootfs");
    fs::create_dir(&root).unwrap();
    root_fs(&root);
    pack(&root, &directory.join("tar"));
    let store = Store::open(&directory.join("store")).unwrap();
    let image = store.import(&directory.join("tar"), None).unwrap();
    (store, image)
}

fn count(directory: &Path) -> usize {
    fs::read_dir(directory).unwrap().count()
}

#[test]
fn eight_callers_share_one_tree_and_one_block_image() {
    let directory = tempfile::tempdir().unwrap();
    let (store, image) = imported(directory.path());
    let started = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let barrier = Barrier::new(8);
    let results: Vec<_> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..8)
            .map(|_| {
                // A store of its own, as another process would have it.
                let started = Arc::clone(&started);
                let store = Store::open(&directory.path().join("store")).unwrap();
                let store = store.with_progress(move |step: Step, done: u64, _: Option<u64>| match step {
                    Step::Unpack if done == 0 => drop(started[0].fetch_add(1, Ordering::SeqCst)),
                    Step::Build if done == 0 => drop(started[1].fetch_add(1, Ordering::SeqCst)),
                    _ => {}
                });
                let (barrier, image) = (&barrier, &image);
                scope.spawn(move || {
                    barrier.wait();
                    (store.tree(image).unwrap(), store.block(image).unwrap())
                })
            })
            .collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).collect()
    });
    assert_eq!(started[0].load(Ordering::SeqCst), 1, "unpacked more than once");
    assert_eq!(started[1].load(Ordering::SeqCst), 1, "built more than once");
    assert!(results.iter().all(|result| *result == results[0]));
    assert_same(&results[0].0, &directory.path().join("rootfs"));
    assert_eq!(count(&store.directory().join("tmp")), 0);
    let block = fs::metadata(&results[0].1.path).unwrap();
    assert_eq!((block.permissions().mode() & 0o7777, block.uid()), (0o444, 0));
}

#[test]
fn a_killed_builder_leaves_nothing_half_made() {
    if let Some(root) = std::env::var_os(VICTIM) {
        let store = Store::open(Path::new(&root)).unwrap();
        let image = store.list().unwrap().remove(0);
        // Halfway through, and for good: the other process kills this one.
        let store = store.with_progress(|step: Step, done: u64, total: Option<u64>| {
            if step == Step::Unpack && done * 2 > total.unwrap_or_default() {
                println!("halfway");
                std::io::stdout().flush().unwrap();
                std::thread::park();
            }
        });
        store.tree(&image).unwrap();
        unreachable!("the builder was not stopped");
    }
    let directory = tempfile::tempdir().unwrap();
    let (store, image) = imported(directory.path());
    let root = directory.path().join("store");
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", KILLED, "--nocapture", "--test-threads=1"])
        .env(VICTIM, &root)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = std::io::BufReader::new(victim.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("halfway") {
        line.clear();
        assert_ne!(std::io::BufRead::read_line(&mut said, &mut line).unwrap(), 0, "the builder ended early");
    }
    let unfinished = store.directory().join("tmp");
    assert_eq!(count(&unfinished), 1);
    // While it lives, nobody sweeps its work away.
    Store::open(&root).unwrap();
    assert_eq!(count(&unfinished), 1);
    victim.kill().unwrap();
    assert_eq!(victim.wait().unwrap().signal(), Some(9));

    assert_eq!(count(&store.directory().join("trees")), 0);
    let reopened = Store::open(&root).unwrap();
    assert_eq!(count(&unfinished), 0);
    assert_same(&reopened.tree(&image).unwrap(), &directory.path().join("rootfs"));
}

#[test]
fn without_the_capability_a_device_is_named_in_the_error() {
    const NAME: &str = "without_the_capability_a_device_is_named_in_the_error";
    if let Some(root) = std::env::var_os(VICTIM) {
        let store = Store::open(Path::new(&root)).unwrap();
        let error = store.tree(&store.list().unwrap()[0]).unwrap_err();
        println!("refused: {}", error.chain());
        return;
    }
    if !installed("setpriv") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = imported(directory.path());
    let output = Command::new("setpriv")
        .args(["--bounding-set", "-mknod"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env(VICTIM, directory.path().join("store"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let line = said.lines().find(|line| line.starts_with("refused: ")).unwrap_or_else(|| panic!("{said}"));
    assert!(
        line.contains("entry \"dev/") && line.contains("needs root with its usual capabilities"),
        "{line}"
    );
    assert_eq!(count(&store.directory().join("trees")), 0);
}

#[test]
fn a_failed_build_leaves_nothing_and_can_be_repeated() {
    let directory = tempfile::tempdir().unwrap();
    let (store, image) = imported(directory.path());
    let small = store.clone().with_limits(Limits { bytes: 100_000, ..Limits::default() });
    let error = small.block(&image).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit);
    assert!(error.chain().starts_with("cannot unpack image tar:latest: "), "{}", error.chain());
    for name in ["trees", "block", "tmp"] {
        assert_eq!(count(&store.directory().join(name)), 0, "{name}");
    }
    store.tree(&image).unwrap();
}

#[test]
fn a_blob_that_changed_on_disk_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let (store, image) = imported(directory.path());
    let blob = store.directory().join("blobs/sha256").join(image.layers[0].digest.hex());
    assert_eq!(fs::metadata(&blob).unwrap().permissions().mode() & 0o7777, 0o444);
    let mut bytes = fs::read(&blob).unwrap();
    // The contents of a file: the tar stays readable.
    let at = bytes.windows(16).position(|window| window == b"0123456789abcdef").unwrap();
    bytes[at] ^= 1;
    fs::remove_file(&blob).unwrap();
    File::create(&blob).unwrap().write_all(&bytes).unwrap();
    let error = store.tree(&image).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    assert!(error.chain().contains("import the image again"), "{}", error.chain());
    assert_eq!(count(&store.directory().join("trees")), 0);
}

#[test]
fn many_names_are_kept_when_they_come_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let (store, image) = imported(directory.path());
    std::thread::scope(|scope| {
        for number in 0..8 {
            let store = Store::open(&directory.path().join("store")).unwrap();
            let name = beta9_types::ImageReference::parse(&format!("name-{number}")).unwrap();
            let tar = directory.path().join("tar");
            scope.spawn(move || store.import(&tar, Some(&name)).unwrap());
        }
    });
    let images = store.list().unwrap();
    assert_eq!(images.len(), 9);
    assert!(images.iter().all(|found| found.digest == image.digest));
}
