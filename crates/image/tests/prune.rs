//! Disk space comes back, and never from under a container.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

mod common;

use std::collections::HashSet;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use beta9_image::{ErrorKind, Image, Store, Unused};
use beta9_types::{Digest, ImageReference};
use common::{pack, root_fs, run};
use tempfile::TempDir;

type Used = Result<HashSet<Digest>, Box<dyn Error + Send + Sync>>;

fn nothing() -> Used {
    Ok(HashSet::new())
}

fn reference(name: &str) -> ImageReference {
    ImageReference::parse(name).unwrap()
}

/// Three images of about 1 MB each, unpacked.
fn three() -> (TempDir, Store, Vec<Image>) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("store")).unwrap();
    let mut images = Vec::new();
    for name in ["one", "two", "three"] {
        let root = directory.path().join(name);
        fs::create_dir(&root).unwrap();
        root_fs(&root);
        fs::write(root.join("mine"), name.repeat(50_000)).unwrap();
        let tar = directory.path().join(format!("{name}.tar"));
        pack(&root, &tar);
        let image = store.import(&tar, Some(&reference(name))).unwrap();
        store.tree(&image).unwrap();
        images.push(image);
    }
    (directory, store, images)
}

fn names(store: &Store) -> Vec<String> {
    store.list().unwrap().into_iter().map(|image| image.reference.to_string()).collect()
}

fn count(store: &Store, directory: &str) -> usize {
    fs::read_dir(store.directory().join(directory)).unwrap().count()
}

/// Sets when an image was used last.
fn used_at(store: &Store, image: &Image, hours_ago: u64) {
    drop(store.claim(&image.reference).unwrap());
    let lock = store.directory().join(format!("locks/use-{}", image.digest.hex()));
    let time = SystemTime::now() + Duration::from_secs(24 * 3600) - Duration::from_secs(3600 * hours_ago);
    fs::File::options().write(true).open(lock).unwrap().set_modified(time).unwrap();
}

#[test]
fn what_has_no_name_goes_and_what_has_one_stays() {
    let (directory, store, images) = three();
    // The name gets another meaning, and so the first image has none.
    store.import(&directory.path().join("two.tar"), Some(&images[0].reference)).unwrap();
    fs::create_dir(store.directory().join("tmp/99999-0")).unwrap();
    let before = store.disk_usage().unwrap();
    let in_use = || Ok(HashSet::from([images[0].digest.clone()]));
    assert_eq!(store.prune(Unused::Dangling, &in_use).unwrap().bytes, 0, "a container has it");
    assert_eq!(count(&store, "trees"), 3);
    let pruned = store.prune(Unused::Dangling, &nothing).unwrap();
    assert!(pruned.images.is_empty());
    assert_eq!(before - store.disk_usage().unwrap(), pruned.bytes);
    assert!(pruned.bytes > 1 << 20, "{}", pruned.bytes);
    assert_eq!((count(&store, "trees"), count(&store, "tmp")), (2, 0));
    assert_eq!(names(&store).len(), 3);
    for image in store.list().unwrap() {
        store.tree(&image).unwrap();
        assert!(image.layers.iter().all(|layer| store.open_blob(&layer.digest).is_ok()));
    }
    assert!(store.open_blob(&images[0].layers[0].digest).is_err());
    assert_eq!(store.prune(Unused::Dangling, &nothing).unwrap().bytes, 0);
}

#[test]
fn all_that_no_container_has_goes() {
    let (_directory, store, images) = three();
    let in_use = || Ok(HashSet::from([images[1].digest.clone()]));
    let (_, lease) = store.claim(&images[2].reference).unwrap();
    let pruned = store.prune(Unused::All, &in_use).unwrap();
    assert_eq!(pruned.images, [images[0].reference.clone()]);
    assert_eq!(count(&store, "trees"), 2);
    drop(lease);
    assert_eq!(store.prune(Unused::All, &in_use).unwrap().images, [images[2].reference.clone()]);
    assert_eq!(store.claim(&images[2].reference).unwrap_err().kind(), ErrorKind::NotFound);
    let pruned = store.prune(Unused::All, &nothing).unwrap();
    assert_eq!(pruned.images, [images[1].reference.clone()]);
    for directory in ["blobs/sha256", "trees", "block", "accounts", "sizes", "tmp"] {
        assert_eq!(count(&store, directory), 0, "{directory}");
    }
    // Who does not know which images are used removes none.
    let (_directory, store, _) = three();
    let lost = || -> Used { Err("a record cannot be read".into()) };
    assert!(store.prune(Unused::All, &lost).unwrap_err().chain().contains("a record cannot be read"));
    assert_eq!((names(&store).len(), count(&store, "trees")), (3, 3));
}

