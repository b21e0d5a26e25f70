//! What the tests of the store share: a root file system with one of everything, and a way to compare trees.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

pub mod mounted;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FileType, Mode, Timespec, Timestamps, XattrFlags};
use sha2::{Digest, Sha256};

/// Whether a program is installed; if not, says what is skipped.
pub fn installed(program: &str) -> bool {
    let found =
        Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap().status.success()
            || Path::new("/usr/sbin").join(program).exists();
    if !found {
        println!("skipped: {program} is not installed");
    }
    found
}

/// Runs a program that must succeed and returns what it prints.
pub fn run(program: &str, arguments: &[&dyn AsRef<OsStr>]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} failed: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Makes a root file system with one of everything that a tar can carry.
pub fn root_fs(at: &Path) {
    let write = |name: &str, text: &str, mode: u32| {
        let file = at.join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, text).unwrap();
        rustix::fs::chmod(&file, Mode::from_raw_mode(mode)).unwrap();
    };
    write("etc/os-release", "NAME=test\n", 0o644);
    write("etc/shadow", "secret\n", 0o600);
    write("bin/su", "#!/bin/sh\n", 0o755);
    write("usr/share/large", &"0123456789abcdef".repeat(40_000), 0o444);
    write("usr/share/empty", "", 0o644);
    write(&format!("usr/share/{}/{}", "long".repeat(50), "name".repeat(50)), "long", 0o644);
    write("usr/share/späce and \n newline", "odd", 0o644);
    fs::hard_link(at.join("bin/su"), at.join("bin/sudo")).unwrap();
    symlink("bin/su", at.join("link")).unwrap();
    symlink("/nowhere/at/all", at.join("dangling")).unwrap();
    fs::create_dir_all(at.join("var/empty")).unwrap();
    fs::create_dir_all(at.join("tmp")).unwrap();
    fs::create_dir_all(at.join("dev")).unwrap();
    let own = |name: &str, uid, gid| {
        std::os::unix::fs::lchown(at.join(name), Some(uid), Some(gid)).unwrap();
    };
    own("usr/share/large", 1000, 100_000);
    own("link", 12, 34);
    own("var/empty", 70_000, 5);
    for (name, mode) in [("bin/su", 0o4755), ("tmp", 0o1777), ("var/empty", 0o2750)] {
        rustix::fs::chmod(at.join(name), Mode::from_raw_mode(mode)).unwrap();
    }
    let node = |name: &str, kind, device| {
        rustix::fs::mknodat(rustix::fs::CWD, at.join(name), kind, Mode::from_raw_mode(0o620), device)
            .unwrap();
    };
    node("dev/null", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    node("dev/disk", FileType::BlockDevice, rustix::fs::makedev(8, 1));
    node("dev/pipe", FileType::Fifo, 0);
    // cap_net_raw, permitted and effective.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let set = |name: &str, key: &str, value: &[u8]| {
        rustix::fs::lsetxattr(at.join(name), key, value, XattrFlags::empty()).unwrap();
    };
    set("usr/share/large", "security.capability", &capability);
    set("usr/share/empty", "user.note", b"a\nb");
    set("var/empty", "user.kept", b"yes");
    // Times in the past, different everywhere; directories last.
    let mut paths: Vec<PathBuf> = walk(at);
    paths.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    paths.push(at.to_owned());
    for (number, path) in paths.iter().enumerate() {
        let time = Timespec { tv_sec: 1_500_000_000 + number as i64, tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

/// Packs a directory as root file systems are packed.
pub fn pack(directory: &Path, tar: &Path) {
    run(
        "tar",
        &[
            &"--xattrs",
            &"--xattrs-include=*",
            &"--numeric-owner",
            &"--format=posix",
            &"-C",
            &directory,
            &"-cf",
            &tar,
            &".",
        ],
    );
}

/// Everything below a directory, in no order.
pub fn walk(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                left.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found
}

/// How much of a tree is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    Whole,
    /// What squashfs can hold: whole seconds from 1970 to 2106, and no ACLs.
    Squashfs,
}

/// What a tree is, file by file: kind, contents, mode, owner, time, links and attributes.
pub fn snapshot(root: &Path) -> BTreeMap<PathBuf, String> {
    snapshot_view(root, View::Whole)
}

fn snapshot_view(root: &Path, view: View) -> BTreeMap<PathBuf, String> {
    let mut first_name: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
    let mut paths = walk(root);
    paths.push(root.to_owned());
    paths.sort();
    let mut described = BTreeMap::new();
    for path in paths {
        let found = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().to_owned();
        let kind = found.file_type();
        let content = if kind.is_symlink() {
            format!("link to {:?}", fs::read_link(&path).unwrap())
        } else if kind.is_dir() {
            "directory".to_owned()
        } else if kind.is_char_device() || kind.is_block_device() {
            format!("{kind:?} {}", found.rdev())
        } else if kind.is_fifo() {
            "pipe".to_owned()
        } else {
            let first = first_name.entry((found.dev(), found.ino())).or_insert_with(|| name.clone());
            let digest = Sha256::digest(fs::read(&path).unwrap());
            format!("file {} {digest:02x?} same as {first:?}", found.len())
        };
        let mode = found.permissions().mode() & 0o7777;
        let mut time = (found.mtime(), found.mtime_nsec());
        let owner = (found.uid(), found.gid());
        let mut attributes = xattrs(&path);
        if view == View::Squashfs {
            time = (time.0.clamp(0, u32::MAX.into()), 0);
            attributes.retain(|name, _| !name.starts_with("system."));
            if path == root {
                attributes.clear();
            }
        }
        described.insert(name, format!("{content} {mode:o} {owner:?} {time:?} {attributes:?}"));
    }
    described
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 1 << 16];
    let length = match rustix::fs::llistxattr(path, names.as_mut_slice()) {
        // A squashfs in which no file has any.
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        length => length.unwrap(),
    };
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let name = String::from_utf8(name.to_vec()).unwrap();
            let mut value = vec![0; 1 << 16];
            let length = rustix::fs::lgetxattr(path, name.as_str(), value.as_mut_slice()).unwrap();
            value.truncate(length);
            (name, value)
        })
        .collect()
}

/// Compares two trees and says which files differ.
pub fn assert_same(found: &Path, wanted: &Path) {
    assert_same_view(found, wanted, View::Whole);
}

/// The same for a part of what there is to see.
pub fn assert_same_view(found: &Path, wanted: &Path, view: View) {
    let (found, wanted) = (snapshot_view(found, view), snapshot_view(wanted, view));
    let mut differences = Vec::new();
    for path in found.keys().chain(wanted.keys()) {
        if found.get(path) != wanted.get(path) {
            differences.push(format!(
                "{path:?}\n  is     {:?}\n  wanted {:?}",
                found.get(path),
                wanted.get(path)
            ));
        }
    }
    differences.dedup();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert!(found.len() > 1, "an empty tree proves nothing");
}
