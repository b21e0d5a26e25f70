use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use beta9_types::{CopyOut, Placement};
use tar::{Builder, EntryType, Header};

use crate::{Error, ErrorKind, Links, Owner, Tree, Unpacking, pack, unpack};

struct Place {
    outside: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir(outside.path().join("root")).unwrap();
        fs::write(outside.path().join("secret"), "host").unwrap();
        Self { outside }
    }

    fn root(&self) -> PathBuf {
        self.outside.path().join("root")
    }

    fn tree(&self, links: Links) -> Tree {
        Tree::open(&self.root(), links).unwrap()
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root().join(path)).unwrap()
    }

    fn packed(&self, path: &str, follow: bool) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        pack(&self.tree(Links::InRoot), &CopyOut { path: path.to_owned(), follow }, &mut bytes)?;
        Ok(bytes)
    }

    fn unpacked(&self, path: &str, placement: Placement, archive: &[u8]) -> Result<u64, Error> {
        self.unpacked_with(Links::InRoot, path, placement, archive)
    }

    fn unpacked_with(
        &self,
        links: Links,
        path: &str,
        placement: Placement,
        archive: &[u8],
    ) -> Result<u64, Error> {
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let request =
            Unpacking { path: path.to_owned(), placement, owner: Owner::Ids { uid, gid }, name: None };
        unpack(&self.tree(links), &request, archive)
    }
}

