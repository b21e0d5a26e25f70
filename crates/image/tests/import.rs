//! Images as other programs make them come in whole, and damaged ones do not.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use beta9_image::{Error, ErrorKind, Image, Limits, Step, Store};
use beta9_types::ImageReference;
use common::{assert_same, installed, pack, root_fs, run, snapshot};
use tempfile::TempDir;

struct Place {
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn store(&self) -> Store {
        Store::open(&self.path("store")).unwrap()
    }

    fn root_fs(&self) -> PathBuf {
        let root = self.path("rootfs");
        fs::create_dir(&root).unwrap();
        root_fs(&root);
        root
    }

    /// An OCI layout with the image `test:1`: a base, a layer that hides and replaces parts of it, and an empty one.
    fn layout(&self) -> PathBuf {
        let layout = self.path("layout");
        let image = format!("{}:1", layout.display());
        let upper = self.path("upper");
        fs::create_dir_all(upper.join("etc")).unwrap();
        fs::write(upper.join("etc/os-release"), "NAME=newer\n").unwrap();
        fs::write(upper.join("etc/added"), "new\n").unwrap();
        run("umoci", &[&"init", &"--layout", &layout]);
        run("umoci", &[&"new", &"--image", &image]);
        run("umoci", &[&"insert", &"--image", &image, &self.root_fs(), &"/"]);
        run("umoci", &[&"insert", &"--image", &image, &upper.join("etc"), &"/etc"]);
        run("umoci", &[&"insert", &"--image", &image, &"--whiteout", &"/bin/sudo"]);
        run("umoci", &[&"insert", &"--image", &image, &"--opaque", &upper.join("etc"), &"/usr/share"]);
        run("umoci", &[&"config", &"--image", &image, &"--config.cmd", &"/bin/su", &"--config.env", &"A=b"]);
        layout
    }
}

fn reference(text: &str) -> ImageReference {
    ImageReference::parse(text).unwrap()
}

fn import(store: &Store, path: &Path) -> Image {
    store.import(path, None).unwrap_or_else(|e| panic!("{}", e.chain()))
}

fn refused(store: &Store, path: &Path, name: Option<&str>) -> Error {
    let name = name.map(reference);
    store.import(path, name.as_ref()).unwrap_err()
}

#[test]
fn a_root_file_system_comes_in_whole_however_it_is_compressed() {
    let place = Place::new();
    let root = place.root_fs();
    let tar = place.path("My rootfs.tar");
    pack(&root, &tar);
    let store = place.store();
    let plain = import(&store, &tar);
    assert_eq!(plain.reference.as_str(), "my-rootfs:latest");
    assert_eq!(plain.layers.len(), 1);
    assert_eq!(plain.layers[0].digest, plain.layers[0].diff_id);
    assert_same(&store.tree(&plain).unwrap(), &root);

    run("gzip", &[&"-k", &tar]);
    let zipped = import(&store, &place.path("My rootfs.tar.gz"));
    assert_eq!(zipped.layers[0].diff_id, plain.layers[0].diff_id);
    assert_ne!(zipped.layers[0].digest, plain.layers[0].digest);
    assert!(zipped.size < plain.size);
    assert_same(&store.tree(&zipped).unwrap(), &root);

    let zstd = place.path("any.name");
    fs::write(&zstd, zstd::encode_all(File::open(&tar).unwrap(), 1).unwrap()).unwrap();
    let packed = import(&store, &zstd);
    assert_eq!(packed.layers[0].diff_id, plain.layers[0].diff_id);
    assert_same(&store.tree(&packed).unwrap(), &root);

    // The same file under another name is the same image.
    let other = store.import(&tar, Some(&reference("other:1"))).unwrap();
    assert_eq!((other.digest, store.list().unwrap().len()), (plain.digest, 4 - 1));
}

#[test]
fn a_layout_comes_in_as_umoci_unpacks_it() {
    if !installed("umoci") {
        return;
    }
    let place = Place::new();
    let layout = place.layout();
    let store = place.store();
    let image = store.import(&layout, Some(&reference("test:1"))).unwrap();
    assert_eq!(image.layers.len(), 4);
    let config = image.config.config().as_ref().unwrap();
    assert_eq!(config.cmd().as_deref(), Some(&["/bin/su".to_owned()][..]));
    let tree = store.tree(&image).unwrap();
    assert!(!tree.join("bin/sudo").exists() && !tree.join("usr/share/large").exists());
    assert_eq!(fs::read_to_string(tree.join("etc/os-release")).unwrap(), "NAME=newer\n");

    let bundle = place.path("bundle");
    run("umoci", &[&"unpack", &"--image", &format!("{}:1", layout.display()), &bundle]);
    assert_same(&tree, &bundle.join("rootfs"));
}

