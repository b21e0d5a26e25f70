//! A directory comes in as the root file system that it is, and no other file of the machine with it.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

mod common;

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use beta9_image::{ErrorKind, Limits, Step, Store};
use common::{assert_same, installed, root_fs, run, snapshot};
use tempfile::TempDir;

/// A file system mounted until the end of a test.
struct Mount(PathBuf);

impl Mount {
    /// `None`, with the reason printed, where it cannot be mounted.
    fn new(program: &str, arguments: &[&dyn AsRef<OsStr>], at: &Path) -> Option<Self> {
        let done = Command::new(program).args(arguments).arg(at).output().unwrap();
        if done.status.success() {
            return Some(Self(at.to_owned()));
        }
        println!("skipped: {program}: {}", String::from_utf8_lossy(&done.stderr).trim());
        None
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(&self.0).status().unwrap();
        assert!(status.success() || std::thread::panicking(), "the test's mount is left behind");
    }
}

fn place() -> (TempDir, PathBuf, Store) {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("My rootfs");
    fs::create_dir(&root).unwrap();
    let store = Store::open(&place.path().join("store")).unwrap();
    (place, root, store)
}

#[test]
fn a_directory_comes_in_whole() {
    let (_place, root, store) = place();
    root_fs(&root);
    let image = store.import(&root, None).unwrap();
    assert_eq!(image.reference.as_str(), "my-rootfs:latest");
    assert_same(&store.tree(&image).unwrap(), &root);
    // A copy has other inodes, and its directories another order; it is the same image nevertheless.
    let copy = root.with_extension("copy");
    run("cp", &[&"--archive", &root, &copy]);
    assert_eq!(store.import(&copy, None).unwrap().digest, image.digest);
}

#[test]
fn what_a_fuse_program_shows_comes_in_whole() {
    if !["mksquashfs", "squashfuse"].into_iter().all(installed) {
        return;
    }
    if !Path::new("/dev/fuse").exists() {
        println!("skipped: there is no /dev/fuse");
        return;
    }
    let (place, root, store) = place();
    root_fs(&root);
    let (packed, mounted) = (place.path().join("squashfs"), place.path().join("mounted"));
    run("mksquashfs", &[&root, &packed, &"-quiet", &"-no-progress"]);
    fs::create_dir(&mounted).unwrap();
    let Some(_mount) = Mount::new("squashfuse", &[&packed], &mounted) else { return };
    let image = store.import(&mounted, None).unwrap();
    assert_same(&store.tree(&image).unwrap(), &mounted);
}

#[test]
fn links_lead_nowhere_sockets_are_left_out_and_mounts_are_empty() {
    let (place, root, store) = place();
    let outside = place.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    symlink(&outside, root.join("link")).unwrap();
    fs::create_dir(root.join("mounted")).unwrap();
    fs::write(root.join("mounted/below"), "below").unwrap();
    let wanted = {
        let _socket = UnixListener::bind(root.join("socket")).unwrap();
        let Some(_mount) = Mount::new("mount", &[&"-t", &"tmpfs", &"none"], &root.join("mounted")) else {
            return;
        };
        fs::write(root.join("mounted/other"), "other").unwrap();
        let tree = store.tree(&store.import(&root, None).unwrap()).unwrap();
        snapshot(&tree).into_keys().collect::<Vec<_>>()
    };
    assert_eq!(wanted, ["", "link", "mounted"].map(PathBuf::from));
}

#[test]
fn a_file_that_changes_while_it_is_read_is_an_error() {
    let (_place, root, store) = place();
    let file = root.join("file");
    fs::write(&file, vec![7; 4 << 20]).unwrap();
    for change in ["longer", "shorter", "other"] {
        let (path, left) = (file.clone(), Mutex::new(Some(change)));
        let store = store.clone().with_progress(move |_: Step, done, _: Option<u64>| {
            // The file is being read now.
            let Some(change) = (done > 1 << 20).then(|| left.lock().unwrap().take()).flatten() else {
                return;
            };
            let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
            match change {
                "longer" => file.write_all(b"more").unwrap(),
                "shorter" => file.set_len(3 << 20).unwrap(),
                _ => file.set_modified(std::time::UNIX_EPOCH).unwrap(),
            }
        });
        let error = store.import(&root, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy, "{change}: {}", error.chain());
        assert!(
            error.chain().contains("file\": it changed while it was read"),
            "{change}: {}",
            error.chain()
        );
        assert_eq!(fs::read_dir(store.directory().join("tmp")).unwrap().count(), 0);
    }
    store.import(&root, None).unwrap();
}

#[test]
fn what_an_image_cannot_have_is_refused() {
    let (place, root, store) = place();
    let refused = |store: &Store, path: &Path, kind: ErrorKind, words: &str| {
        let error = store.import(path, None).unwrap_err();
        assert_eq!(error.kind(), kind, "{}", error.chain());
        assert!(error.chain().contains(words), "{}", error.chain());
    };
    fs::write(root.join(".wh.file"), "").unwrap();
    refused(&store, &root, ErrorKind::Unsupported, "means a removal");
    fs::remove_file(root.join(".wh.file")).unwrap();
    fs::write(root.join("oci-layout"), "{}").unwrap();
    refused(&store, &root, ErrorKind::Invalid, "it has no index.json");
    fs::remove_file(root.join("oci-layout")).unwrap();
    refused(&store, place.path(), ErrorKind::Unsupported, "the image store itself");

    let limited = |limits: Limits| store.clone().with_limits(limits);
    fs::create_dir_all(root.join("a/b/c/d")).unwrap();
    refused(&limited(Limits { depth: 3, ..Limits::default() }), &root, ErrorKind::Limit, "deeper than 3");
    refused(
        &limited(Limits { entries: 3, ..Limits::default() }),
        &root,
        ErrorKind::Limit,
        "more than 3 entries",
    );
    refused(
        &limited(Limits { names_bytes: 8, ..Limits::default() }),
        &root,
        ErrorKind::Limit,
        "bytes of names",
    );
    fs::File::create(root.join("sparse")).unwrap().set_len(1 << 40).unwrap();
    refused(&store, &root, ErrorKind::Limit, "unpacks to more than");
}