fn names(archive: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(archive);
    let mut names: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// An archive as no careful program writes it.
fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, kind, text) in entries {
        let mut header = Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o4755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        let is_link = matches!(kind, EntryType::Symlink | EntryType::Link);
        if is_link {
            header.as_gnu_mut().unwrap().linkname[..text.len()].copy_from_slice(text.as_bytes());
        }
        let content = if is_link { "" } else { text };
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn names_begin_with_the_files_own() {
    let place = Place::new();
    place.write("etc/app/a", "1");
    place.write("etc/app/b/c", "2");
    symlink("/etc/app", place.root().join("link")).unwrap();
    assert_eq!(names(&place.packed("/etc/app/a", false).unwrap()), ["a"]);
    assert_eq!(names(&place.packed("/etc/app", false).unwrap()), ["app/", "app/a", "app/b/", "app/b/c"]);
    assert_eq!(names(&place.packed("/etc/app/.", false).unwrap()).len(), 4);
    assert_eq!(names(&place.packed("/link", false).unwrap()), ["link"]);
    assert_eq!(names(&place.packed("/link", true).unwrap()), ["link/", "link/a", "link/b/", "link/b/c"]);
    assert_eq!(place.packed("/none", false).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(place.packed("/etc/app/a/", false).is_err());
}

#[test]
fn no_link_leads_out_of_the_tree() {
    let place = Place::new();
    let secret = place.outside.path().join("secret");
    symlink(&secret, place.root().join("absolute")).unwrap();
    symlink("../secret", place.root().join("relative")).unwrap();
    symlink("..", place.root().join("up")).unwrap();
    for path in ["/absolute", "/relative", "/up/secret", "/../secret"] {
        let error = place.packed(path, true).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{path}");
    }
    place.write("a", "new");
    let one = place.packed("/a", false).unwrap();
    place.unpacked("/relative", Placement::Named, &one).unwrap();
    assert_eq!(fs::read_to_string(&secret).unwrap(), "host");
}

#[test]
fn what_is_no_file_is_left_alone() {
    let place = Place::new();
    place.write("d/file", "x");
    let pipe = rustix::fs::CWD;
    rustix::fs::mknodat(
        pipe,
        place.root().join("d/pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    assert_eq!(names(&place.packed("/d", false).unwrap()), ["d/", "d/file"]);
    assert_eq!(place.packed("/d/pipe", false).unwrap_err().kind(), ErrorKind::Refused);
}

#[test]
fn destinations_follow_dockers_rule() {
    let from = Place::new();
    from.write("src/x", "x");
    from.write("file", "f");
    let (file, directory, contents) = (
        from.packed("/file", false).unwrap(),
        from.packed("/src", false).unwrap(),
        from.packed("/src/.", false).unwrap(),
    );
    let to = Place::new();
    fs::create_dir(to.root().join("dir")).unwrap();
    let put = |path: &str, archive: &[u8]| to.unpacked(path, Placement::Named, archive);
    put("/dir", &file).unwrap();
    put("/dir/", &file).unwrap();
    put("/new-name", &file).unwrap();
    put("/new-name", &file).unwrap();
    put("/dir", &directory).unwrap();
    put("/renamed", &directory).unwrap();
    put("/made", &contents).unwrap();
    put("/dir", &contents).unwrap();
    for (path, text) in [
        ("dir/file", "f"),
        ("new-name", "f"),
        ("dir/src/x", "x"),
        ("renamed/x", "x"),
        ("made/x", "x"),
        ("dir/x", "x"),
    ] {
        assert_eq!(to.read(path), text, "{path}");
    }
    for (path, archive) in [
        ("/none/", &file),
        ("/none/a", &file),
        ("/new-name", &directory),
        ("/new-name/", &file),
        ("/new-name", &contents),
    ] {
        assert!(put(path, archive).is_err(), "{path} was accepted");
    }
    assert!(to.unpacked("/new-name", Placement::Unpacked, &file).is_err());
    to.unpacked("/dir", Placement::Unpacked, &archive(&[("a/b", EntryType::Regular, "t")])).unwrap();
    assert_eq!(to.read("dir/a/b"), "t");
}

#[test]
fn an_archive_does_not_leave_its_destination() {
    let to = Place::new();
    fs::create_dir(to.root().join("d")).unwrap();
    let evil: [&[(&str, EntryType, &str)]; 4] = [
        &[("x/../../../secret", EntryType::Regular, "evil")],
        &[("x", EntryType::Symlink, "../.."), ("x/secret", EntryType::Regular, "evil")],
        &[("x", EntryType::Directory, ""), ("x/l", EntryType::Link, "../../secret")],
        &[("x", EntryType::Symlink, "../../secret"), ("y", EntryType::Link, "x")],
    ];
    for entries in evil {
        to.unpacked_with(Links::Refused, "d", Placement::Named, &archive(entries)).unwrap_err();
    }
    // An absolute name is one below the destination.
    let absolute = archive(&[("/etc/x", EntryType::Regular, "fine")]);
    to.unpacked_with(Links::Refused, "d", Placement::Unpacked, &absolute).unwrap();
    assert_eq!(to.read("d/etc/x"), "fine");
    assert_eq!(fs::read_to_string(to.outside.path().join("secret")).unwrap(), "host");
    // A link that is replaced by a file is not written through.
    let replaced = archive(&[("z", EntryType::Symlink, "../../secret"), ("z", EntryType::Regular, "own")]);
    to.unpacked_with(Links::Refused, "d", Placement::Unpacked, &replaced).unwrap();
    assert_eq!(to.read("d/z"), "own");
    assert_eq!(fs::read_to_string(to.outside.path().join("secret")).unwrap(), "host");
}

#[test]
fn modes_and_times_stay_and_foreign_rights_do_not() {
    let to = Place::new();
    let one = archive(&[
        ("d/", EntryType::Directory, ""),
        ("d/program", EntryType::Regular, "x"),
        ("d/null", EntryType::Char, ""),
    ]);
    assert_eq!(to.unpacked("/", Placement::Named, &one).unwrap(), 1);
    for path in ["d", "d/program"] {
        let meta = fs::metadata(to.root().join(path)).unwrap();
        assert_eq!(meta.permissions().mode() & 0o7777, 0o755, "{path}");
        assert_eq!(meta.mtime(), 1_000_000_000, "{path}");
    }
    assert!(!to.root().join("d/null").exists());
}

#[test]
fn a_deep_tree_and_long_names_survive() {
    let from = Place::new();
    let long = "n".repeat(200);
    from.write(&format!("t/{long}/{long}/{long}"), "deep");
    symlink(&long, from.root().join("t/link")).unwrap();
    let to = Place::new();
    to.unpacked("/", Placement::Named, &from.packed("/t", false).unwrap()).unwrap();
    assert_eq!(to.read(&format!("t/{long}/{long}/{long}")), "deep");
    assert_eq!(fs::read_link(to.root().join("t/link")).unwrap(), Path::new(&long));
    let mut deep = from.root().join("deep");
    for _ in 0..300 {
        deep.push("d");
    }
    fs::create_dir_all(&deep).unwrap();
    assert_eq!(from.packed("/deep", false).unwrap_err().kind(), ErrorKind::Refused);
}

#[test]
fn an_archive_that_was_cut_off_is_noticed() {
    let whole = archive(&[("a", EntryType::Regular, "text"), ("b", EntryType::Regular, &"x".repeat(2000))]);
    for end in [0, 100, 512, 600, 1024, 1600, 2000, whole.len() - 1024] {
        let to = Place::new();
        assert!(to.unpacked("/", Placement::Unpacked, &whole[..end]).is_err(), "{end} bytes were enough");
    }
    Place::new().unpacked("/", Placement::Unpacked, &whole).unwrap();
}

#[test]
fn only_what_was_asked_for_arrives() {
    let to = Place::new();
    let put = |name: &str, entries: &[(&str, EntryType, &str)]| {
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let owner = Owner::Ids { uid, gid };
        let (path, name) = (String::new(), Some(name.to_owned()));
        let request = Unpacking { path, placement: Placement::Named, owner, name };
        unpack(&to.tree(Links::Refused), &request, archive(entries).as_slice())
    };
    let regular = EntryType::Regular;
    assert!(put("a", &[(".bashrc", regular, "evil")]).is_err());
    assert!(put("a", &[("a", regular, "fine"), (".bashrc", regular, "evil")]).is_err());
    assert!(put("a", &[("./", EntryType::Directory, ""), (".bashrc", regular, "evil")]).is_err());
    assert!(put("", &[("a", regular, "x")]).is_err());
    assert!(!to.root().join(".bashrc").exists());
    put("", &[("./", EntryType::Directory, ""), ("b", regular, "x")]).unwrap();
    assert_eq!((to.read("a"), to.read("b")), ("fine".to_owned(), "x".to_owned()));
}
