use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use proptest::prelude::*;

use super::index::{Body, Inode};
use super::*;
use crate::Result;
use crate::apply::tests::{LayerBuilder, layer};
use crate::apply::{Applier, Destination, Limits, Spent, read_layer};

fn read(layers: &[Vec<u8>], destination: &mut dyn Destination) -> Result<()> {
    let limits = Limits { depth: 5, ..Limits::default() };
    let mut spent = Spent::new(limits);
    layers.iter().try_for_each(|layer| read_layer(layer.as_slice(), &limits, &mut spent, destination))
}

/// Unpacks with the applier.
fn unpacked(layers: &[Vec<u8>], root: &Path) -> Result<()> {
    let mut applier = Applier::new(root, Limits { depth: 5, ..Limits::default() })?;
    read(layers, &mut applier)?;
    applier.finish()
}

fn indexed(layers: &[Vec<u8>]) -> Result<Index> {
    let mut indexer = Indexer::new(Limits { depth: 5, ..Limits::default() });
    read(layers, &mut indexer)?;
    Ok(indexer.finish())
}

/// The stream of the layers.
fn merged(layers: &[Vec<u8>], form: Form) -> Vec<u8> {
    let index = indexed(layers).unwrap();
    let mut stream = Vec::new();
    let mut copier = Copier::start(&index, &mut stream, form).unwrap();
    read(layers, &mut copier).unwrap();
    copier.finish().unwrap();
    stream
}

/// Path, what it is, and the first of its names.
type Described = BTreeMap<Vec<u8>, String>;

fn on_disk(root: &Path) -> Described {
    fn walk(root: &Path, path: &Path, found: &mut Described, names: &mut BTreeMap<u64, Vec<u8>>) {
        let mut children: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
        children.sort();
        for child in children {
            let name = child.strip_prefix(root).unwrap().as_os_str().as_bytes().to_owned();
            let stat = fs::symlink_metadata(&child).unwrap();
            let kind = stat.file_type();
            let what = if kind.is_dir() {
                "directory".to_owned()
            } else if kind.is_symlink() {
                format!("link to {:?}", fs::read_link(&child).unwrap().as_os_str().as_bytes())
            } else if kind.is_fifo() {
                "pipe".to_owned()
            } else {
                format!("file of {}", stat.len())
            };
            let owner = (stat.uid(), stat.gid());
            let mode = if kind.is_symlink() { 0 } else { stat.mode() & 0o7777 };
            let first = names.entry(stat.ino()).or_insert_with(|| name.clone());
            let time = stat.mtime();
            found.insert(name, format!("{what} {mode:o} {owner:?} {time} as {first:?}"));
            if kind.is_dir() {
                walk(root, &child, found, names);
            }
        }
    }
    let (mut found, mut names) = (Described::new(), BTreeMap::new());
    walk(root, root, &mut found, &mut names);
    found
}

fn in_memory(index: &Index) -> Described {
    fn walk(
        index: &Index,
        at: Inode,
        path: &[u8],
        found: &mut Described,
        names: &mut BTreeMap<Inode, Vec<u8>>,
    ) {
        for (name, entry) in index.names(at).into_iter().flatten() {
            let path = if path.is_empty() { name.clone() } else { [path, b"/", name].concat() };
            let node = index.node(entry.inode);
            let what = match &node.body {
                Body::Directory(_) => "directory".to_owned(),
                Body::Symlink(target) => format!("link to {target:?}"),
                Body::File { size, .. } => format!("file of {size}"),
                Body::Fifo => "pipe".to_owned(),
                Body::Character(device) | Body::Block(device) => format!("{device:?}"),
            };
            let owner = (node.metadata.uid, node.metadata.gid);
            let mode = if matches!(node.body, Body::Symlink(_)) { 0 } else { node.metadata.mode };
            let first = names.entry(entry.inode).or_insert_with(|| path.clone()).clone();
            let time = node.metadata.modified.tv_sec;
            found.insert(path.clone(), format!("{what} {mode:o} {owner:?} {time} as {first:?}"));
            walk(index, entry.inode, &path, found, names);
        }
    }
    let (mut found, mut names) = (Described::new(), BTreeMap::new());
    walk(index, Inode::ROOT, b"", &mut found, &mut names);
    found
}

/// An entry of a layer that is mostly well behaved.
#[derive(Debug, Clone)]
enum Any {
    File(String, usize),
    Directory(String),
    Pipe(String),
    Symlink(String, String),
    HardLink(String, String),
    Whiteout(String),
    Opaque(String),
}

impl Any {
    fn add(&self, layer: LayerBuilder) -> LayerBuilder {
        let beside = |path: &str, name: &str| match path.rsplit_once('/') {
            Some((directory, last)) => {
                format!("{directory}/.wh.{}", if name.is_empty() { last } else { name })
            }
            None => format!(".wh.{}", if name.is_empty() { path } else { name }),
        };
        match self {
            Self::File(path, size) => layer.file(path, &"x".repeat(*size)),
            Self::Directory(path) => layer.directory(path),
            Self::Pipe(path) => layer.with(LayerBuilder::header(tar::EntryType::Fifo, path), b""),
            Self::Symlink(path, target) => layer.symlink(path, target),
            Self::HardLink(path, target) => layer.hard_link(path, target),
            Self::Whiteout(path) => layer.file(&beside(path, ""), ""),
            Self::Opaque(path) => layer.file(&beside(path, ".wh..opq"), ""),
        }
    }
}

