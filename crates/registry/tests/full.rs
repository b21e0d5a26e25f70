//! A disk that fills up in the middle of a pull.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use beta9_image::Store;
use beta9_registry::ErrorKind;
use common::fake::{Fake, honest};
use common::{Fixture, Seen, assert_nothing_left, impatient, pull};
use tempfile::TempDir;

/// A file system of 4 MiB. Dropped, it is gone.
struct Small(TempDir);

impl Small {
    fn mount() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4m", "none"])
            .arg(directory.path())
            .output();
        if mount.is_ok_and(|output| output.status.success()) {
            return Some(Self(directory));
        }
        println!("skipped: this user cannot mount a tmpfs");
        None
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

#[tokio::test]
async fn a_disk_that_is_full_keeps_nothing_and_takes_it_when_there_is_room() {
    let Some(small) = Small::mount() else { return };
    let filler = small.path().join("filler");
    // As large as the layer, from the moment when the layer is asked for.
    let image = Fixture::with_sizes(1, &[1_000, 2_500_000]);
    let (ours, full) = (image.clone(), filler.clone());
    let fake = Fake::start(move |asked| {
        if asked.path.ends_with(&ours.layers[1]) && !full.exists() {
            fs::write(&full, vec![0; 2_500_000]).unwrap();
        }
        honest(&ours, asked)
    })
    .await;
    let store = Store::open(small.path()).unwrap();
    let error = impatient().pull(&store, pull(&fake.name()), Seen::default().watch()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full, "{}", error.chain());
    assert!(error.chain().contains("room"), "{}", error.chain());
    assert_nothing_left(small.path());

    // This time it is known before anything is fetched.
    let before = fake.count(&image.layers[1]);
    let error = impatient().pull(&store, pull(&fake.name()), Seen::default().watch()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full, "{}", error.chain());
    assert_eq!(fake.count(&image.layers[1]), before);
    assert_nothing_left(small.path());

    fs::write(&filler, "").unwrap();
    let pulled = impatient().pull(&store, pull(&fake.name()), Seen::default().watch()).await.unwrap();
    assert_eq!(pulled.digest.to_string(), image.digest());
}
