//! Volumes on a real file system.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use beta9_types::{ContainerId, VolumeLife, VolumeName};
use beta9_volume::{ErrorKind, ImageContent, NewVolume, Unused, Volume, Volumes};

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn name(text: &str) -> VolumeName {
    text.parse().unwrap()
}

fn make(volumes: &Volumes, text: &str) -> Volume {
    volumes.create(NewVolume { name: name(text), labels: BTreeMap::new(), container: None }).unwrap()
}

fn none() -> Result<HashSet<VolumeName>, Failure> {
    Ok(HashSet::new())
}

fn fill(volumes: &Volumes, volume: &Volume, tree: &Path, path: &str) {
    let content = ImageContent { tree, path: Path::new(path) };
    volumes.fill(volume, content, &none).unwrap();
}

#[test]
fn volumes_are_made_once_listed_and_removed() {
    let root = tempfile::tempdir().unwrap();
    let volumes = Volumes::of(root.path());
    assert_eq!(volumes.list().unwrap(), []);
    let first = make(&volumes, "one");
    fs::write(first.path.join("file"), "kept").unwrap();
    assert_eq!(make(&volumes, "one"), first, "it was made again");
    assert_eq!((first.life, fs::metadata(&first.path).unwrap().mode() & 0o7777), (VolumeLife::Named, 0o755));
    make(&volumes, "another");
    let names: Vec<_> = volumes.list().unwrap().into_iter().map(|volume| volume.name).collect();
    assert_eq!(names, [name("another"), name("one")]);

    let used = || Ok(HashSet::from([name("one")]));
    let kept = volumes.remove(&[name("one"), name("another"), name("missing")], &used).unwrap();
    let kinds: Vec<_> = kept.iter().map(|(name, error)| (name.as_str(), error.kind())).collect();
    assert_eq!(kinds, [("one", ErrorKind::InUse), ("missing", ErrorKind::NotFound)]);
    assert_eq!(fs::read(first.path.join("file")).unwrap(), b"kept");
    assert!(volumes.remove(&[name("one")], &none).unwrap().is_empty());
    assert_eq!(volumes.get(&name("one")).unwrap_err().kind(), ErrorKind::NotFound);
    let left: Vec<_> =
        fs::read_dir(root.path().join("volumes")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, [".lock"]);
}

#[test]
fn a_prune_that_cannot_tell_what_is_used_removes_nothing() {
    let root = tempfile::tempdir().unwrap();
    let volumes = Volumes::of(root.path());
    make(&volumes, "named");
    let container = ContainerId::random();
    let own = NewVolume { name: name("own"), labels: BTreeMap::new(), container: Some(&container) };
    let own = volumes.create(own).unwrap();
    fs::write(own.path.join("file"), [0; 5000]).unwrap();
    assert!(volumes.prune(Unused::All, &|_| true, &|| Err("no".into())).is_err());
    // It is being made for a container that has no record yet.
    assert_eq!(volumes.prune(Unused::All, &|v| v.name != name("named"), &none).unwrap().0, []);
    volumes.settle(&own.name).unwrap();
    assert_eq!(volumes.prune(Unused::Anonymous, &|_| true, &none).unwrap(), (vec![name("own")], 5000));
    assert_eq!(volumes.prune(Unused::All, &|_| false, &none).unwrap().0, []);
    assert_eq!(volumes.prune(Unused::All, &|_| true, &none).unwrap().0, [name("named")]);
}

#[test]
fn what_was_made_for_a_container_that_never_came_goes() {
    let root = tempfile::tempdir().unwrap();
    let volumes = Volumes::of(root.path());
    let container = ContainerId::random();
    for own in ["lost", "found", "young"] {
        volumes
            .create(NewVolume { name: name(own), labels: BTreeMap::new(), container: Some(&container) })
            .unwrap();
    }
    let (hour_ago, directory) =
        (std::time::SystemTime::now() - std::time::Duration::from_secs(3600), root.path().join("volumes"));
    for old in ["lost", "found"] {
        fs::File::options()
            .write(true)
            .open(directory.join(old).join("pending"))
            .unwrap()
            .set_modified(hour_ago)
            .unwrap();
    }
    fs::create_dir(directory.join(".gone-x")).unwrap();
    volumes.tidy(&|| Ok(HashSet::from([name("found")]))).unwrap();
    let names: Vec<_> = volumes.list().unwrap().into_iter().map(|volume| volume.name).collect();
    assert_eq!(names, [name("found"), name("young")]);
    assert!(!directory.join("found/pending").exists() && !directory.join(".gone-x").exists());
}

