//! Guests that mean harm, or whose kernel does.
//!
//! Each ends by looking at a canary beside the exports, which nobody may have touched.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::guest::*;

const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const SETATTR: u32 = 4;
const READLINK: u32 = 5;
const SYMLINK: u32 = 6;
const UNLINK: u32 = 10;
const RMDIR: u32 = 11;
const RENAME: u32 = 12;
const LINK: u32 = 13;
const WRITE: u32 = 16;
const STATFS: u32 = 17;
const RELEASE: u32 = 18;
const SETXATTR: u32 = 21;
const GETXATTR: u32 = 22;
const OPENDIR: u32 = 27;
const READDIR: u32 = 28;
const CREATE: u32 = 35;
const DESTROY: u32 = 38;
const FALLOCATE: u32 = 43;
const READDIRPLUS: u32 = 44;
const RENAME2: u32 = 45;
/// The highest request of any kernel so far, and some.
const MOST: u32 = 56;

const EBADF: i32 = 9;
const EINVAL: i32 = 22;
const EMFILE: i32 = 24;
const O_TRUNC: u32 = 0o1000;

/// What is beside the exports, in a state that is known.
struct Canary {
    path: PathBuf,
    before: (u64, u32, u32, u64, i64, i64),
    names: Vec<PathBuf>,
}

impl Canary {
    fn beside(server: &Server) -> Self {
        let path = server.host.path().join("exports/secret");
        Self { before: Self::facts(&path), names: Self::names(&path), path }
    }

    fn facts(path: &PathBuf) -> (u64, u32, u32, u64, i64, i64) {
        assert_eq!(fs::read(path).unwrap(), b"secret");
        let meta = fs::metadata(path).unwrap();
        (meta.ino(), meta.mode(), meta.uid(), meta.nlink(), meta.mtime(), meta.mtime_nsec())
    }

    fn names(path: &std::path::Path) -> Vec<PathBuf> {
        let listed = fs::read_dir(path.parent().unwrap()).unwrap();
        let mut names: Vec<_> = listed.map(|entry| entry.unwrap().path()).collect();
        names.sort();
        names
    }

    fn is_untouched(&self) {
        assert_eq!(Self::facts(&self.path), self.before);
        assert_eq!(Self::names(&self.path), self.names);
    }
}

/// Numbers that are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_le_bytes()).collect()
}

fn named(body: Vec<u8>, names: &[&str]) -> Vec<u8> {
    names.iter().fold(body, |body, name| [&body[..], name.as_bytes(), b"\0"].concat())
}

fn handle(opened: &[u8]) -> u64 {
    u64::from_le_bytes(*opened.first_chunk().unwrap())
}

/// `struct fuse_read_in`.
fn read_in(handle: u64, offset: u64, size: u32) -> Vec<u8> {
    [longs(&[handle, offset]), words(&[size, 0]), longs(&[0]), words(&[0, 0])].concat()
}

/// `struct fuse_setattr_in` that changes everything there is.
fn setattr_in() -> Vec<u8> {
    const MODE_UID_GID_SIZE_ATIME_MTIME: u32 = 0b11_1111;
    [
        words(&[MODE_UID_GID_SIZE_ATIME_MTIME, 0]),
        longs(&[0, 0, 0, 1, 1, 0]),
        words(&[0, 0, 0, 0o666, 0, 1000, 1000, 0]),
    ]
    .concat()
}

/// `struct fuse_setxattr_in`, a name and a value.
fn attribute() -> Vec<u8> {
    [words(&[1, 0]), b"user.x\0y".to_vec()].concat()
}

