//! The tree that is unpacked, the one that umoci unpacks and the one in the block image are the same, file by file.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

mod common;

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use beta9_image::{BlockFormat, Store};
use common::mounted::Mounted;
use common::{View, assert_same, assert_same_view, installed, run};
use rustix::fs::XattrFlags;
use tempfile::TempDir;

/// An image in the making: layers as tars, put into a layout by umoci.
struct Maker {
    directory: TempDir,
    layers: usize,
}

impl Maker {
    fn new() -> Self {
        let maker = Self { directory: tempfile::tempdir().unwrap(), layers: 0 };
        run("umoci", &[&"init", &"--layout", &maker.layout()]);
        run("umoci", &[&"new", &"--image", &maker.image()]);
        maker
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn layout(&self) -> PathBuf {
        self.path("layout")
    }

    fn image(&self) -> String {
        format!("{}:1", self.layout().display())
    }

    fn add(&self, tar: &Path) {
        run("umoci", &[&"raw", &"add-layer", &"--image", &self.image(), &tar]);
    }

    /// Adds a layer of what `fill` puts into a directory, packed by tar with these options.
    fn layer(&mut self, options: &[&str], fill: impl FnOnce(&Path)) {
        self.layers += 1;
        let tree = self.path(&format!("layer{}", self.layers));
        fs::create_dir(&tree).unwrap();
        // The maker's own umask and time are no part of an image.
        rustix::fs::chmod(&tree, rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
        fill(&tree);
        touch(&tree, TIME);
        let tar = self.path(&format!("layer{}.tar", self.layers));
        let mut pack = Command::new("tar");
        pack.args(["--numeric-owner", "--sort=name"]);
        if !options.contains(&"--format=gnu") {
            pack.args(["--xattrs", "--xattrs-include=*"]);
        }
        let status = pack.args(options).arg("-C").arg(&tree).arg("-cf").arg(&tar).arg(".").status().unwrap();
        assert!(status.success());
        self.add(&tar);
    }

    /// Compares all that can be made of the image.
    fn check(&self, name: &str) {
        compare(&self.layout(), name, None);
    }

    /// The same for an image that umoci cannot unpack, against what its only layer was packed from.
    fn check_against_layer(&self, name: &str) {
        compare(&self.layout(), name, Some(&self.path("layer1")));
    }
}

/// When a layer's root was changed last.
const TIME: &str = "2020-02-02 02:02:02";

fn touch(path: &Path, time: &str) {
    run("touch", &[&"--no-dereference", &"--date", &time, &path]);
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn unpack(layout: &Path, bundle: &Path) {
    let tag = fs::read_to_string(layout.join("index.json")).unwrap();
    let tag = if tag.contains("\"latest\"") { "latest" } else { "1" };
    run("umoci", &[&"unpack", &"--image", &format!("{}:{tag}", layout.display()), &bundle]);
}

/// The image of a layout in every form, and what umoci makes of it.
fn compare(layout: &Path, name: &str, known: Option<&Path>) {
    let place = tempfile::tempdir().unwrap();
    let bundle = place.path().join("bundle");
    if known.is_none() {
        unpack(layout, &bundle);
    }
    let store = Store::open(&place.path().join("store")).unwrap();
    let image = store.import(layout, None).unwrap();
    let tree = store.tree(&image).unwrap();
    println!("{name}: {} files", common::walk(&tree).len());
    assert_same(&tree, known.unwrap_or(&bundle.join("rootfs")));
    let block = |name: &str, formats: &[BlockFormat], view: View| {
        // In a store that has no tree.
        let store = Store::open(&place.path().join(name)).unwrap().with_formats(formats);
        let image = store.import(layout, None).unwrap();
        let block = store.block(&image).unwrap();
        let Some(mounted) = Mounted::mount(&block.path, block.format.as_str(), "ro") else { return };
        assert_same_view(mounted.path(), &tree, view);
    };
    block("best", &BlockFormat::ALL, View::Whole);
    block("squashfs", &[BlockFormat::Squashfs], View::Squashfs);
}

fn ready() -> bool {
    ["umoci", "tar", "mksquashfs", "mkfs.erofs"].into_iter().all(installed)
}

#[test]
fn one_of_everything() {
    if ready() {
        let mut maker = Maker::new();
        maker.layer(&["--format=posix"], common::root_fs);
        maker.check("one of everything");
    }
}

#[test]
fn whiteouts_and_opaque_directories() {
    if !ready() {
        return;
    }
    let mut maker = Maker::new();
    maker.layer(&["--format=posix", "--mtime=@1500000000"], |tree| {
        for name in ["a/b/c", "a/b/d", "a/e", "opaque/old/x", "opaque/y", "gone/z", "file", "kept"] {
            write(&tree.join(name), name);
        }
        symlink("a", tree.join("link")).unwrap();
    });
    maker.layer(&["--format=posix", "--mtime=@1500000001"], |tree| {
        for name in ["a/b/.wh.c", ".wh.gone", ".wh.file", "opaque/.wh..wh..opq", "a/.wh.missing"] {
            write(&tree.join(name), "");
        }
        write(&tree.join("opaque/new/x"), "new");
        write(&tree.join("a/b/new"), "new");
    });
    // What was hidden comes back as something else.
    maker.layer(&["--format=posix", "--mtime=@1500000002"], |tree| {
        write(&tree.join("file/now/a/directory"), "x");
        write(&tree.join("gone"), "now a file");
        fs::remove_file(tree.join("kept")).unwrap_or_default();
        symlink("gone", tree.join("kept")).unwrap();
    });
    maker.check("whiteouts");
}

#[test]
fn hard_links_across_layers() {
    if !ready() {
        return;
    }
    let mut maker = Maker::new();
    maker.layer(&["--format=posix", "--mtime=@1500000000"], |tree| {
        write(&tree.join("a/first"), "shared");
        for name in ["a/second", "z", "0"] {
            fs::hard_link(tree.join("a/first"), tree.join(name)).unwrap();
        }
        symlink("anywhere", tree.join("link")).unwrap();
        fs::hard_link(tree.join("link"), tree.join("same link")).unwrap();
    });
    maker.layer(&["--format=posix", "--mtime=@1500000000"], |tree| {
        write(&tree.join("a/first"), "replaced: the others keep what they had");
        write(&tree.join(".wh.0"), "");
    });
    maker.check("hard links");
}

#[test]
fn sparse_files_in_every_form() {
    if !ready() {
        return;
    }
    let sparse = |tree: &Path| {
        let file = fs::File::create(tree.join("sparse")).unwrap();
        file.set_len(5 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"in the middle", 2 << 20).unwrap();
        fs::File::create(tree.join("only a hole")).unwrap().set_len(1 << 20).unwrap();
        touch(&tree.join("sparse"), TIME);
        touch(&tree.join("only a hole"), TIME);
    };
    for form in ["--format=gnu", "--sparse-version=0.0", "--sparse-version=0.1", "--sparse-version=1.0"] {
        let mut maker = Maker::new();
        let format = if form.starts_with("--format") { form } else { "--format=posix" };
        maker.layer(&[format, form, "--sparse", "--owner=0"], sparse);
        // umoci knows no sparse files from before pax.
        if format == "--format=gnu" { maker.check_against_layer(form) } else { maker.check(form) }
    }
}

#[test]
fn long_names_of_gnu_and_pax() {
    if !ready() {
        return;
    }
    for format in ["--format=gnu", "--format=posix"] {
        let mut maker = Maker::new();
        maker.layer(&[format, "--mtime=@1500000000"], |tree| {
            let long = ["d".repeat(200), "e".repeat(150), "f".repeat(255)].join("/");
            write(&tree.join(&long), "long");
            symlink("t".repeat(4000), tree.join("to far away")).unwrap();
            fs::hard_link(tree.join(&long), tree.join("near")).unwrap();
            write(&tree.join("bytes").join(OsString::from_vec(vec![0xff, b'\n', b'"', 0x80])), "odd");
            write(&tree.join("-starts with a dash"), "");
            write(&tree.join("  spaces  "), "");
        });
        maker.check(format);
    }
}

#[test]
fn times_before_1970_and_after_2106_and_in_between_seconds() {
    if !ready() {
        return;
    }
    let mut maker = Maker::new();
    maker.layer(&["--format=posix"], |tree| {
        let times = [
            "1969-12-31 23:59:58.25 UTC",
            "1960-01-01 UTC",
            "2200-01-01 UTC",
            "2020-02-02 02:02:02.123456789",
        ];
        for (number, time) in times.into_iter().enumerate() {
            let path = tree.join(number.to_string());
            write(&path, time);
            touch(&path, time);
        }
        fs::create_dir(tree.join("directory")).unwrap();
        touch(&tree.join("directory"), "1950-05-05 05:05:05.5 UTC");
    });
    maker.check("times");
}

#[test]
fn acls_capabilities_and_binary_attributes() {
    if !ready() {
        return;
    }
    let mut maker = Maker::new();
    maker.layer(&["--format=posix", "--mtime=@1500000000"], |tree| {
        let set = |name: &str, key: &str, value: &[u8]| {
            rustix::fs::lsetxattr(tree.join(name), key, value, XattrFlags::empty()).unwrap();
        };
        write(&tree.join("ping"), "x");
        let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        set("ping", "security.capability", &capability);
        write(&tree.join("binary"), "x");
        set("binary", "user.binary", b"\n20 path=evil\n\0\xff=");
        set("binary", "trusted.mine", b"yes");
        write(&tree.join("with acl"), "x");
        // user::rw- group::r-- mask::rw- other::r-- and the user 5 with rw-, as the kernel stores it.
        let mut acl = 2u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in
            [(1u16, 6u16, u32::MAX), (2, 6, 5), (4, 4, u32::MAX), (16, 6, u32::MAX), (32, 4, u32::MAX)]
        {
            acl.extend(tag.to_le_bytes());
            acl.extend(permissions.to_le_bytes());
            acl.extend(id.to_le_bytes());
        }
        set("with acl", "system.posix_acl_access", &acl);
    });
    maker.check("attributes");
}

#[test]
fn devices_pipes_and_special_modes() {
    if !ready() {
        return;
    }
    let mut maker = Maker::new();
    maker.layer(&["--format=posix", "--mtime=@1500000000"], |tree| {
        use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
        let node = |name: &str, kind, major, minor| {
            mknodat(CWD, tree.join(name), kind, Mode::from_raw_mode(0o640), makedev(major, minor)).unwrap();
        };
        node("character", FileType::CharacterDevice, 5, 300);
        node("block", FileType::BlockDevice, 259, 70_000);
        node("pipe", FileType::Fifo, 0, 0);
        for (name, mode, uid, gid) in [
            ("setuid", 0o4755, 0, 0),
            ("setgid", 0o2711, 1, 2),
            ("nothing", 0, 70_000, 4_000_000_000),
            ("sticky", 0o1644, u32::MAX - 1, 3),
        ] {
            write(&tree.join(name), name);
            std::os::unix::fs::chown(tree.join(name), Some(uid), Some(gid)).unwrap();
            rustix::fs::chmod(tree.join(name), Mode::from_raw_mode(mode)).unwrap();
        }
        fs::create_dir(tree.join("shared")).unwrap();
        rustix::fs::chmod(tree.join("shared"), Mode::from_raw_mode(0o3777)).unwrap();
    });
    maker.check("devices");
}

#[test]
fn files_replace_directories_and_links() {
    if !ready() {
        return;
    }
    let mut maker = Maker::new();
    maker.layer(&["--format=posix", "--mtime=@1500000000"], |tree| {
        write(&tree.join("directory/with/files"), "x");
        write(&tree.join("file"), "x");
        symlink("/etc", tree.join("link")).unwrap();
        write(&tree.join("real/etc"), "x");
        symlink("real", tree.join("through")).unwrap();
    });
    maker.layer(&["--format=posix", "--mtime=@1500000001"], |tree| {
        write(&tree.join("directory"), "a file now");
        write(&tree.join("file/in/it"), "a directory now");
        write(&tree.join("link"), "a file now");
    });
    maker.check("replaced");
}

#[test]
fn many_small_layers() {
    if !ready() {
        return;
    }
    let mut maker = Maker::new();
    for number in 0..20 {
        maker.layer(&["--format=posix", "--mtime=@1500000000"], |tree| {
            write(&tree.join(format!("d{}/f{number}", number % 3)), &number.to_string());
            write(&tree.join("every"), &number.to_string());
            if number > 2 {
                write(&tree.join(format!("d{}/.wh.f{}", number % 3, number - 3)), "");
            }
        });
    }
    maker.check("many layers");
}

/// Real images: what the set-up made of Debian's packages, and layers on top of them.
#[test]
fn real_images() {
    if !ready() {
        return;
    }
    let Some(places) = std::env::var_os("BETA9_REAL_IMAGES") else {
        println!("skipped: BETA9_REAL_IMAGES names no layouts; cargo xtask test does");
        return;
    };
    let mut count = 0;
    for layout in std::env::split_paths(&places) {
        compare(&layout, &layout.file_name().unwrap().to_string_lossy(), None);
        count += 1;
    }
    println!("{count} real images");
    assert!(count > 0);
}