fn any_layers() -> impl Strategy<Value = Vec<Vec<Any>>> {
    let name = prop::sample::select(vec!["a", "b", "c", "d"]);
    let path = prop::collection::vec(name, 1..4).prop_map(|parts| parts.join("/"));
    let lead =
        prop::sample::select(vec!["/", "..", "../b", "/a/b", "a", "../../../c", "./b/.", "missing", "d/.."]);
    let target = prop_oneof![path.clone(), lead.prop_map(str::to_owned)];
    let entry = prop_oneof![
        3 => (path.clone(), 0..20usize).prop_map(|(path, size)| Any::File(path, size)),
        4 => path.clone().prop_map(Any::Directory),
        1 => path.clone().prop_map(Any::Pipe),
        3 => (path.clone(), target).prop_map(|(path, target)| Any::Symlink(path, target)),
        1 => (path.clone(), path.clone()).prop_map(|(path, target)| Any::HardLink(path, target)),
        3 => path.clone().prop_map(Any::Whiteout),
        2 => path.prop_map(Any::Opaque),
    ];
    prop::collection::vec(prop::collection::vec(entry, 1..7), 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// The simple tree in memory is the model of the applier, and the other way round.
    #[test]
    fn the_index_and_the_tree_are_the_same(image in any_layers()) {
        // What one of the two refuses, the other has to refuse as well; it is left out for the rest of the image.
        let mut layers: Vec<Vec<u8>> = Vec::new();
        let place = tempfile::tempdir().unwrap();
        let unpack = |layers: &[Vec<u8>], name: &str| {
            let root = place.path().join(name);
            fs::create_dir(&root).unwrap();
            unpacked(layers, &root).map(|()| root)
        };
        let mut tries = 0;
        for entries in &image {
            let mut kept: Vec<&Any> = Vec::new();
            for entry in entries {
                let one = kept.iter().chain([&entry]).fold(layer(), |layer, entry| entry.add(layer));
                let tried = [layers.as_slice(), &[one.bytes()]].concat();
                tries += 1;
                let (tree, index) = (unpack(&tried, &format!("try{tries}")), indexed(&tried));
                prop_assert_eq!(tree.is_ok(), index.is_ok(), "{:?}: {:?} {:?}", entry, tree, index.err());
                if tree.is_ok() {
                    kept.push(entry);
                }
            }
            layers.push(kept.into_iter().fold(layer(), |layer, entry| entry.add(layer)).bytes());
        }
        let tree = unpack(&layers, "tree").unwrap();
        let wanted = on_disk(&tree);
        prop_assert_eq!(&in_memory(&indexed(&layers).unwrap()), &wanted);
        // The stream is an image of one layer that makes the same tree again.
        let again = unpack(&[merged(&layers, Form::Whole)], "again").unwrap();
        prop_assert_eq!(&on_disk(&again), &wanted);
    }
}

#[test]
fn equal_images_make_equal_streams() {
    let layers = [
        layer().directory("d").file("d/a", "1").file("b", "2").hard_link("z", "b").bytes(),
        layer().file("d/.wh.a", "").file("d/c", "3").symlink("l", "d").bytes(),
    ];
    let stream = merged(&layers, Form::Whole);
    assert_eq!(stream, merged(&layers, Form::Whole));
    let mut archive = tar::Archive::new(stream.as_slice());
    let names: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect();
    assert_eq!(names, ["./", "d/", "b", "d/c", "l", "z"]);
    // Not the whole of a tree of which a part is gone.
    assert!(!stream.windows(3).any(|window| window == b"d/a"));
}

#[test]
fn what_a_form_cannot_hold_is_seen() {
    let fits = |layer: LayerBuilder| indexed(&[layer.bytes()]).unwrap().fits(Form::Squashfs);
    let with = |key: &'static str, value: &'static [u8]| layer().pax(&[(key, value)]).file("a", "");
    assert!(fits(with("SCHILY.xattr.user.x", b"1")));
    assert!(fits(with("mtime", b"1234567890")));
    assert!(!fits(with("mtime", b"-1")));
    assert!(!fits(with("mtime", b"5000000000")));
    assert!(!fits(with("mtime", b"1.5")));
    assert!(!fits(with("SCHILY.xattr.system.posix_acl_access", b"x")));
    assert!(!fits(layer().pax(&[("SCHILY.xattr.user.x", b"1")]).directory("./")));
    assert!(indexed(&[with("mtime", b"-1").bytes()]).unwrap().fits(Form::Whole));
}

#[test]
fn the_files_that_say_who_is_who_are_kept() {
    let index = indexed(&[
        layer().file("etc/passwd", "old").file("etc/group", "g").file("etc/passwd", "new").bytes(),
        layer().file("usr/passwd", "other").bytes(),
    ])
    .unwrap();
    assert_eq!(index.accounts().unwrap(), [("etc/passwd", &b"new"[..]), ("etc/group", b"g")]);
    assert_eq!(indexed(&[layer().bytes()]).unwrap().accounts().unwrap(), []);
    let linked = layer().file("x", "1").symlink("etc/passwd", "/x");
    assert!(indexed(&[linked.bytes()]).unwrap().accounts().is_none());
}