#[test]
fn archives_of_the_same_image_make_the_same_tree() {
    if !installed("umoci") || !installed("skopeo") {
        return;
    }
    let place = Place::new();
    let layout = place.layout();
    let store = place.store();
    let source = format!("oci:{}:1", layout.display());
    let direct = store.tree(&import(&store, &layout)).unwrap();
    assert_eq!(
        store.list().unwrap()[0].reference.as_str(),
        "layout:1",
        "the tag is the archive's, the name the file's"
    );

    let convert = |kind: &str, file: &str, name: &str| {
        let target = place.path(file);
        let destination = format!("{kind}:{}:{name}", target.display());
        run("skopeo", &[&"--insecure-policy", &"copy", &"--quiet", &source, &destination]);
        target
    };
    let oci = import(&store, &convert("oci-archive", "oci.tar", "example.org/oci/test:2"));
    assert_eq!(oci.reference.as_str(), "example.org/oci/test:2");
    assert_same(&store.tree(&oci).unwrap(), &direct);

    let docker = import(&store, &convert("docker-archive", "docker.tar", "docker.io/library/test:3"));
    assert_eq!(docker.reference.as_str(), "test:3");
    assert_eq!(docker.config.config().as_ref().unwrap().env().as_deref(), Some(&["A=b".to_owned()][..]));
    assert_same(&store.tree(&docker).unwrap(), &direct);
    assert_eq!(store.get(&reference("docker.io/library/test:3")).unwrap().digest, docker.digest);

    // A compressed archive, and one whose names start with `./`.
    run("gzip", &[&"-k", &place.path("oci.tar")]);
    let zipped = import(&store, &place.path("oci.tar.gz"));
    assert_eq!((zipped.digest, zipped.reference), (oci.digest.clone(), oci.reference));
    let packed = place.path("packed");
    run("tar", &[&"-C", &layout, &"-cf", &packed, &"."]);
    assert_eq!(import(&store, &packed).reference.as_str(), "packed:1");

    // Layers as zstd.
    let zstd = place.path("zstd");
    let destination = format!("oci:{}:1", zstd.display());
    let compress: [&dyn AsRef<std::ffi::OsStr>; 7] = [
        &"--insecure-policy",
        &"copy",
        &"--quiet",
        &"--dest-compress-format=zstd",
        &"--dest-compress",
        &source,
        &destination,
    ];
    run("skopeo", &compress);
    let image = import(&store, &zstd);
    assert_ne!(image.digest, oci.digest);
    assert_same(&store.tree(&image).unwrap(), &direct);

    // The store is a layout itself.
    let store_image = format!("oci:{}:test:3", store.directory().display());
    let seen = run("skopeo", &[&"inspect", &"--format", &"{{.Digest}}", &store_image]);
    assert_eq!(seen.trim(), docker.digest.to_string());
}

/// Writes a tar of these files and links.
fn archive(path: &Path, files: &[(&str, &[u8])], links: &[(&str, &str)]) {
    let mut tar = tar::Builder::new(File::create(path).unwrap());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    for (name, target) in links {
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, name, target).unwrap();
    }
    for (name, data) in files {
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(data.len() as u64);
        tar.append_data(&mut header, name, *data).unwrap();
    }
    tar.into_inner().unwrap().flush().unwrap();
}

