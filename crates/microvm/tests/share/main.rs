//! What a hostile guest gets from the file server: its exports, an error, or a closed connection.
//!
//! The guest here is this test, speaking raw FUSE (linux/fuse.h) over the server's socket.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod guest;
mod hostile;
mod suites;

use std::io::Write;
use std::path::Path;

use guest::*;

#[test]
fn exports_are_there_and_nothing_else_of_the_host() {
    let Some(mut server) = Server::mounted() else { return };
    let read_only = server.lookup(ROOT, "1").unwrap();
    let note = server.lookup(read_only, "note").unwrap();
    let opened = server.ask(OPEN, note, &[0; 8]).unwrap();
    let handle: [u8; 8] = *opened.first_chunk().unwrap();
    let read = [&handle[..], &[0; 8], &64u32.to_le_bytes(), &[0; 20]].concat();
    assert_eq!(server.ask(READ, note, &read).unwrap(), b"hello");

    let file = server.lookup(ROOT, "2").unwrap();
    server.lookup(file, "note").unwrap();
    // The file's neighbours on the host, and the rest of it.
    for (parent, name) in
        [(file, "secret"), (ROOT, "proc"), (ROOT, "etc"), (ROOT, "3"), (read_only, "secret")]
    {
        assert_eq!(server.lookup(parent, name), Err(ENOENT), "{name}");
    }
}

#[test]
fn writing_works_where_it_may_and_device_nodes_nowhere() {
    let Some(mut server) = Server::mounted() else { return };
    let [writable, read_only, file] = ["0", "1", "2"].map(|name| server.lookup(ROOT, name).unwrap());
    let mkdir = [&0o755u32.to_le_bytes()[..], &[0; 4], b"d\0"].concat();
    server.ask(MKDIR, writable, &mkdir).unwrap();
    assert!(server.host.path().join("exports/rw/d").is_dir());
    for parent in [read_only, file, ROOT] {
        assert_eq!(server.ask(MKDIR, parent, &mkdir), Err(EROFS));
    }
    let block_device = 0o060_600u32;
    let mknod = [&block_device.to_le_bytes()[..], &0x800u32.to_le_bytes(), &[0; 8], b"sda\0"].concat();
    assert_eq!(server.ask(MKNOD, writable, &mknod), Err(EPERM));
}

#[test]
fn a_guest_that_breaks_the_protocol_is_hung_up_on() {
    let Some(stranger) = Server::start("c2") else { return };
    assert!(stranger.hung_up(), "another container's mounts were served");

    let mut server = Server::mounted().unwrap();
    server.connection.write_all(&[0xff; 40]).unwrap();
    assert!(server.hung_up(), "a request of 4 GiB was read");

    for name in ["..", "../secret", "/etc/passwd", "0/../../proc/self/root"] {
        let mut server = Server::mounted().unwrap();
        let body = [name.as_bytes(), b"\0"].concat();
        let mut request = (40 + body.len() as u32).to_le_bytes().to_vec();
        request.extend(LOOKUP.to_le_bytes());
        request.extend([0; 8]);
        request.extend(ROOT.to_le_bytes());
        request.extend([0; 16]);
        request.extend(body);
        server.connection.write_all(&request).unwrap();
        assert!(server.hung_up(), "{name} was looked up");
    }
}

#[test]
fn the_process_has_given_up_its_rights() {
    let Some(server) = Server::mounted() else { return };
    let proc = Path::new("/proc").join(server.child.id().to_string());
    let status = std::fs::read_to_string(proc.join("status")).unwrap();
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    // chown, dac_override, dac_read_search, fowner, fsetid, setgid, setuid, setfcap
    assert_eq!(field("CapEff:"), "00000000800000df");
    assert_eq!(field("CapPrm:"), "00000000800000df");
    assert_eq!(field("CapBnd:"), "00000000800000df");
    assert_eq!(field("NoNewPrivs:"), "1");
    // SECCOMP_MODE_FILTER: no file is opened by handle.
    assert_eq!(field("Seccomp:"), "2");
    let mounts = std::fs::read_to_string(proc.join("mountinfo")).unwrap();
    let points: Vec<_> = mounts.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    assert_eq!(points, ["/", "/exports/0", "/exports/1", "/exports/2/note", "/proc/self/fd"]);
}
