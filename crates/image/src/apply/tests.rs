use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use proptest::prelude::*;
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

use super::*;

/// A layer in the making. Paths and links are written as they are, which tar programs would not do.
pub(crate) struct LayerBuilder(Builder<Vec<u8>>);

impl LayerBuilder {
    pub(crate) fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    pub(crate) fn header(kind: EntryType, path: &str) -> Header {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1_000_000_000);
        header.set_size(0);
        header
    }

    pub(crate) fn with(mut self, mut header: Header, data: &[u8]) -> Self {
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    pub(crate) fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    pub(crate) fn file(self, path: &str, data: &str) -> Self {
        let header = Self::header(EntryType::Regular, path);
        self.with(header, data.as_bytes())
    }

    pub(crate) fn directory(self, path: &str) -> Self {
        let mut header = Self::header(EntryType::Directory, path);
        header.set_mode(0o750);
        self.with(header, b"")
    }

    pub(crate) fn link(self, kind: EntryType, path: &str, target: &str) -> Self {
        let mut header = Self::header(kind, path);
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        self.with(header, b"")
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.link(EntryType::Symlink, path, target)
    }

    pub(crate) fn hard_link(self, path: &str, target: &str) -> Self {
        self.link(EntryType::Link, path, target)
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// A root in a directory that also has things which no layer may touch.
struct Tree {
    outside: TempDir,
    limits: Limits,
}

impl Tree {
    fn new() -> Self {
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir(outside.path().join("root")).unwrap();
        fs::write(outside.path().join("canary"), "alive").unwrap();
        Self { outside, limits: Limits::default() }
    }

    fn apply(&self, layers: Vec<LayerBuilder>) -> Result<()> {
        let mut applier = Applier::new(&self.path(""), self.limits)?;
        let mut spent = Spent::new(self.limits);
        for layer in layers {
            read_layer(layer.bytes().as_slice(), &self.limits, &mut spent, &mut applier)?;
        }
        applier.finish()
    }

    /// What a refused layer is told, with the promise that nothing outside was touched.
    fn refused(layers: Vec<LayerBuilder>) -> (ErrorKind, String) {
        let tree = Self::new();
        let error = tree.apply(layers).unwrap_err();
        tree.assert_outside_untouched();
        (error.kind(), error.chain())
    }

    fn assert_outside_untouched(&self) {
        let mut names: Vec<_> =
            fs::read_dir(self.outside.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["canary", "root"]);
        assert_eq!(fs::read_to_string(self.outside.path().join("canary")).unwrap(), "alive");
        assert_eq!(fs::metadata(self.outside.path().join("canary")).unwrap().nlink(), 1);
    }

    fn path(&self, below: &str) -> std::path::PathBuf {
        self.outside.path().join("root").join(below)
    }

    fn read(&self, below: &str) -> String {
        fs::read_to_string(self.path(below)).unwrap()
    }

    fn exists(&self, below: &str) -> bool {
        fs::symlink_metadata(self.path(below)).is_ok()
    }
}

pub(crate) fn layer() -> LayerBuilder {
    LayerBuilder::new()
}

impl Applier {
    fn layer(&mut self, reader: impl std::io::Read) -> Result<()> {
        let limits = self.root.limits();
        read_layer(reader, &limits, &mut Spent::new(limits), self)
    }
}

#[test]
fn files_directories_and_links_are_made_as_described() {
    let tree = Tree::new();
    let mut program = LayerBuilder::header(EntryType::Regular, "bin/su");
    program.set_mode(0o4755);
    let mut pipe = LayerBuilder::header(EntryType::Fifo, "pipe");
    pipe.set_mode(0o600);
    let layers = layer()
        .directory("./")
        .directory("bin/")
        .with(program, b"program")
        .symlink("sh", "bin/../anything at all")
        .hard_link("bin/sudo", "/bin/su")
        .with(pipe, b"")
        .file("deep/er/file", "x");
    tree.apply(vec![layers]).unwrap();
    let root = fs::metadata(tree.path("")).unwrap();
    assert_eq!((root.mode() & 0o7777, root.uid(), root.gid(), root.mtime()), (0o750, 7, 8, 1_000_000_000));
    let bin = fs::metadata(tree.path("bin")).unwrap();
    assert_eq!((bin.mode() & 0o7777, bin.uid(), bin.mtime()), (0o750, 7, 1_000_000_000));
    let program = fs::metadata(tree.path("bin/su")).unwrap();
    assert_eq!((program.mode() & 0o7777, program.uid(), program.nlink()), (0o4755, 7, 2));
    assert_eq!(program.ino(), fs::metadata(tree.path("bin/sudo")).unwrap().ino());
    let link = fs::symlink_metadata(tree.path("sh")).unwrap();
    assert_eq!((link.uid(), link.mtime()), (7, 1_000_000_000));
    assert_eq!(fs::read_link(tree.path("sh")).unwrap().to_str(), Some("bin/../anything at all"));
    assert!(fs::metadata(tree.path("pipe")).unwrap().file_type().is_fifo());
    // Nobody described these two: equal layers must still make equal trees.
    assert_eq!(fs::metadata(tree.path("deep/er")).unwrap().mtime(), 0);
    assert_eq!(fs::metadata(tree.path("deep")).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn device_nodes_are_made_or_named_in_the_error() {
    let tree = Tree::new();
    let mut null = LayerBuilder::header(EntryType::Char, "dev/null");
    null.set_device_major(1).unwrap();
    null.set_device_minor(3).unwrap();
    let mut disk = LayerBuilder::header(EntryType::Block, "dev/disk");
    disk.set_device_major(259).unwrap();
    disk.set_device_minor(70_000).unwrap();
    match tree.apply(vec![layer().with(null, b"").with(disk, b"")]) {
        Ok(()) => {
            let null = fs::metadata(tree.path("dev/null")).unwrap();
            assert_eq!((null.rdev(), null.mode() & 0o7777), (rustix::fs::makedev(1, 3), 0o644));
            let disk = fs::metadata(tree.path("dev/disk")).unwrap();
            assert_eq!(disk.rdev(), rustix::fs::makedev(259, 70_000));
        }
        Err(error) => assert!(error.chain().contains("dev/null"), "{}", error.chain()),
    }
    let mut odd = LayerBuilder::header(EntryType::Char, "odd");
    odd.set_device_major(5000).unwrap();
    odd.set_device_minor(0).unwrap();
    assert!(Tree::refused(vec![layer().with(odd, b"")]).1.contains("5000:0"));
}

#[test]
fn nothing_is_named_outside_of_the_root() {
    let cases: Vec<(&str, LayerBuilder, &str)> = vec![
        ("climb", layer().file("../canary", "dead"), "climbs out"),
        ("climb inside", layer().file("a/../../canary", "dead"), "climbs out"),
        ("link target", layer().hard_link("x", "../canary"), "climbs out"),
        ("absolute link target", layer().hard_link("x", "/canary"), "not in the image"),
        ("whiteout of ..", layer().file("a/.wh...", ""), "names no file"),
        ("whiteout of .", layer().file(".wh..", ""), "names no file"),
        ("whiteout of nothing", layer().file(".wh.", ""), "names no file"),
        ("below a whiteout", layer().file(".wh.a/b", ""), "below a whiteout"),
        ("root as a file", layer().file(".", "x"), "root"),
        ("root as a link", layer().symlink("./", "/"), "root"),
    ];
    for (name, layer, told) in cases {
        let (kind, chain) = Tree::refused(vec![layer]);
        assert_eq!(kind, ErrorKind::Invalid, "{name}: {chain}");
        assert!(chain.contains(told), "{name}: {chain}");
    }
}

#[test]
fn symbolic_links_resolve_against_the_images_root() {
    let tree = Tree::new();
    let outside = tree.outside.path().to_str().unwrap().to_owned();
    tree.apply(vec![
        layer().symlink("a", "/").symlink("up", "../../../..").symlink("out", &outside),
        // The links of an earlier layer must lead into the image, however they are written.
        layer().file("a/etc/x", "1").file("up/etc/y", "2"),
    ])
    .unwrap();
    assert_eq!(tree.read("etc/x"), "1");
    assert_eq!(tree.read("etc/y"), "2");
    tree.assert_outside_untouched();

    // The host's directory does not exist in the image, so the link leads nowhere.
    let (kind, chain) =
        Tree::refused(vec![layer().symlink("out", &outside), layer().file("out/canary", "dead")]);
    assert_eq!(kind, ErrorKind::Invalid);
    assert!(chain.contains("a symbolic link to nothing"), "{chain}");
    let (_, chain) = Tree::refused(vec![layer().symlink("loop", "loop").file("loop/x", "")]);
    assert!(chain.contains("loop"), "{chain}");
    let (_, chain) = Tree::refused(vec![layer().symlink("out", &outside).hard_link("mine", "out/canary")]);
    assert!(chain.contains("not in the image"), "{chain}");
    let (_, chain) = Tree::refused(vec![layer().symlink("p", "/proc/self/root").file("p/canary", "")]);
    assert!(chain.contains("a symbolic link to nothing"), "{chain}");
}

#[test]
fn a_link_is_replaced_and_not_followed() {
    let tree = Tree::new();
    let canary = tree.outside.path().join("canary");
    tree.apply(vec![
        layer().symlink("file", canary.to_str().unwrap()).symlink("directory", "/elsewhere"),
        layer().file("file", "mine").directory("directory").file("directory/x", "mine"),
    ])
    .unwrap();
    tree.assert_outside_untouched();
    assert_eq!(tree.read("file"), "mine");
    assert!(fs::symlink_metadata(tree.path("directory")).unwrap().is_dir());
    assert!(!tree.exists("elsewhere"));
}

#[test]
fn files_and_directories_replace_each_other() {
    let tree = Tree::new();
    tree.apply(vec![
        layer().file("a/x", "1").file("b", "2").directory("c").file("c/kept", "3"),
        layer().file("a", "now a file").directory("b").file("b/y", "4").directory("c"),
        layer().directory("a").file("a/z", "5"),
    ])
    .unwrap();
    assert_eq!(
        (tree.read("a/z"), tree.read("b/y"), tree.read("c/kept")),
        ("5".into(), "4".into(), "3".into())
    );
    assert!(!tree.exists("a/x"));
    let (_, chain) = Tree::refused(vec![layer().file("f", "").file("f/x", "")]);
    assert!(chain.contains("no directory"), "{chain}");
}

#[test]
fn the_last_of_two_equal_entries_wins() {
    let tree = Tree::new();
    tree.apply(vec![
        layer()
            .file("x", "first")
            .hard_link("y", "x")
            .file("x", "second")
            .hard_link("self", "x")
            .hard_link("self", "self")
            .directory("d")
            .directory("d"),
    ])
    .unwrap();
    assert_eq!(
        (tree.read("x"), tree.read("y"), tree.read("self")),
        ("second".into(), "first".into(), "second".into())
    );
}

#[test]
fn whiteouts_hide_older_layers_only() {
    let tree = Tree::new();
    tree.apply(vec![
        layer().file("d/a", "1").file("d/b/c", "1").file("e/x", "1").symlink("l", "d").file("gone/x", "1"),
        layer()
            // In the order that tools write them, and in the other one.
            .file("d/.wh.a", "")
            .file("d/new", "2")
            .file("d/b", "now a file")
            .file("d/.wh.b", "")
            .file("e/new/deep", "2")
            .file("e/.wh..wh..opq", "")
            .file(".wh.gone", "")
            .file("missing/.wh.x", "")
            .file(".wh..wh.plnk/1.2", "")
            .file(".wh..wh.aufs", ""),
        layer().file("l/.wh.new", ""),
    ])
    .unwrap();
    assert!(!tree.exists("d/a") && !tree.exists("gone") && !tree.exists("e/x") && !tree.exists("missing"));
    assert_eq!(tree.read("d/b"), "now a file");
    assert_eq!(tree.read("e/new/deep"), "2");
    // The last layer went through the link.
    assert!(!tree.exists("d/new") && tree.exists("l"));
    let left: Vec<_> = fs::read_dir(tree.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_str().unwrap().starts_with(".wh.")), "{left:?}");
}

#[test]
fn an_opaque_directory_spares_what_its_layer_made_in_merged_directories() {
    let tree = Tree::new();
    tree.apply(vec![
        layer().file("d/sub/old", "1").file("d/other/old", "1"),
        layer().directory("d/sub").file("d/sub/new", "2").file("d/.wh..wh..opq", ""),
    ])
    .unwrap();
    assert!(tree.exists("d/sub/new") && !tree.exists("d/sub/old") && !tree.exists("d/other"));
}

fn capability() -> Vec<u8> {
    // Revision 2, effective, with newlines (0x0a) where a line-based reader would cut.
    let mut bytes = 0x0200_0001_u32.to_le_bytes().to_vec();
    for word in [0x0a0a_u32, 0, 0, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes
}

#[test]
fn extended_attributes_long_names_and_times_come_from_pax() {
    let tree = Tree::new();
    let long = format!("{}/{}", "d".repeat(150), "f".repeat(250));
    let records: &[(&str, &[u8])] = &[
        ("SCHILY.xattr.security.capability", &capability()),
        ("SCHILY.xattr.user.note", b"a\nb=c\n"),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ("SCHILY.xattr.security.selinux", b"label"),
        ("mtime", b"1234567890.5"),
        ("path", long.as_bytes()),
        ("uid", b"70000"),
    ];
    tree.apply(vec![layer().pax(records).file("short", "x")]).unwrap();
    let file = tree.path(&long);
    let found = fs::metadata(&file).unwrap();
    assert_eq!((found.mtime(), found.mtime_nsec(), found.uid()), (1_234_567_890, 500_000_000, 70_000));
    assert_eq!(xattr(&file, "security.capability"), Some(capability()));
    assert_eq!(xattr(&file, "user.note"), Some(b"a\nb=c\n".to_vec()));
    assert_eq!(xattr(&file, "trusted.overlay.redirect"), None);
    assert_eq!(xattr(&file, "security.selinux"), None);
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 1 << 16];
    let length = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).ok()?;
    value.truncate(length);
    Some(value)
}

#[test]
fn a_smuggled_path_in_a_binary_value_is_data() {
    let tree = Tree::new();
    let value = b"\n20 path=../canary\n12 size=9999\n";
    tree.apply(vec![layer().pax(&[("SCHILY.xattr.user.x", value)]).file("honest", "x").file("next", "y")])
        .unwrap();
    tree.assert_outside_untouched();
    assert_eq!((tree.read("honest"), tree.read("next")), ("x".into(), "y".into()));
}

#[test]
fn inherited_acls_do_not_reach_the_images_files() {
    let tree = Tree::new();
    // user::rwx group::r-x mask::rwx other::r-x and the user 5 with rwx, as the kernel stores it.
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in
        [(1u16, 7u16, u32::MAX), (2, 7, 5), (4, 5, u32::MAX), (16, 7, u32::MAX), (32, 5, u32::MAX)]
    {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    let records: &[(&str, &[u8])] = &[("SCHILY.xattr.system.posix_acl_default", &acl)];
    tree.apply(vec![
        layer().pax(records).directory("d").file("d/f", "x").directory("d/plain"),
        layer().directory("d/plain"),
    ])
    .unwrap();
    assert_eq!(xattr(&tree.path("d"), "system.posix_acl_default"), Some(acl));
    assert_eq!(xattr(&tree.path("d/f"), "system.posix_acl_access"), None);
    assert_eq!(xattr(&tree.path("d/plain"), "system.posix_acl_default"), None);
    assert_eq!(fs::metadata(tree.path("d")).unwrap().mtime(), 1_000_000_000);
}

#[test]
fn a_directory_described_again_loses_what_it_had() {
    let tree = Tree::new();
    let records: &[(&str, &[u8])] = &[("SCHILY.xattr.user.old", b"1")];
    tree.apply(vec![layer().pax(records).directory("d"), layer().directory("d")]).unwrap();
    assert_eq!(xattr(&tree.path("d"), "user.old"), None);
}

#[test]
fn every_limit_is_one() {
    let limited = |change: fn(&mut Limits), layers: Vec<LayerBuilder>| {
        let mut tree = Tree::new();
        change(&mut tree.limits);
        let error = tree.apply(layers).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit, "{}", error.chain());
        error.chain()
    };
    let chain = limited(
        |l| l.entries = 3,
        vec![layer().file("a", "").file("b", ""), layer().file("c", "").file("d", "")],
    );
    assert!(chain.contains("more than 3 entries"), "{chain}");
    let big = "x".repeat(3000);
    let chain = limited(|l| l.bytes = 8000, vec![layer().file("a", &big), layer().file("b", &big)]);
    assert!(chain.contains("more than 8000 bytes"), "{chain}");
    let chain = limited(|l| l.depth = 3, vec![layer().file("a/b/c/d/e", "")]);
    assert!(chain.contains("3 directories deep"), "{chain}");
    // No path is long as it is written.
    let chain = limited(
        |l| l.depth = 3,
        vec![
            layer()
                .directory("a")
                .directory("a/b")
                .symlink("l", "a/b")
                .file("l/c/x", "")
                .symlink("m", "l/c")
                .file("m/d/y", ""),
        ],
    );
    assert!(chain.contains("3 directories deep"), "{chain}");
    let chain = limited(|l| l.path_bytes = 20, vec![layer().file("0123456789/0123456789", "")]);
    assert!(chain.contains("20 bytes"), "{chain}");
    let chain = limited(
        |l| l.xattr_bytes = 10,
        vec![layer().pax(&[("SCHILY.xattr.user.x", b"0123456789a")]).file("a", "")],
    );
    assert!(chain.contains("more than 10") && chain.contains("\"a\""), "{chain}");
    let chain = limited(
        |l| l.xattrs = 1,
        vec![layer().pax(&[("SCHILY.xattr.user.x", b""), ("SCHILY.xattr.user.y", b"")]).file("a", "")],
    );
    assert!(chain.contains("more than 1 extended"), "{chain}");
}

#[test]
fn a_header_that_claims_gigabytes_is_not_read_into_memory() {
    let mut header = LayerBuilder::header(EntryType::XHeader, "pax");
    header.set_size(8 << 30);
    header.set_cksum();
    let endless = std::io::Read::chain(header.as_bytes().as_slice(), std::io::repeat(b'1'));
    let tree = Tree::new();
    let error = Applier::new(&tree.path(""), Limits::default()).unwrap().layer(endless).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit, "{}", error.chain());
}

#[test]
fn every_sparse_form_of_gnu_tar_makes_the_same_file() {
    let tree = Tree::new();
    let file = tree.path("sparse");
    let packed = File::create(&file).unwrap();
    packed.set_len(3 << 20).unwrap();
    for at in [0, 1 << 20, (2 << 20) + 5] {
        std::os::unix::fs::FileExt::write_all_at(&packed, b"some data", at).unwrap();
    }
    let wanted = fs::read(&file).unwrap();
    for version in ["0.0", "0.1", "1.0"] {
        let output = std::process::Command::new("tar")
            .args(["--sparse", "--format=posix", &format!("--sparse-version={version}"), "-cf", "-", "-C"])
            .arg(tree.path(""))
            .arg("sparse")
            .output()
            .unwrap();
        assert!(output.status.success());
        let other = Tree::new();
        let mut applier = Applier::new(&other.path(""), other.limits).unwrap();
        applier.layer(output.stdout.as_slice()).unwrap();
        applier.finish().unwrap();
        assert!(fs::read(other.path("sparse")).unwrap() == wanted, "{version} differs");
        assert!(
            fs::metadata(other.path("sparse")).unwrap().blocks() * 512 < 1 << 20,
            "{version} has no holes"
        );
    }
}

#[test]
fn without_rights_a_tree_is_as_close_as_it_can_be() {
    const NAME: &str = "apply::tests::without_rights_a_tree_is_as_close_as_it_can_be";
    const PLACE: &str = "APPLY_TEST_PLACE";
    if let Some(place) = std::env::var_os(PLACE) {
        let root = std::path::PathBuf::from(place);
        let mut device = LayerBuilder::header(EntryType::Char, "d/null");
        device.set_device_major(1).unwrap();
        device.set_device_minor(3).unwrap();
        let mut closed = LayerBuilder::header(EntryType::Directory, "closed");
        closed.set_mode(0o500);
        let attribute: &[(&str, &[u8])] = &[("SCHILY.xattr.trusted.x", b"1"), ("SCHILY.xattr.user.y", b"2")];
        let layers = layer()
            .with(closed, b"")
            .file("closed/f", "x")
            .with(device, b"")
            .pax(attribute)
            .file("d/attributed", "y")
            .file("d/gone", "z");
        let mut applier = Applier::new(&root, Limits::default()).unwrap();
        applier.layer(layers.bytes().as_slice()).unwrap();
        applier.layer(layer().file("closed/second", "2").file("d/.wh.gone", "").bytes().as_slice()).unwrap();
        applier.finish().unwrap();
        let found = |name: &str| fs::symlink_metadata(root.join(name)).unwrap();
        assert_eq!(found("closed").permissions().mode() & 0o7777, 0o500);
        assert_eq!(fs::read_to_string(root.join("closed/second")).unwrap(), "2");
        assert_eq!(fs::read_to_string(root.join("closed/f")).unwrap(), "x");
        assert!(found("d/null").is_file() && found("d/null").len() == 0);
        assert_eq!(found("d/null").permissions().mode() & 0o7777, 0o644);
        assert_eq!(xattr(&root.join("d/attributed"), "user.y"), Some(b"2".to_vec()));
        assert!(!root.join("d/gone").exists());
        return;
    }
    // As root of a user namespace of its own, and as nobody in particular.
    let ways: [(&str, &[&str]); 2] = [
        ("unshare", &["--map-root-user"]),
        ("setpriv", &["--reuid=65534", "--regid=65534", "--clear-groups"]),
    ];
    for (program, arguments) in ways {
        let place = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(place.path(), Some(65534), Some(65534)).unwrap();
        if program == "unshare" {
            std::os::unix::fs::chown(place.path(), Some(0), Some(0)).unwrap();
        }
        // Where everybody may execute it.
        let program_copy = place.path().join("test");
        fs::copy(std::env::current_exe().unwrap(), &program_copy).unwrap();
        let root = place.path().join("root");
        fs::create_dir(&root).unwrap();
        if program == "setpriv" {
            std::os::unix::fs::chown(&root, Some(65534), Some(65534)).unwrap();
        }
        let output = std::process::Command::new(program)
            .args(arguments)
            .arg(&program_copy)
            .args(["--exact", NAME, "--nocapture"])
            .env(PLACE, &root)
            .current_dir("/")
            .output()
            .unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        if said.contains("unshare failed") {
            println!("skipped: user namespaces do not work here: {said}");
            continue;
        }
        assert!(output.status.success() && said.contains("1 passed"), "{program}: {said}");
    }
}

#[test]
fn a_sparse_file_counts_whole_and_takes_no_space() {
    let tree = Tree::new();
    let file = tree.outside.path().join("root/sparse");
    let packed = File::create(&file).unwrap();
    packed.set_len(64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&packed, b"end", 32 << 20).unwrap();
    let output = std::process::Command::new("tar")
        .args(["--sparse", "--format=gnu", "-cf", "-", "-C"])
        .arg(tree.path(""))
        .arg("sparse")
        .output()
        .unwrap();
    fs::remove_file(&file).unwrap();
    let mut applier = Applier::new(&tree.path(""), tree.limits).unwrap();
    applier.layer(output.stdout.as_slice()).unwrap();
    applier.finish().unwrap();
    let found = fs::metadata(&file).unwrap();
    assert_eq!(found.len(), 64 << 20);
    assert!(found.blocks() * 512 < 2 << 20, "{} blocks", found.blocks());
    let mut small = tree.limits;
    small.bytes = 10 << 20;
    fs::remove_file(&file).unwrap();
    let error = Applier::new(&tree.path(""), small).unwrap().layer(output.stdout.as_slice()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit);
}

#[test]
fn broken_and_unknown_entries_are_named() {
    let (kind, chain) =
        Tree::refused(vec![layer().with(LayerBuilder::header(EntryType::new(b'V'), "volume"), b"")]);
    assert_eq!(kind, ErrorKind::Invalid);
    assert!(chain.contains("'V'") && chain.contains("volume"), "{chain}");
    let (kind, chain) = Tree::refused(vec![layer().pax(&[("GNU.sparse.major", b"2")]).file("s", "")]);
    assert_eq!(kind, ErrorKind::Unsupported);
    assert!(chain.contains("--sparse"), "{chain}");
    let mut owner = LayerBuilder::header(EntryType::Regular, "owner");
    owner.set_uid(u64::from(u32::MAX));
    assert!(Tree::refused(vec![layer().with(owner, b"")]).1.contains("uid"));
    let (_, chain) = Tree::refused(vec![layer().directory("d").hard_link("x", "d")]);
    assert!(chain.contains("which is a directory"), "{chain}");

    let tree = Tree::new();
    let whole = layer().file("a", &"x".repeat(5000)).bytes();
    let mut applier = Applier::new(&tree.path(""), tree.limits).unwrap();
    assert!(applier.layer(&whole[..3000]).unwrap_err().chain().contains("of its 5000 bytes"));
    assert_eq!(fs::metadata(tree.path("a")).unwrap().permissions().mode() & 0o7777, 0o600);
}

#[test]
fn an_absolute_path_is_one_in_the_image() {
    let tree = Tree::new();
    tree.apply(vec![layer().file("/etc/passwd", "mine").file("//x", "y")]).unwrap();
    assert_eq!((tree.read("etc/passwd"), tree.read("x")), ("mine".into(), "y".into()));
}

/// Anything at all, out of names and links that lead everywhere.
#[derive(Debug, Clone)]
enum Any {
    File(String),
    Directory(String),
    Symlink(String, String),
    HardLink(String, String),
}

/// Stands for the directory around the root, whose name is not known before.
const OUTSIDE: &str = "OUTSIDE";

fn any_layers() -> impl Strategy<Value = Vec<Vec<Any>>> {
    let name = prop::sample::select(vec!["a", "b", "canary"]);
    let odd = prop::sample::select(vec!["..", ".", "", ".wh.a", ".wh.canary", ".wh..wh..opq", ".wh..."]);
    let part = prop_oneof![8 => name, 1 => odd];
    let path = prop::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"));
    let lead =
        prop::sample::select(vec![OUTSIDE, "/", "..", "../canary", "/canary", "/proc/self/cwd", "a", "/a/b"]);
    let target = prop_oneof![path.clone(), lead.prop_map(str::to_owned)];
    let entry = prop_oneof![
        path.clone().prop_map(Any::File),
        path.clone().prop_map(Any::Directory),
        (path.clone(), target.clone()).prop_map(|(path, target)| Any::Symlink(path, target)),
        (path, target).prop_map(|(path, target)| Any::HardLink(path, target)),
    ];
    prop::collection::vec(prop::collection::vec(entry, 1..12), 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Entries that are refused are left out one by one, so that the rest of a hostile image is tried, too.
    #[test]
    fn no_image_touches_anything_outside(layers in any_layers()) {
        let tree = Tree::new();
        let outside = tree.outside.path().to_str().unwrap().to_owned();
        let mut applier = Applier::new(&tree.path(""), tree.limits).unwrap();
        for entries in layers {
            for entry in entries {
                let layer = match &entry {
                    Any::File(path) => layer().file(path, "dead"),
                    Any::Directory(path) => layer().directory(path),
                    Any::Symlink(path, target) => layer().symlink(path, &target.replace(OUTSIDE, &outside)),
                    Any::HardLink(path, target) => layer().hard_link(path, target),
                };
                // Whatever the answer is, it is an answer.
                let _ = applier.layer(layer.bytes().as_slice());
            }
        }
        applier.finish().unwrap();
        tree.assert_outside_untouched();
        prop_assert!(!tree.exists(".wh.a"));
    }
}

#[test]
fn what_archivers_get_away_with_is_read() {
    let tree = Tree::new();
    // Blank owner and device fields, a symbolic link with a size, and no padding or end mark.
    let mut blank = Header::new_ustar();
    blank.as_old_mut().name[..1].copy_from_slice(b"a");
    blank.set_size(2);
    blank.set_cksum();
    let mut link = LayerBuilder::header(EntryType::Symlink, "l");
    link.set_link_name_literal("target").unwrap();
    link.set_size(1234);
    link.set_cksum();
    let mut last = LayerBuilder::header(EntryType::Regular, "z");
    last.set_size(3);
    last.set_cksum();
    let data = [&b"hi"[..], &[0; 510]].concat();
    let bytes = [blank.as_bytes().as_slice(), &data, link.as_bytes(), last.as_bytes(), b"end"].concat();
    let mut applier = Applier::new(&tree.path(""), tree.limits).unwrap();
    applier.layer(bytes.as_slice()).unwrap();
    applier.finish().unwrap();
    assert_eq!((tree.read("a"), tree.read("z")), ("hi".into(), "end".into()));
    assert_eq!(fs::metadata(tree.path("a")).unwrap().uid(), 0);
    assert_eq!(fs::read_link(tree.path("l")).unwrap().to_str(), Some("target"));
    // A wrong checksum is not repaired.
    let mut bytes = bytes;
    bytes[0] = b'b';
    let error = Applier::new(&tree.path(""), tree.limits).unwrap().layer(bytes.as_slice()).unwrap_err();
    assert!(error.chain().contains("checksum"), "{}", error.chain());
}