#[test]
fn requests_of_noise_are_answered_or_end_the_connection() {
    let Some(first) = Server::mounted() else { return };
    drop(first);
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let mut ended = 0;
    // One server for each run of noise that ended it; some ends are right, a crash is not.
    for _ in 0..40 {
        let mut server = Server::mounted().unwrap();
        let canary = Canary::beside(&server);
        let known = [ROOT, server.export(0), server.export(1), server.export(2)];
        let mut connection = server.connection.try_clone().unwrap();
        let reader = std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while matches!(connection.read(&mut buffer), Ok(count) if count > 0) {}
        });
        for _ in 0..500 {
            // Not those that end it as they should: a name that leads upward, a second beginning.
            let opcode = match numbers.below(u64::from(MOST)) as u32 {
                INIT | LOOKUP => GETATTR,
                opcode => opcode,
            };
            let node = match numbers.below(3) {
                0 => numbers.next(),
                _ => known[numbers.below(4) as usize],
            };
            let mut body: Vec<u8> = (0..numbers.below(120)).map(|_| numbers.next() as u8).collect();
            if numbers.below(2) == 0 {
                // Small numbers go deeper than large ones.
                body.iter_mut().enumerate().filter(|(at, _)| at % 4 != 0).for_each(|(_, byte)| *byte = 0);
            }
            if numbers.below(4) == 0 {
                body.extend(b"name\0../../secret\0");
            }
            let ids = [numbers.below(3) as u32 * 1000, 0];
            if server.send_as(ids, opcode, node, &body).is_err() {
                break;
            }
        }
        let _ = server.connection.shutdown(std::net::Shutdown::Both);
        reader.join().unwrap();
        let status = server.child.wait().unwrap();
        assert_eq!(status.signal(), None, "the server crashed");
        ended += u32::from(!status.success());
        canary.is_untouched();
    }
    assert!(ended < 40, "every server gave up: the noise is not deep enough");
}

#[test]
fn requests_out_of_order_are_errors() {
    let Some(mut early) = Server::start("c1") else { return };
    early.send(LOOKUP, ROOT, b"0\0").unwrap();
    assert!(early.hung_up(), "it was served before it began");
    let mut twice = Server::mounted().unwrap();
    twice.send(INIT, 0, &words(&[7, 31, 1 << 17, 0])).unwrap();
    assert!(twice.hung_up(), "it began twice");

    let mut server = Server::mounted().unwrap();
    let canary = Canary::beside(&server);
    let read_only = server.export(1);
    let note = server.lookup(read_only, "note").unwrap();
    for forged in [0, 1, 77, u64::MAX] {
        assert_eq!(server.ask(READ, note, &read_in(forged, 0, 64)), Err(EBADF), "handle {forged}");
        assert_eq!(server.ask(RELEASE, note, &longs(&[forged, 0, 0])), Err(EBADF), "handle {forged}");
    }
    let opened = handle(&server.ask(OPEN, note, &[0; 8]).unwrap());
    let release = longs(&[opened, 0, 0]);
    // Another file's handle, a directory's as a file's, and after its end.
    assert_eq!(server.ask(READ, read_only, &read_in(opened, 0, 64)), Err(EBADF));
    assert_eq!(server.ask(READDIR, read_only, &read_in(opened, 0, 4096)), Err(EBADF));
    server.ask(RELEASE, note, &release).unwrap();
    assert_eq!(server.ask(RELEASE, note, &release), Err(EBADF));
    assert_eq!(server.ask(READ, note, &read_in(opened, 0, 64)), Err(EBADF));
    // More is forgotten than was ever known; the roots stay.
    for node in [note, note, read_only, ROOT, 12345] {
        server.send(FORGET, node, &longs(&[u64::MAX])).unwrap();
    }
    while server.ask(GETATTR, note, &[0; 16]) != Err(EBADF) {}
    assert!(server.is_well());
    assert!(server.lookup(read_only, "note").is_ok());
    server.ask(DESTROY, 0, &[]).unwrap_or_default();
    assert!(server.is_well(), "the roots are still there");
    canary.is_untouched();
}