fn digest(bytes: &[u8]) -> String {
    let hash = <sha2::Sha256 as sha2::Digest>::digest(bytes);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn layer(name: &str, text: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(text.len() as u64);
    tar.append_data(&mut header, name, text.as_bytes()).unwrap();
    tar.into_inner().unwrap()
}

fn config(architecture: &str, layers: &[&[u8]]) -> Vec<u8> {
    let ids: Vec<_> = layers.iter().map(|layer| format!("\"sha256:{}\"", digest(layer))).collect();
    let ids = ids.join(",");
    format!(
        r#"{{"architecture":"{architecture}","os":"linux","rootfs":{{"type":"layers","diff_ids":[{ids}]}}}}"#
    )
    .into_bytes()
}

#[test]
fn an_old_docker_archive_links_its_layers() {
    let place = Place::new();
    let (lower, upper) = (layer("a", "1"), layer("a", "2"));
    let config = config("amd64", &[&lower, &upper, &lower]);
    let id = digest(&config);
    let manifest = format!(
        r#"[{{"Config":"{id}.json","RepoTags":["old:1","old:2"],"Layers":["x/layer.tar","y/layer.tar","z/layer.tar"]}}]"#
    );
    let path = place.path("old.tar");
    let files: &[(&str, &[u8])] = &[
        ("x/VERSION", b"1.0"),
        ("x/layer.tar", &lower),
        ("y/layer.tar", &upper),
        (&format!("{id}.json"), &config),
        ("manifest.json", manifest.as_bytes()),
        ("repositories", b"{}"),
    ];
    archive(&path, files, &[("z/layer.tar", "../x/layer.tar")]);
    let store = place.store();
    let image = import(&store, &path);
    assert_eq!((image.reference.as_str(), image.layers.len()), ("old:1", 3));
    assert_eq!(fs::read_to_string(store.tree(&image).unwrap().join("a")).unwrap(), "1");

    // A configuration that does not have the digest it is named after.
    archive(&path, &[files[0], files[1], files[2], (&format!("{id}.json"), b"{}"), files[4]], &[]);
    assert_eq!(refused(&place.store(), &path, None).kind(), ErrorKind::Mismatch);
    // A layer that the archive lacks.
    archive(&path, &[files[1], files[2], files[3], files[4]], &[]);
    let error = refused(&place.store(), &path, None);
    assert!(error.chain().contains("it has no z/layer.tar"), "{}", error.chain());
    // A link out of the archive.
    archive(&path, &[files[1], files[2], files[3], files[4]], &[("z/layer.tar", "../../etc/passwd")]);
    assert!(refused(&place.store(), &path, None).chain().contains("it has no z/layer.tar"));
}

/// An OCI layout by hand; returns its files.
fn oci_files(images: &[(&str, &str, &str)]) -> Vec<(String, Vec<u8>)> {
    let mut files = vec![("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
    let mut manifests = Vec::new();
    for (text, architecture, extra) in images {
        let layer = layer("who", text);
        let config = config(architecture, &[&layer]);
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:{}","size":{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:{}","size":{}}}]}}"#,
            digest(&config),
            config.len(),
            digest(&layer),
            layer.len()
        )
        .into_bytes();
        manifests.push(format!(
            r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:{}","size":{}{extra}}}"#,
            digest(&manifest),
            manifest.len()
        ));
        for blob in [layer, config, manifest] {
            files.push((format!("blobs/sha256/{}", digest(&blob)), blob));
        }
    }
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, manifests.join(","));
    files.push(("index.json".to_owned(), index.into_bytes()));
    files
}

fn write_archive(path: &Path, files: &[(String, Vec<u8>)]) {
    let files: Vec<_> = files.iter().map(|(name, data)| (name.as_str(), data.as_slice())).collect();
    archive(path, &files, &[]);
}

const ARM: &str = r#","platform":{"architecture":"arm64","os":"linux"}"#;
const AMD: &str = r#","platform":{"architecture":"amd64","os":"linux"}"#;
const ATTESTATION: &str = r#","platform":{"architecture":"unknown","os":"unknown"}"#;

#[test]
fn the_image_for_this_machine_is_picked() {
    if std::env::consts::ARCH != "x86_64" {
        println!("skipped: the images of this test are for amd64");
        return;
    }
    let place = Place::new();
    let path = place.path("multi.tar");
    let who =
        |store: &Store, image: &Image| fs::read_to_string(store.tree(image).unwrap().join("who")).unwrap();
    write_archive(
        &path,
        &oci_files(&[("arm", "arm64", ARM), ("amd", "amd64", AMD), ("x", "unknown", ATTESTATION)]),
    );
    let store = place.store();
    let image = import(&store, &path);
    assert_eq!((who(&store, &image).as_str(), image.reference.as_str()), ("amd", "multi:latest"));

    // The same index behind another, as registries and `docker save` have it.
    let mut files = oci_files(&[("arm", "arm64", ARM), ("amd", "amd64", AMD)]);
    let inner = files.pop().unwrap().1;
    let outer = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"sha256:{}","size":{},"annotations":{{"io.containerd.image.name":"docker.io/library/nested:7","org.opencontainers.image.ref.name":"7"}}}}]}}"#,
        digest(&inner),
        inner.len()
    );
    files.push((format!("blobs/sha256/{}", digest(&inner)), inner));
    files.push(("index.json".to_owned(), outer.into_bytes()));
    // The docker half of the mixed form.
    files.push((
        "manifest.json".to_owned(),
        br#"[{"Config":"x","RepoTags":["wrong:1"],"Layers":[]}]"#.to_vec(),
    ));
    write_archive(&path, &files);
    let image = import(&store, &path);
    assert_eq!((who(&store, &image).as_str(), image.reference.as_str()), ("amd", "nested:7"));

    write_archive(&path, &oci_files(&[("arm", "arm64", ARM)]));
    let error = refused(&store, &path, None);
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.chain().contains("only for linux/arm64"), "{}", error.chain());
    write_archive(&path, &oci_files(&[("arm", "arm64", "")]));
    assert!(refused(&store, &path, None).chain().contains("is an image for linux/arm64"));
}