#[test]
fn an_empty_volume_gets_what_the_image_has() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: owners need root");
        return;
    }
    let (root, image) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let volumes = Volumes::of(root.path());
    let data = image.path().join("srv/data");
    fs::create_dir_all(data.join("deep/er")).unwrap();
    fs::write(data.join("deep/file"), "content").unwrap();
    fs::hard_link(data.join("deep/file"), data.join("again")).unwrap();
    fs::set_permissions(data.join("deep/file"), fs::Permissions::from_mode(0o4750)).unwrap();
    chown(data.join("deep/er"), Some(12), Some(34)).unwrap();
    chown(&data, Some(1000), Some(2000)).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o1770)).unwrap();
    symlink("/etc/shadow", data.join("link")).unwrap();
    rustix::fs::setxattr(data.join("again"), "user.note", b"x", rustix::fs::XattrFlags::empty()).unwrap();
    // The image's own link, which is absolute in the image.
    symlink("/srv", image.path().join("alias")).unwrap();

    let volume = make(&volumes, "v");
    fill(&volumes, &volume, image.path(), "/alias/data");
    let facts = |path: &str| {
        let meta = fs::symlink_metadata(volume.path.join(path)).unwrap();
        (meta.uid(), meta.gid(), meta.mode() & 0o7777)
    };
    assert_eq!(facts(""), (1000, 2000, 0o1770));
    assert_eq!(facts("deep/er"), (12, 34, 0o755));
    assert_eq!(facts("deep/file").2, 0o4750);
    assert_eq!(fs::metadata(volume.path.join("again")).unwrap().nlink(), 2);
    assert_eq!(fs::read_link(volume.path.join("link")).unwrap(), Path::new("/etc/shadow"));
    let mut value = [0; 8];
    let length = rustix::fs::getxattr(volume.path.join("deep/file"), "user.note", &mut value).unwrap();
    assert_eq!(&value[..length], b"x");
    let time = |path: &Path| fs::symlink_metadata(path).unwrap().modified().unwrap();
    assert_eq!(time(&volume.path.join("deep")), time(&data.join("deep")));

    // What holds something, or has no counterpart, stays as it is.
    fs::remove_file(volume.path.join("link")).unwrap();
    fill(&volumes, &volume, image.path(), "/srv/data");
    assert!(fs::symlink_metadata(volume.path.join("link")).is_err());
    let empty = make(&volumes, "empty");
    for missing in ["/nowhere", "/srv/data/deep/file"] {
        fill(&volumes, &empty, image.path(), missing);
    }
    assert_eq!(fs::read_dir(&empty.path).unwrap().count(), 0);
    // One that a container has is filled where it is.
    let (used, mounted) = (|| Ok(HashSet::from([name("empty")])), fs::metadata(&empty.path).unwrap().ino());
    let content = ImageContent { tree: image.path(), path: Path::new("/srv/data") };
    volumes.fill(&empty, content, &used).unwrap();
    let meta = fs::metadata(&empty.path).unwrap();
    assert_eq!((meta.ino(), meta.uid(), meta.mode() & 0o7777), (mounted, 1000, 0o1770));
    assert!(empty.path.join("deep/file").exists());
}

#[test]
fn an_image_cannot_fill_a_volume_with_the_hosts_files() {
    let (root, image, host) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(host.path().join("canary"), "secret").unwrap();
    symlink(host.path(), image.path().join("absolute")).unwrap();
    symlink(format!("../../../../../../..{}", host.path().display()), image.path().join("climbing")).unwrap();
    let volumes = Volumes::of(root.path());
    for path in ["/absolute", "/climbing", "/../../../../../etc", "/absolute/../../../../etc"] {
        let volume = make(&volumes, "v");
        fill(&volumes, &volume, image.path(), path);
        assert_eq!(fs::read_dir(&volume.path).unwrap().count(), 0, "{path} led out of the image");
    }
}