#[test]
fn sizes_beyond_reason_are_errors() {
    let Some(mut server) = Server::mounted() else { return };
    let canary = Canary::beside(&server);
    let (writable, read_only) = (server.export(0), server.export(1));
    let note = server.lookup(read_only, "note").unwrap();
    let opened = handle(&server.ask(OPEN, note, &[0; 8]).unwrap());
    for size in [u32::MAX, 1 << 30, (1 << 20) + 4096] {
        assert!(server.ask(READ, note, &read_in(opened, 0, size)).is_err(), "{size} bytes");
    }
    assert_eq!(server.ask(READ, note, &read_in(opened, 0, 1 << 20)).unwrap(), b"hello");
    for offset in [u64::MAX, i64::MAX as u64] {
        let read = server.ask(READ, note, &read_in(opened, offset, 64));
        assert!(read.is_err() || read == Ok(Vec::new()), "offset {offset}");
    }
    let directory = handle(&server.ask(OPENDIR, read_only, &[0; 8]).unwrap());
    for opcode in [READDIR, READDIRPLUS] {
        assert!(server.ask(opcode, read_only, &read_in(directory, 0, u32::MAX)).is_err());
        let _ = server.ask(opcode, read_only, &read_in(directory, u64::MAX, 4096));
        assert!(!server.ask(opcode, read_only, &read_in(directory, 0, 4096)).unwrap().is_empty());
    }
    // No more is set aside than a value can have.
    let before = kilobytes(&server, "VmPeak:");
    let _ = server.ask(GETXATTR, note, &named(words(&[u32::MAX, 0]), &["user.x"]));
    assert!(kilobytes(&server, "VmPeak:") < before + (1 << 20), "memory was set aside");
    let mut create = words(&[2, 0o644, 0, 0]);
    create.extend(b"file\0");
    let made = server.ask(CREATE, writable, &create).unwrap();
    let (node, opened) = (handle(&made), handle(&made[128..]));
    // `struct fuse_write_in` says more than there is.
    let write =
        [longs(&[opened, 0]), words(&[u32::MAX, 0]), longs(&[0]), words(&[2, 0]), b"abc".to_vec()].concat();
    let _ = server.ask(WRITE, node, &write);
    let far = [longs(&[opened, 0, 1 << 62]), words(&[0, 0])].concat();
    let _ = server.ask(FALLOCATE, node, &far);
    assert!(fs::metadata(server.host.path().join("exports/rw/file")).unwrap().len() <= 3);
    // One that says another size than it has is answered all the same.
    assert!(server.ask(SETXATTR, note, &named(words(&[77, 0]), &["user.x", "y"])).is_err());
    assert!(server.is_well());
    canary.is_untouched();
}

