//! Every kind is leaked for real, seen by name, and no longer seen when it is gone.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::*;

const SOON: Duration = Duration::from_secs(5);

/// Whether this is root on a machine with what the test needs; says why not.
fn can(program: &str) -> bool {
    let missing = if rustix::process::geteuid().is_root() {
        Command::new(program).arg("--help").output().err().map(|error| format!("{program}: {error}"))
    } else {
        Some("not root".to_owned())
    };
    if let Some(why) = &missing {
        eprintln!("skipped: {why}");
    }
    missing.is_none()
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A name that nothing else on the machine has, short enough for a link.
fn name(test: &str) -> String {
    format!("lk{test}{}", std::process::id())
}

/// A shell that stays until its input ends, with `name` on its command line.
fn waits_for_input(name: &str) -> Child {
    Command::new("sh").args(["-c", "read x; exit", name]).stdin(Stdio::piped()).spawn().unwrap()
}

/// Expects exactly `expected`, each as kind and a part of its words.
fn assert_leaks(watch: &Watch, expected: &[(Kind, &str)]) {
    let leaks = watch.leaks().unwrap();
    let found: Vec<_> = leaks.iter().collect();
    assert_eq!(found.len(), expected.len(), "{leaks}");
    for (kind, part) in expected {
        assert!(
            found.iter().any(|leak| leak.kind == *kind && leak.what.contains(part)),
            "{kind} {part}: {leaks}"
        );
    }
}

fn assert_none(watch: &Watch) {
    assert_eq!(watch.settle(SOON).unwrap().to_string(), "");
}

#[test]
fn a_process_and_what_is_left_of_it() {
    let name = name("p");
    let watch = Scope::new().mentioning(&name).watch().unwrap();
    let mut child = waits_for_input(&name);
    assert_leaks(&watch, &[(Kind::Process, &format!("{} sh `sh -c read x; exit {name}`", child.id()))]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_none(&watch);

    // One that ended has no command line any more, only what it was called.
    let program = tempfile::tempdir().unwrap();
    let program = program.path().join(&name);
    // No copy: whoever starts a program meanwhile would have it open for writing for a moment, and nothing could run it.
    std::os::unix::fs::symlink("/bin/true", &program).unwrap();
    let mut child = Command::new(&program).stdout(Stdio::piped()).spawn().unwrap();
    std::io::copy(&mut child.stdout.take().unwrap(), &mut std::io::sink()).unwrap();
    let end = Instant::now() + SOON;
    while !watch.leaks().unwrap().to_string().contains("(ended, nobody waited for it)") {
        assert!(Instant::now() < end, "{}", watch.leaks().unwrap());
    }
    child.wait().unwrap();
    assert_none(&watch);
}

#[test]
fn a_process_stays_the_same_when_it_executes_something_else() {
    let mut child =
        Command::new("sh").args(["-c", "read x; exec sleep 100"]).stdin(Stdio::piped()).spawn().unwrap();
    let watch = Scope::new().watch().unwrap();
    drop(child.stdin.take());
    let program = format!("/proc/{}/comm", child.id());
    let deadline = Instant::now() + SOON;
    while fs::read_to_string(&program).unwrap() != "sleep\n" {
        assert!(Instant::now() < deadline, "the shell did not become sleep");
        std::thread::yield_now();
    }
    let pid = format!("{} ", child.id());
    let leaks = watch.leaks().unwrap();
    assert!(!leaks.iter().any(|leak| leak.what.starts_with(&pid)), "{leaks}");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_mount() {
    if !can("mount") {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let place = work.path().to_str().unwrap();
    let watch = Scope::new().mentioning(place).watch().unwrap();
    run("mount", &["-t", "tmpfs", "leaked", place]);
    let seen = watch.leaks();
    run("umount", &[place]);
    let leaks = seen.unwrap();
    assert_eq!(leaks.to_string(), format!("mount: {place} is tmpfs leaked of /\n"));
    assert_none(&watch);
}

#[test]
fn a_loop_device() {
    if !can("losetup") {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let file = work.path().join("disk");
    fs::File::create(&file).unwrap().set_len(1 << 20).unwrap();
    let watch = Scope::new().mentioning(file.to_str().unwrap()).watch().unwrap();
    let device = run("losetup", &["--find", "--show", file.to_str().unwrap()]);
    let seen = watch.leaks();
    run("losetup", &["--detach", &device]);
    assert_eq!(seen.unwrap().to_string(), format!("loop device: {device} on {}\n", file.display()));
    assert_none(&watch);
}

#[test]
fn a_cgroup_of_either_version() {
    if !can("true") {
        return;
    }
    let name = name("c");
    let root = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(Path::new);
    let Some(root) = root.into_iter().find(|root| root.join("cgroup.procs").exists()) else {
        eprintln!("skipped: no cgroups are mounted");
        return;
    };
    let watch = Scope::new().mentioning(&name).watch().unwrap();
    let group = root.join(&name);
    fs::create_dir_all(group.join("child")).unwrap();
    let seen = watch.leaks();
    fs::remove_dir(group.join("child")).unwrap();
    fs::remove_dir(&group).unwrap();
    let shown = group.display();
    assert_eq!(seen.unwrap().to_string(), format!("cgroup: {shown}\ncgroup: {shown}/child\n"));
    assert_none(&watch);
}

#[test]
fn a_namespace_and_what_was_added_to_one_that_was_there() {
    if !can("ip") || !can("nft") {
        return;
    }
    let (old, new) = (name("o"), name("n"));
    run("ip", &["netns", "add", &old]);
    let watch = Scope::new().mentioning(&old).mentioning(&new).watch().unwrap();
    run("ip", &["netns", "add", &new]);
    run("ip", &["-n", &old, "link", "add", "tap0", "type", "veth", "peer", "name", "peer0"]);
    run("tc", &["-n", &old, "qdisc", "add", "dev", "lo", "ingress"]);
    let inside = format!("--net=/run/netns/{old}");
    run("nsenter", &[&inside, "nft", "add table inet leaked"]);
    let seen = watch.leaks();
    run("ip", &["netns", "delete", &new]);
    run("ip", &["-n", &old, "link", "delete", "tap0"]);
    run("tc", &["-n", &old, "qdisc", "delete", "dev", "lo", "ingress"]);
    run("nsenter", &[&inside, "nft", "delete table inet leaked"]);
    let clean = watch.settle(SOON);
    run("ip", &["netns", "delete", &old]);

    let leaks = seen.unwrap().to_string();
    let place = format!("in /run/netns/{old}\n");
    assert!(leaks.contains(&format!("network namespace: /run/netns/{new}\n")), "{leaks}");
    assert!(leaks.contains(&format!("link: tap0@peer0 {place}")), "{leaks}");
    assert!(leaks.contains(&format!("queueing discipline: ingress on lo {place}")), "{leaks}");
    assert!(leaks.contains(&format!("nft rule: table inet leaked {place}")), "{leaks}");
    assert_eq!(clean.unwrap().to_string(), "");
}

#[test]
fn links_and_rules_here() {
    if !can("ip") || !can("nft") {
        return;
    }
    let name = name("l");
    let watch = Scope::new().mentioning(&name).watch().unwrap();
    run("ip", &["link", "add", &name, "type", "bridge"]);
    run("ip", &["link", "property", "add", "dev", &name, "altname", "a-longer-name-for-it"]);
    run("nft", &[&format!("add table ip {name}")]);
    run("nft", &[&format!("add chain ip {name} c")]);
    for _ in 0..2 {
        run("nft", &[&format!("add rule ip {name} c ip saddr 192.0.2.1 counter drop")]);
    }
    let seen = watch.leaks();
    run("nft", &[&format!("delete table ip {name}")]);
    run("ip", &["link", "delete", &name]);

    let leaks = seen.unwrap().to_string();
    assert!(leaks.contains(&format!("link: {name} (a-longer-name-for-it)\n")), "{leaks}");
    let rule = format!("nft rule: table ip {name} / chain c / ip saddr 192.0.2.1 counter drop\n");
    assert_eq!(leaks.matches(&rule).count(), 2, "{leaks}");
    assert_none(&watch);
}

#[test]
fn files_and_sockets_below_a_directory() {
    let work = tempfile::tempdir().unwrap();
    let (root, kept) = (work.path().join("root"), work.path().join("root/kept"));
    // Everything else on the machine is out of sight: nothing has this name.
    let scope = Scope::new().mentioning("\n").below(&root).except(&kept);
    let watch = scope.watch().unwrap();
    fs::create_dir_all(&kept).unwrap();
    fs::write(kept.join("log"), "").unwrap();
    fs::write(root.join("file"), "").unwrap();
    std::os::unix::fs::symlink("/", root.join("link")).unwrap();
    let listener = UnixListener::bind(root.join("socket")).unwrap();
    let path = root.to_str().unwrap();
    let socket = format!("{path}/socket");
    assert_leaks(
        &watch,
        &[
            (Kind::Path, &format!("{path}/file")),
            (Kind::Path, &format!("{path}/link")),
            (Kind::Path, &socket),
            (Kind::UnixSocket, &socket),
        ],
    );
    for file in ["file", "link", "socket"] {
        fs::remove_file(root.join(file)).unwrap();
    }
    // It still listens where nobody can find it.
    assert_leaks(&watch, &[(Kind::UnixSocket, &socket)]);
    drop(listener);
    assert_none(&watch);
}

#[test]
fn settling_waits_for_what_goes_by_itself_and_no_longer_than_told() {
    let name = name("s");
    let watch = Scope::new().mentioning(&name).watch().unwrap();
    let mut child = Command::new("sh").args(["-c", "sleep 0.3; exit", &name]).spawn().unwrap();
    let waiter = std::thread::spawn(move || child.wait().unwrap());
    assert_none(&watch);
    waiter.join().unwrap();

    let mut child = waits_for_input(&name);
    let start = Instant::now();
    let leaks = watch.settle(Duration::from_millis(200)).unwrap();
    let waited = start.elapsed();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(leaks.iter().count(), 1, "{leaks}");
    assert!(waited >= Duration::from_millis(200) && waited < SOON, "{waited:?}");
}
