//! Block images hold what the tree holds, file by file, as a kernel sees it.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use beta9_image::{BlockFormat, ErrorKind, Store, scratch};
use common::mounted::Mounted;
use common::{assert_same, installed, pack, root_fs};
use tempfile::TempDir;

fn imported() -> (TempDir, PathBuf, Store, beta9_image::Image) {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("rootfs");
    fs::create_dir(&root).unwrap();
    root_fs(&root);
    pack(&root, &directory.path().join("tar"));
    let store = Store::open(&directory.path().join("store")).unwrap();
    let image = store.import(&directory.path().join("tar"), None).unwrap();
    (directory, root, store, image)
}

fn holds_the_tree(format: BlockFormat) {
    if !installed(format.program()) {
        return;
    }
    let (_directory, root, store, image) = imported();
    let block = store.clone().with_formats(&[format]).block(&image).unwrap();
    assert_eq!(block.format, format);
    let Some(mounted) = Mounted::mount(&block.path, format.as_str(), "ro") else { return };
    if format == BlockFormat::Ext4 {
        // mke2fs makes one directory that the tree does not have; a read-only mount cannot remove it.
        let found = common::snapshot(mounted.path());
        let wanted = common::snapshot(&root);
        let extra: Vec<_> = found.keys().filter(|path| !wanted.contains_key(*path)).collect();
        assert_eq!(extra, [Path::new("lost+found")]);
        for (path, text) in &wanted {
            // The root's own time is that of the making of `lost+found`.
            if !path.as_os_str().is_empty() {
                assert_eq!(&found[path], text, "{path:?}");
            }
        }
        return;
    }
    assert_same(mounted.path(), &root);
}

#[test]
fn erofs_holds_the_tree() {
    holds_the_tree(BlockFormat::Erofs);
}

#[test]
fn squashfs_holds_the_tree() {
    holds_the_tree(BlockFormat::Squashfs);
}

#[test]
fn ext4_holds_the_tree() {
    holds_the_tree(BlockFormat::Ext4);
}

#[test]
fn no_program_at_all_is_an_error_that_says_what_to_install() {
    let (_directory, _, store, image) = imported();
    let error = store.with_formats(&[]).block(&image).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Tool);
    assert!(error.chain().contains("install erofs-utils"), "{}", error.chain());
}

#[test]
fn a_scratch_disk_is_an_empty_file_system_that_takes_no_space() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    if !installed("mke2fs") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("store");
    let (first, second) = (directory.path().join("first"), directory.path().join("second"));
    let size = (10 << 30) + 5;
    scratch::create(&store, &first, size).unwrap();
    scratch::create(&store, &second, size).unwrap();
    let found = fs::metadata(&second).unwrap();
    assert_eq!(found.len(), (10 << 30) + (1 << 20), "rounded up to whole MiB");
    assert_eq!(found.permissions().mode() & 0o7777, 0o600);
    assert!(found.blocks() * 512 < 16 << 20, "takes {} KiB", found.blocks() / 2);
    common::run("e2fsck", &[&"-fn", &second]);
    if let Some(mounted) = Mounted::mount(&second, "ext4", "rw") {
        fs::write(mounted.path().join("file"), "written").unwrap();
    }
    // Another VM's disk is another file.
    if let Some(mounted) = Mounted::mount(&first, "ext4", "rw") {
        assert!(!mounted.path().join("file").exists());
        let space = rustix::fs::statvfs(mounted.path()).unwrap();
        // The kernel keeps 4096 blocks for itself; root's five percent would be more.
        assert!(space.f_bfree - space.f_bavail <= 4096, "blocks are held back");
    }

    let error = scratch::create(&store, &first, size).unwrap_err();
    assert!(error.chain().contains("first"), "{}", error.chain());
    for size in [0, 1 << 20, 17 << 40] {
        let error = scratch::create(&store, &directory.path().join("third"), size).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
    assert!(!directory.path().join("third").exists());
}