fn kilobytes(server: &Server, name: &str) -> u64 {
    server.status(name).split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn links_are_links_and_lead_nowhere() {
    let Some(mut server) = Server::mounted() else { return };
    let canary = Canary::beside(&server);
    let (writable, host) = (server.export(0), server.host.path().join("exports/rw"));
    symlink("loop-b", host.join("loop-a")).unwrap();
    symlink("loop-a", host.join("loop-b")).unwrap();
    symlink(&canary.path, host.join("absolute")).unwrap();
    symlink("../secret", host.join("climbing")).unwrap();
    symlink("..", host.join("up")).unwrap();
    // One of the guest's own making.
    server.ask(SYMLINK, writable, &named(Vec::new(), &["own", "../../../../../../etc/passwd"])).unwrap();
    for name in ["loop-a", "absolute", "climbing", "up", "own"] {
        let link = server.lookup(writable, name).unwrap();
        assert!(!server.ask(READLINK, link, &[]).unwrap().is_empty());
        for flags in [0, 1, 2, O_TRUNC | 2, 0o100, 0o200_000] {
            assert_eq!(server.ask(OPEN, link, &words(&[flags, 0])), Err(EBADF), "{name}, flags {flags:o}");
        }
        assert!(server.lookup(link, "secret").is_err(), "{name} was entered");
        assert!(server.lookup(link, "passwd").is_err(), "{name} was entered");
        assert!(server.ask(OPENDIR, link, &[0; 8]).is_err());
        // Attributes are the link's own, or cannot be set.
        let _ = server.ask(SETATTR, link, &setattr_in());
        let _ = server.ask(SETXATTR, link, &attribute());
        let _ = server.ask(MKDIR, link, &named(words(&[0o755, 0]), &["made"]));
        let _ = server.ask(LINK, writable, &named(longs(&[link]), &["hard"]));
        if let Ok(hard) = server.lookup(writable, "hard") {
            assert_eq!(server.ask(OPEN, hard, &[0; 8]), Err(EBADF), "a link to {name} was followed");
            server.ask(UNLINK, writable, b"hard\0").unwrap();
        }
        canary.is_untouched();
    }
    assert!(server.is_well());
}

#[test]
fn a_directory_that_moves_under_a_lookup_stays_inside() {
    let Some(mut server) = Server::mounted() else { return };
    let canary = Canary::beside(&server);
    let (writable, host) = (server.export(0), server.host.path().join("exports/rw"));
    fs::create_dir_all(host.join("a/b/c")).unwrap();
    let (a, until) = (server.lookup(writable, "a").unwrap(), Instant::now() + Duration::from_secs(2));
    let b = server.lookup(a, "b").unwrap();
    let c = server.lookup(b, "c").unwrap();
    // The host plays along: what was a directory is a link out of the export, again and again.
    let (moving, outside) = (host.clone(), canary.path.parent().unwrap().to_owned());
    let mover = std::thread::spawn(move || {
        while Instant::now() < until {
            fs::rename(moving.join("a/b"), moving.join("elsewhere")).unwrap();
            symlink(&outside, moving.join("a/b")).unwrap();
            fs::remove_file(moving.join("a/b")).unwrap();
            fs::rename(moving.join("elsewhere"), moving.join("a/b")).unwrap();
        }
    });
    let mut looked = 0;
    while Instant::now() < until {
        looked += 1;
        for node in [a, b, c] {
            assert!(server.lookup(node, "secret").is_err(), "the canary was found");
        }
        if let Ok(found) = server.lookup(a, "b") {
            assert!(server.lookup(found, "secret").is_err(), "the canary was found");
            assert!(server.lookup(found, "rw").is_err(), "the export's parent was found");
        }
        let _ = server.ask(RENAME, a, &named(longs(&[writable]), &["b", "z"]));
        let _ = server.ask(RENAME, writable, &named(longs(&[a]), &["z", "b"]));
    }
    let _ = mover.join();
    assert!(looked > 10, "{looked} rounds");
    canary.is_untouched();
}

#[test]
fn a_hundred_thousand_open_files_are_the_guests_own_problem() {
    let Some(mut server) = Server::mounted() else { return };
    let read_only = server.export(1);
    let note = server.lookup(read_only, "note").unwrap();
    let mut refused = 0;
    // As many at a time as both sockets hold.
    for _ in 0..1000 {
        for _ in 0..100 {
            server.send(OPEN, note, &[0; 8]).unwrap();
        }
        for _ in 0..100 {
            match server.reply().unwrap().1 {
                Ok(_) => {}
                Err(EMFILE) => refused += 1,
                Err(other) => panic!("errno {other}"),
            }
        }
    }
    // What is full is the server's own table: this process, and others, open files as before.
    fs::File::open("/dev/null").unwrap();
    assert!(server.ask(GETATTR, note, &[0; 16]).is_ok(), "after {refused} refusals");
    assert!(kilobytes(&server, "VmRSS:") < 128 << 10, "{} kB", kilobytes(&server, "VmRSS:"));
    drop(server.connection.shutdown(std::net::Shutdown::Both));
    assert_eq!(server.child.wait().unwrap().signal(), None);
}

#[test]
fn a_guest_that_does_not_read_holds_up_itself() {
    let Some(mut server) = Server::mounted() else { return };
    let read_only = server.export(1);
    let file = server.host.path().join("exports/ro/big");
    fs::write(&file, vec![7; 1 << 20]).unwrap();
    let big = server.lookup(read_only, "big").unwrap();
    let opened = handle(&server.ask(OPEN, big, &[0; 8]).unwrap());
    server.connection.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut sent = 0u32;
    while server.send(READ, big, &read_in(opened, 0, 1 << 20)).is_ok() {
        sent += 1;
        assert!(sent < 1_000_000, "the server takes requests without end");
    }
    assert!(kilobytes(&server, "VmRSS:") < 64 << 10, "{} kB", kilobytes(&server, "VmRSS:"));
    drop(server.connection.shutdown(std::net::Shutdown::Both));
    assert_eq!(server.child.wait().unwrap().signal(), None);
}

#[test]
fn names_of_more_than_a_name_are_refused_everywhere() {
    let Some(mut server) = Server::mounted() else { return };
    let canary = Canary::beside(&server);
    let (writable, host) = (server.export(0), server.host.path().join("exports/rw"));
    fs::write(host.join("file"), "").unwrap();
    let file = server.lookup(writable, "file").unwrap();
    for name in ["..", ".", "../secret", "../made", "/tmp/b9-made", "", "a/b"] {
        let requests: [(&str, u32, Vec<u8>); 9] = [
            ("mkdir", MKDIR, named(words(&[0o755, 0]), &[name])),
            ("mknod", MKNOD, named(words(&[0o100_644, 0, 0, 0]), &[name])),
            ("symlink", SYMLINK, named(Vec::new(), &[name, "x"])),
            ("unlink", UNLINK, named(Vec::new(), &[name])),
            ("rmdir", RMDIR, named(Vec::new(), &[name])),
            ("rename from", RENAME, named(longs(&[writable]), &[name, "taken"])),
            ("rename to", RENAME, named(longs(&[writable]), &["file", name])),
            ("link", LINK, named(longs(&[file]), &[name])),
            ("create", CREATE, named(words(&[2, 0o644, 0, 0]), &[name])),
        ];
        for (what, opcode, body) in requests {
            let answer = server.ask(opcode, writable, &body);
            assert!(answer.is_err(), "{what} of {name:?}: {answer:?}");
        }
    }
    assert!(host.join("file").exists() && !host.join("taken").exists());
    assert!(server.is_well());
    canary.is_untouched();
}

#[test]
fn no_kind_of_device_node_can_be_made() {
    let Some(mut server) = Server::mounted() else { return };
    let (writable, host) = (server.export(0), server.host.path().join("exports/rw"));
    // overlayfs's whiteout, which needs no capability, is one of them.
    for (mode, device) in [(0o020_666u32, 0u32), (0o020_666, 0x103), (0o060_660, 0x800), (0o060_660, 0)] {
        let made = server.ask(MKNOD, writable, &named(words(&[mode, device, 0, 0]), &["device"]));
        assert_eq!(made, Err(EPERM), "mode {mode:o}, device {device:x}");
    }
    fs::write(host.join("file"), "").unwrap();
    let whiteout = [longs(&[writable]), words(&[4, 0])].concat();
    assert_eq!(server.ask(RENAME2, writable, &named(whiteout, &["file", "moved"])), Err(EINVAL));
    for (name, mode) in [("fifo", 0o010_600u32), ("socket", 0o140_600), ("regular", 0o100_600)] {
        server.ask(MKNOD, writable, &named(words(&[mode, 0, 0, 0]), &[name])).unwrap();
        assert!(host.join(name).symlink_metadata().is_ok());
    }
    // What can be made is not opened where that would wait, or reach somebody.
    for name in ["fifo", "socket"] {
        let node = server.lookup(writable, name).unwrap();
        assert_eq!(server.ask(OPEN, node, &words(&[2, 0])), Err(EBADF), "{name}");
    }
}

#[test]
fn what_is_read_only_is_so_on_the_host() {
    let Some(mut server) = Server::mounted() else { return };
    let read_only = server.export(1);
    let note = server.lookup(read_only, "note").unwrap();
    let opened = handle(&server.ask(OPEN, note, &[0; 8]).unwrap());
    let before = fs::metadata(server.host.path().join("exports/ro/note")).unwrap();
    let write = [longs(&[opened, 0]), words(&[1, 0]), longs(&[0]), words(&[0, 0]), b"x".to_vec()].concat();
    let requests: [(&str, u32, u64, Vec<u8>); 12] = [
        ("open to write", OPEN, note, words(&[2, 0])),
        ("open to truncate", OPEN, note, words(&[O_TRUNC | 2, 0])),
        ("setattr", SETATTR, note, setattr_in()),
        ("setxattr", SETXATTR, note, attribute()),
        ("unlink", UNLINK, read_only, named(Vec::new(), &["note"])),
        ("rename", RENAME, read_only, named(longs(&[read_only]), &["note", "moved"])),
        ("link", LINK, read_only, named(longs(&[note]), &["hard"])),
        ("symlink", SYMLINK, read_only, named(Vec::new(), &["soft", "x"])),
        ("mknod", MKNOD, read_only, named(words(&[0o100_644, 0, 0, 0]), &["made"])),
        ("create", CREATE, read_only, named(words(&[2, 0o644, 0, 0]), &["made"])),
        ("mkdir", MKDIR, read_only, named(words(&[0o755, 0]), &["made"])),
        ("write by a handle for reading", WRITE, note, write),
    ];
    for (what, opcode, node, body) in requests {
        let answer = server.ask(opcode, node, &body);
        assert!(matches!(answer, Err(EROFS | EBADF)), "{what}: {answer:?}");
    }
    server.ask(STATFS, read_only, &[]).unwrap();
    let after = fs::metadata(server.host.path().join("exports/ro/note")).unwrap();
    let facts = |meta: &fs::Metadata| (meta.mode(), meta.uid(), meta.len(), meta.mtime_nsec(), meta.nlink());
    assert_eq!(facts(&after), facts(&before));
    assert_eq!(fs::read_dir(server.host.path().join("exports/ro")).unwrap().count(), 1);
}

#[test]
fn every_thread_makes_the_calls_of_the_list_alone() {
    let Some(mut server) = Server::mounted() else { return };
    assert!(server.is_well());
    let tasks = fs::read_dir(format!("/proc/{}/task", server.child.id())).unwrap();
    let filters: Vec<_> = tasks
        .map(|task| {
            let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            let count = status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:"));
            count.unwrap().trim().to_owned()
        })
        .collect();
    assert!(filters.len() > 4 && filters.iter().all(|count| count == "2"), "{filters:?}");
    server.connection.flush().unwrap();
}