#[test]
fn the_image_that_was_used_longest_ago_is_evicted_first() {
    let (_directory, store, images) = three();
    used_at(&store, &images[0], 2);
    used_at(&store, &images[1], 3);
    used_at(&store, &images[2], 1);
    let all = store.disk_usage().unwrap();
    assert_eq!(store.evict(all, &nothing).unwrap().images, []);
    assert_eq!(store.evict(all - 1, &nothing).unwrap().images, [images[1].reference.clone()]);
    // What a container has stays, however large it is.
    let in_use = || Ok(HashSet::from([images[0].digest.clone()]));
    assert_eq!(store.evict(0, &in_use).unwrap().images, [images[2].reference.clone()]);
    assert_eq!(names(&store), [images[0].reference.to_string()]);
    store.tree(&images[0]).unwrap();
}

#[test]
fn no_start_loses_its_image_to_a_prune() {
    let (directory, store, images) = three();
    // What containers have on record: a start adds its image before it lets the lease go.
    let record: Mutex<HashSet<Digest>> = Mutex::default();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                let in_use = || Ok(record.lock().unwrap().clone());
                match store.prune(Unused::All, &in_use) {
                    Ok(_) => {}
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Busy, "{}", error.chain()),
                }
            }
        });
        let (mut started, mut gone) = (0, 0);
        for _ in 0..25 {
            let tar = directory.path().join("two.tar");
            store.import(&tar, Some(&images[1].reference)).unwrap();
            match store.claim(&images[1].reference) {
                Ok((image, lease)) => {
                    let tree = store.tree(&image).unwrap();
                    record.lock().unwrap().insert(image.digest.clone());
                    drop(lease);
                    assert!(tree.join("mine").exists());
                    std::thread::sleep(Duration::from_millis(2));
                    assert!(tree.join("mine").exists(), "the container lost its root");
                    record.lock().unwrap().clear();
                    started += 1;
                }
                Err(error) => {
                    assert!(matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Io), "{}", error.chain());
                    gone += 1;
                }
            }
        }
        done.store(true, Ordering::SeqCst);
        println!("{started} started, {gone} found their image gone");
        assert!(started > 0);
    });
}

/// A small file system of its own, for a store on it.
struct Small {
    at: TempDir,
}

impl Small {
    fn new(size: &str) -> Option<Self> {
        let at = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(at.path())
            .status()
            .unwrap();
        if !mounted.success() {
            println!("skipped: cannot mount a tmpfs");
        }
        mounted.success().then_some(Self { at })
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        run("umount", &[&self.at.path()]);
    }
}

#[test]
fn a_full_disk_leaves_nothing_half_made() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("rootfs");
    fs::create_dir(&root).unwrap();
    root_fs(&root);
    fs::write(root.join("large"), vec![7; 3 << 20]).unwrap();
    let tar = directory.path().join("tar");
    pack(&root, &tar);
    let Some(small) = Small::new("9m") else { return };
    let store = Store::open(&small.at.path().join("store")).unwrap();
    let fill = |left: u64| {
        let found = rustix::fs::statvfs(small.at.path()).unwrap();
        let bytes = (found.f_bavail * found.f_frsize).saturating_sub(left) as usize;
        fs::write(small.at.path().join("filler"), vec![1; bytes]).unwrap();
    };
    let full = |error: beta9_image::Error| {
        assert_eq!(error.kind(), ErrorKind::Full, "{}", error.chain());
        let chain = error.chain();
        assert!(chain.contains("No space left") && chain.contains("prune"), "{chain}");
    };
    let is_empty = |directory: &str| assert_eq!(count(&store, directory), 0, "{directory}");

    // In the middle of a blob.
    fill(1 << 20);
    full(store.import(&tar, None).unwrap_err());
    for directory in ["blobs/sha256", "tmp"] {
        is_empty(directory);
    }
    assert!(store.list().unwrap().is_empty());
    fs::remove_file(small.at.path().join("filler")).unwrap();
    let image = store.import(&tar, None).unwrap();

    // In the middle of a tree and of a block image.
    fill(1 << 20);
    full(store.tree(&image).unwrap_err());
    let error = store.block(&image).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Full | ErrorKind::Tool), "{}", error.chain());
    for directory in ["trees", "block", "accounts", "tmp"] {
        is_empty(directory);
    }
    fs::remove_file(small.at.path().join("filler")).unwrap();
    common::assert_same(&store.tree(&image).unwrap(), &root);
    assert!(Path::new(&store.directory().join("trees")).exists());
}