#[test]
fn one_of_several_images_is_chosen_by_name() {
    let place = Place::new();
    let path = place.path("several.tar");
    let named = |name: &str| format!(r#","annotations":{{"org.opencontainers.image.ref.name":"{name}"}}"#);
    let architecture = if std::env::consts::ARCH == "x86_64" { "amd64" } else { "arm64" };
    write_archive(
        &path,
        &oci_files(&[("one", architecture, &named("example.org/one:1")), ("two", architecture, &named("2"))]),
    );
    let store = place.store();
    let error = refused(&store, &path, None);
    assert_eq!(error.kind(), ErrorKind::Ambiguous);
    assert!(error.chain().contains("example.org/one:1, NAME:2"), "{}", error.chain());
    let two = store.import(&path, Some(&reference("any:2"))).unwrap();
    assert_eq!(fs::read_to_string(store.tree(&two).unwrap().join("who")).unwrap(), "two");
    let one = store.import(&path, Some(&reference("example.org/one:1"))).unwrap();
    assert_eq!(fs::read_to_string(store.tree(&one).unwrap().join("who")).unwrap(), "one");
    assert_eq!(refused(&store, &path, Some("any:3")).kind(), ErrorKind::Ambiguous);
}

#[test]
fn damaged_images_stay_out() {
    let place = Place::new();
    let path = place.path("damaged.tar");
    let architecture = if std::env::consts::ARCH == "x86_64" { "amd64" } else { "arm64" };
    let good = oci_files(&[("who", architecture, "")]);
    for (number, (name, _)) in good.iter().enumerate().filter(|(_, (name, _))| name.starts_with("blobs")) {
        let mut files = good.clone();
        let middle = files[number].1.len() / 2;
        files[number].1[middle] ^= 1;
        write_archive(&path, &files);
        let error = refused(&place.store(), &path, None);
        assert_eq!(error.kind(), ErrorKind::Mismatch, "{name}: {}", error.chain());
        files[number].1 = good[number].1[..middle].to_vec();
        write_archive(&path, &files);
        let error = refused(&place.store(), &path, None);
        assert_eq!(error.kind(), ErrorKind::Mismatch, "{name}: {}", error.chain());
        files.remove(number);
        write_archive(&path, &files);
        let error = refused(&place.store(), &path, None);
        assert!(error.chain().contains(name), "{}", error.chain());
    }
    let store = place.store();
    assert_eq!(store.list().unwrap(), []);
    assert_eq!(fs::read_dir(store.directory().join("tmp")).unwrap().count(), 0);
    write_archive(&path, &good);
    import(&store, &path);
}

#[test]
fn a_bomb_is_stopped_at_the_limit() {
    let place = Place::new();
    let bomb = place.path("bomb.tar.zst");
    let bytes = layer("zeros", &"\0".repeat(8 << 20));
    fs::write(&bomb, zstd::encode_all(bytes.as_slice(), 1).unwrap()).unwrap();
    let store = place.store().with_limits(Limits { bytes: 1 << 20, ..Limits::default() });
    let error = refused(&store, &bomb, None);
    assert_eq!(error.kind(), ErrorKind::Limit, "{}", error.chain());
    assert_eq!(fs::read_dir(store.directory().join("tmp")).unwrap().count(), 0);
}

#[test]
fn what_is_no_image_is_told_so() {
    let place = Place::new();
    let store = place.store();
    let write = |name: &str, data: &[u8]| {
        fs::write(place.path(name), data).unwrap();
        place.path(name)
    };
    fs::create_dir(place.path("directory")).unwrap();
    let cases = [
        (place.path("missing"), ErrorKind::NotFound, "there is no such file"),
        (place.path("directory"), ErrorKind::Invalid, "the directory is empty"),
        (write("text", &b"hello ".repeat(1000)), ErrorKind::Invalid, "neither an image archive nor"),
        (write("short", b"hello"), ErrorKind::Invalid, "neither an image archive nor"),
        (write("empty", b""), ErrorKind::Invalid, "it is empty, or no tar"),
        (write("zeros", &[0; 10240]), ErrorKind::Invalid, "it is empty, or no tar"),
        (write("xz", b"\xfd7zXZ\0......"), ErrorKind::Unsupported, "xz"),
        (write("gzip", b"\x1f\x8b\x08......"), ErrorKind::Invalid, "neither an image archive nor"),
        (PathBuf::from("/dev/zero"), ErrorKind::Unsupported, "neither a file nor"),
    ];
    for (path, kind, told) in cases {
        let error = refused(&store, &path, None);
        let chain = error.chain();
        assert_eq!(error.kind(), kind, "{chain}");
        assert!(chain.contains(told) && chain.contains(path.to_str().unwrap()) || told == "xz", "{chain}");
    }
    // A file system that has a `manifest.json` of its own.
    let tar = write("app.tar", &layer("manifest.json", r#"{"name":"app"}"#));
    assert_eq!(import(&store, &tar).reference.as_str(), "app:latest");
}

#[test]
fn images_are_found_by_name_and_by_digest() {
    let place = Place::new();
    let store = place.store();
    let tar = place.path("tar");
    fs::write(&tar, layer("a", "1")).unwrap();
    let image = store.import(&tar, Some(&reference("name:1"))).unwrap();
    assert_eq!(store.get(&reference("name:1")).unwrap(), image);
    for text in ["name:1", image.digest.short(), image.digest.as_ref(), &image.digest.hex()[..6]] {
        assert_eq!(store.find(text).unwrap(), image, "{text}");
    }
    for text in ["name", "name:2", "000000", &image.digest.hex()[..5], "no such name!"] {
        let error = store.find(text).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{text}");
        assert!(error.to_string().contains("beta9-worker image import"), "{error}");
    }
    // A name that is moved to another image.
    fs::write(&tar, layer("a", "2")).unwrap();
    let newer = store.import(&tar, Some(&reference("name:1"))).unwrap();
    assert_ne!(newer.digest, image.digest);
    assert_eq!(store.list().unwrap(), [newer]);
}

#[test]
fn progress_goes_up_to_the_total() {
    let place = Place::new();
    let tar = place.path("tar");
    fs::write(&tar, layer("a", &"x".repeat(3_000_000))).unwrap();
    let size = fs::metadata(&tar).unwrap().len();
    type Report = (Step, u64, Option<u64>);
    let seen: Arc<Mutex<Vec<Report>>> = Arc::default();
    let count = Arc::new(AtomicU64::new(0));
    let (seen_too, count_too) = (Arc::clone(&seen), Arc::clone(&count));
    let store = place.store().with_progress(move |step: Step, done: u64, total: Option<u64>| {
        count_too.fetch_add(1, Ordering::Relaxed);
        seen_too.lock().unwrap().push((step, done, total));
    });
    let image = store.import(&tar, None).unwrap();
    store.tree(&image).unwrap();
    let seen = seen.lock().unwrap();
    for step in [Step::Copy, Step::Unpack] {
        let of_step: Vec<_> = seen.iter().filter(|(s, ..)| *s == step).collect();
        assert!(of_step.is_sorted_by_key(|(_, done, _)| *done));
        assert_eq!(of_step[0], &(step, 0, Some(size)));
        assert_eq!(of_step[of_step.len() - 1], &(step, size, Some(size)));
    }
    assert!(count.load(Ordering::Relaxed) > 4);
}

#[test]
fn a_snapshot_sees_every_difference() {
    // The comparison that the other tests rest on.
    let place = Place::new();
    let root = place.root_fs();
    let before = snapshot(&root);
    rustix::fs::chmod(root.join("etc/shadow"), rustix::fs::Mode::from_raw_mode(0o640)).unwrap();
    let after = snapshot(&root);
    assert_eq!(before.iter().filter(|(path, text)| after[*path] != **text).count(), 1);
}
