//! The guest's init in a real machine: QEMU without hardware acceleration, a real kernel, vsock to this test.
//!
//! Needs the guest files of `cargo xtask guest` (looked for in `BETA9_GUEST_DIR`, or `target/guest` of the workspace),
//! `qemu-system-x86_64`, `vhost-device-vsock`, `mkfs.erofs`, `mkfs.ext4` and a static `busybox`. Where one is missing
//! every test here is a printed skip. Each boot costs seconds, so a test asks one machine many questions.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod host;
mod image;
mod share;
mod spec;

use beta9_wire::{
    FromGuest, GuestExit, GuestMount, Identity, MountSource, Resources, Rlimit, StartFailure, ToGuest,
    WritableLayer,
};

use crate::host::Guest;
use crate::spec::{Wanted, shell};

#[test]
fn a_container_says_hi_and_its_exit_code_arrives() {
    let Some(mut guest) = Guest::boot() else { return };
    let outcome = guest.run(&shell("echo hi; echo oh >&2; exit 7")).unwrap();
    assert_eq!(
        (outcome.stdout.as_slice(), outcome.stderr.as_slice()),
        (b"hi\n".as_slice(), b"oh\n".as_slice())
    );
    let exit = GuestExit { code: 7, signal: 0, oom: false, stdout_bytes: 3, stderr_bytes: 3 };
    assert_eq!(outcome.exit, exit);
    guest.shut_down();
}

/// What a script prints, in a container that ends well.
fn output_of(guest: &mut Guest, wanted: &Wanted) -> String {
    let outcome = guest.run(wanted).unwrap();
    let (stdout, stderr) =
        (String::from_utf8(outcome.stdout).unwrap(), String::from_utf8_lossy(&outcome.stderr));
    assert_eq!((outcome.exit.code, outcome.exit.signal), (0, 0), "stdout: {stdout}\nstderr: {stderr}");
    stdout
}

#[test]
fn a_container_is_what_its_spec_says() {
    let Some(mut guest) = Guest::boot() else { return };

    let mut wanted = shell(
        "id; umask; pwd; hostname; echo \"$GREETING\"; grep -E '^(Cap|Sig|NoNew)' /proc/self/status; ulimit -n; echo > /dev/null && echo > /dev/stdout",
    );
    let process = &mut wanted.spec.process;
    process.identity = Identity { uid: 1000, gid: 1001, groups: vec![7, 8], umask: Some(0o027) };
    process.cwd = "/made/here".to_owned();
    process.env.push("GREETING=hello  world".to_owned());
    process.rlimits.push(Rlimit { resource: 7, soft: 123, hard: 456 });
    let text = output_of(&mut guest, &wanted);
    let line = |start: &str| text.lines().find_map(|line| line.strip_prefix(start)).unwrap().trim();
    assert!(text.starts_with("uid=1000 gid=1001 groups=7,8\n0027\n/made/here\nguest-test\n"), "{text}");
    assert!(text.contains("\nhello  world\n") && text.ends_with("\n123\n\n"), "{text}");
    assert_eq!(line("CapBnd:"), "00000000a80425fb");
    assert_eq!(line("CapPrm:"), "0000000000000000", "an unprivileged user gets nothing through an exec");
    assert_eq!(
        (line("NoNewPrivs:"), line("SigIgn:"), line("SigBlk:")),
        ("1", "0000000000000000", "0000000000000000")
    );

    let mut wanted = shell("cat /proc/self/status");
    wanted.spec.process.identity.uid = 1000;
    let capabilities = &mut wanted.spec.process.capabilities;
    (capabilities.inheritable, capabilities.ambient) = (0x400, 0x400);
    let text = output_of(&mut guest, &wanted);
    assert!(
        text.contains("CapAmb:\t0000000000000400\n") && text.contains("CapEff:\t0000000000000400\n"),
        "{text}"
    );

    let text = output_of(
        &mut guest,
        &shell("cat /proc/self/status; cat /proc/self/oom_score_adj; ls /proc/self/fd"),
    );
    assert!(
        text.contains("CapEff:\t00000000a80425fb\n") && text.contains("CapInh:\t0000000000000000\n"),
        "{text}"
    );
    // The last one is the listing's own.
    assert!(text.ends_with("\n0\n0\n1\n2\n3\n"), "{text}");

    guest.shut_down();
}

#[test]
fn a_container_sees_its_own_machine_only() {
    let Some(mut guest) = Guest::boot() else { return };

    let text = output_of(
        &mut guest,
        &shell("echo $$; ps -o pid= | wc -l; cat /proc/self/cgroup; ls -d /proc/[0-9]*; ls /"),
    );
    assert!(text.starts_with("1\n"), "{text}");
    assert!(text.contains("\n0::/\n"), "{text}");
    assert!(
        text.ends_with("bin\ndangling\ndev\netc\nlost+found\nproc\nsys\ntmp\n")
            || text.ends_with("bin\ndangling\ndev\netc\nproc\nsys\ntmp\n"),
        "{text}"
    );

    let text = output_of(
        &mut guest,
        &shell(
            "ls /dev; wc -c < /dev/null; head -c 3 /dev/zero | wc -c; head -c 5 /dev/urandom | wc -c; stat -c %a /dev/shm; readlink /dev/fd",
        ),
    );
    assert_eq!(
        text,
        "fd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n0\n3\n5\n1777\n/proc/self/fd\n"
    );

    // No mount of the machine is left over, the container's own ones have the options asked for.
    let text = output_of(&mut guest, &shell("cat /proc/self/mounts"));
    let targets: Vec<&str> = text.lines().map(|line| line.split(' ').nth(1).unwrap()).collect();
    assert_eq!(
        targets,
        ["/", "/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup"]
    );
    let options = |target: &str| {
        text.lines().find(|line| line.split(' ').nth(1) == Some(target)).unwrap().split(' ').nth(3).unwrap()
    };
    assert!(options("/sys").starts_with("ro,nosuid,nodev,noexec"), "{text}");
    assert!(options("/").starts_with("rw"), "{text}");

    guest.shut_down();
}

#[test]
fn what_is_to_be_protected_is_protected() {
    let Some(mut guest) = Guest::boot() else { return };

    let script = "wc -c < /proc/meminfo; ls /proc/acpi | wc -l; ls /proc/scsi /proc/no-such 2>/dev/null
        echo 1 2>/dev/null > /proc/sys/vm/overcommit_memory || echo refused; echo x 2>/dev/null > /file || echo refused
        echo x > /tmp/file && cat /tmp/file; touch /dev/new && echo touched; grep -c ' /proc/sys proc ro' /proc/mounts";
    let mut wanted = shell(script);
    wanted.spec.masked_paths =
        ["/proc/meminfo", "/proc/acpi", "/proc/no-such", "/etc/passwd/below"].map(str::to_owned).to_vec();
    wanted.spec.readonly_paths = ["/proc/sys", "/proc/nothing"].map(str::to_owned).to_vec();
    wanted.spec.readonly_root = true;
    wanted.spec.mounts.push(GuestMount {
        target: "/tmp".to_owned(),
        source: MountSource::Filesystem("tmpfs".to_owned()),
        flags: 0,
        data: "size=1m".to_owned(),
    });
    assert_eq!(output_of(&mut guest, &wanted), "0\n0\nrefused\nrefused\nx\ntouched\n1\n");

    // A target behind a link is made in the container's root, never in the machine's.
    let mut wanted = shell(
        "ls -d /somewhere/else/below; grep -c ' /somewhere/else/below tmpfs' /proc/mounts; cat /proc/sys/kernel/msgmax",
    );
    wanted.spec.mounts.push(GuestMount {
        target: "/../dangling/below".to_owned(),
        source: MountSource::Filesystem("tmpfs".to_owned()),
        flags: 0,
        data: String::new(),
    });
    wanted.spec.sysctls.push(("kernel.msgmax".to_owned(), "4321".to_owned()));
    assert_eq!(output_of(&mut guest, &wanted), "/somewhere/else/below\n1\n4321\n");

    let mut refused = |change: fn(&mut Wanted)| {
        let mut wanted = shell("true");
        change(&mut wanted);
        let (failure, message) = guest.run(&wanted).unwrap_err();
        assert_eq!(failure, StartFailure::Setup);
        message
    };
    assert!(
        refused(|w| w.spec.mounts[0].source = MountSource::Filesystem("ext4".to_owned()))
            .contains("\"ext4\"")
    );
    assert!(refused(|w| w.spec.mounts[0].target = "//.".to_owned()).contains("over the container's root"));
    assert!(refused(|w| w.spec.sysctls.push(("../x".to_owned(), String::new()))).contains("../x"));
    assert!(refused(|w| w.root.drive = 9).contains("/dev/vdj"));
    assert!(refused(|w| w.root.format = "vfat".to_owned()).contains("vfat"));

    // After all these failures nothing is in the way of the next container.
    assert_eq!(output_of(&mut guest, &shell("echo still here")), "still here\n");
    guest.shut_down();
}

#[test]
fn streams_carry_every_byte() {
    let Some(mut guest) = Guest::boot() else { return };

    let script = "cd /bin; cat busybox busybox busybox busybox busybox busybox; cat busybox >&2";
    let outcome = guest.run(&shell(script)).unwrap();
    let busybox = std::fs::read("/bin/busybox").unwrap();
    assert!(outcome.stdout.len() > 10_000_000);
    assert!(outcome.stdout == busybox.repeat(6) && outcome.stderr == busybox, "output arrived changed");

    let mut wanted = shell("cat");
    wanted.spec.process.stdin = true;
    wanted.input = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    let outcome = guest.run(&wanted).unwrap();
    assert!(outcome.stdout == wanted.input, "stdin was changed on its way through cat");

    // A process that does not read its input ends all the same, and so does one without any.
    wanted.spec.process.args = ["head", "-c", "3"].map(str::to_owned).to_vec();
    wanted.input = b"abcdef".repeat(200_000);
    assert_eq!(guest.run(&wanted).unwrap().stdout, b"abc");
    assert_eq!(guest.run(&shell("cat; echo end")).unwrap().stdout, b"end\n");

    guest.shut_down();
}

#[test]
fn ends_are_told_apart() {
    let Some(mut guest) = Guest::boot() else { return };

    // From inside, the init of a PID namespace is safe from its own kind; from outside it is not from SIGKILL.
    let wanted = shell("trap 'echo got it; exit 3' TERM; echo ready; while :; do sleep 0.1; done");
    let id = guest.start(&wanted).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    guest.send(&ToGuest::Signal { container: id.clone(), signal: 15, all: false });
    let outcome = guest.wait(&id);
    assert_eq!((outcome.exit.code, outcome.stdout.as_slice()), (3, b"ready\ngot it\n".as_slice()));

    let id = guest.start(&shell("sleep 1000 & sleep 1000")).unwrap();
    guest.send(&ToGuest::Signal { container: id.clone(), signal: 9, all: true });
    let exit = guest.wait(&id).exit;
    assert_eq!((exit.code, exit.signal, exit.oom), (0, 9, false));

    // The init is killed for memory.
    let mut wanted = shell("exec tail /dev/zero");
    wanted.spec.resources.memory_max = Some(32 << 20);
    let exit = guest.run(&wanted).unwrap().exit;
    assert_eq!((exit.signal, exit.oom), (9, true));

    // An allocation larger than the machine is no error in itself, as on a large host.
    let mut wanted = shell("exec dd if=/dev/zero of=/dev/null bs=1G count=1");
    wanted.spec.resources.memory_max = Some(32 << 20);
    let exit = guest.run(&wanted).unwrap().exit;
    assert_eq!((exit.signal, exit.oom), (9, true));

    // Without a limit of its own a container cannot take the machine with it either.
    let exit = guest.run(&shell("exec tail /dev/zero")).unwrap().exit;
    assert_eq!((exit.signal, exit.oom), (9, true));

    // A child is killed for memory and the init goes on: docker's semantics.
    let mut wanted = shell(
        "tail /dev/zero; echo $?; cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max /sys/fs/cgroup/cpu.max",
    );
    wanted.spec.resources =
        Resources { memory_max: Some(32 << 20), pids_max: Some(50), cpu_max: Some((50_000, 100_000)) };
    let outcome = guest.run(&wanted).unwrap();
    assert_eq!(String::from_utf8_lossy(&outcome.stdout), "137\n33554432\n50\n50000 100000\n");
    assert_eq!((outcome.exit.code, outcome.exit.oom), (0, false));

    // The host sets the clock at any time; entropy it brings along is taken.
    let late_ns = 2_500_000_000u64 * 1_000_000_000;
    guest.send(&ToGuest::Renew { unix_ns: late_ns, entropy: [7; 32] });
    let text = output_of(&mut guest, &shell("date +%s"));
    let seconds: u64 = text.trim().parse().unwrap();
    assert!((2_500_000_000..2_500_000_300).contains(&seconds), "{text}");

    // What the init leaves behind dies with it, and does not keep the streams open.
    let outcome = guest.run(&shell("sleep 1000 & exit 5")).unwrap();
    assert_eq!(outcome.exit.code, 5);

    guest.shut_down();
}

#[test]
fn a_writable_layer_on_a_drive_keeps_what_is_written() {
    let Some(mut guest) = Guest::boot() else { return };
    let mut wanted = shell("echo 1 > /first; rm /etc/passwd; df / | tail -1; stat -c '%a %u' /");
    wanted.root.writable = WritableLayer::Drive(1);
    let text = output_of(&mut guest, &wanted);
    assert!(text.contains("overlay") && text.ends_with("755 0\n"), "{text}");
    wanted.spec.process.args[2] = "cat /first; ls /etc".to_owned();
    assert_eq!(output_of(&mut guest, &wanted), "1\n");

    // Two containers at once, each with what is its own.
    let one =
        guest.start(&shell("hostname > /name; sleep 1; cat /name; set -- /proc/[0-9]*; echo $#")).unwrap();
    let mut other = shell("hostname > /name; sleep 2; cat /name");
    other.spec.hostname = "other".to_owned();
    let two = guest.start(&other).unwrap();
    let (one, two) = (guest.wait(&one), guest.wait(&two));
    assert_eq!(
        (one.stdout.as_slice(), two.stdout.as_slice()),
        (b"guest-test\n1\n".as_slice(), b"other\n".as_slice())
    );

    // A start of nothing is an answer, other strays are ignored.
    let nobody = guest.new_id();
    guest.send(&ToGuest::ExitAck { container: nobody.clone() });
    guest.send(&ToGuest::Signal { container: nobody.clone(), signal: 9, all: true });
    guest.send(&ToGuest::Start { container: nobody.clone() });
    assert!(
        matches!(guest.receive(), FromGuest::Failed { container, failure: StartFailure::Setup, .. } if container == nobody)
    );
    guest.shut_down();
}

#[test]
fn shares_reach_the_host_and_read_only_ones_stay_so() {
    let Some(mut guest) = Guest::boot() else { return };
    guest.files.lock().unwrap().insert("0/hello".to_owned(), b"from the host\n".to_vec());
    guest.files.lock().unwrap().insert("0/big".to_owned(), Vec::new());
    guest.files.lock().unwrap().insert("1/conf".to_owned(), b"setting\n".to_vec());
    guest.files.lock().unwrap().insert("1/secret".to_owned(), b"not shared\n".to_vec());

    const READ_ONLY: u64 = 1;
    let share = |target: &str, source, flags| GuestMount {
        target: target.to_owned(),
        source,
        flags,
        data: String::new(),
    };
    let mut wanted = shell(
        "cat /data/hello /etc/conf; ls /etc; { echo 2>/dev/null > /etc/conf; } 2>/dev/null || echo refused
        seq 1 20000 > /data/hello; dd if=/data/hello of=/data/big bs=1M 2>/dev/null; wc -c < /data/big
        cmp /data/hello /data/big && echo same; grep -c fuse /proc/mounts",
    );
    wanted.spec.mounts.push(share("/data", MountSource::SharedDirectory(0), 0));
    wanted.spec.mounts.push(share("/etc/conf", MountSource::SharedFile(1, "conf".to_owned()), READ_ONLY));
    let text = output_of(&mut guest, &wanted);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..6], ["from the host", "setting", "conf", "passwd", "refused", "108894"], "{text}");
    assert_eq!(lines[6..], ["same", "2"], "what was written comes back, and the share itself is not there");
    let expected: String = (1..=20_000).map(|number| format!("{number}\n")).collect();
    assert!(guest.files.lock().unwrap()["0/big"] == expected.as_bytes(), "the host has what was written");

    let mut refused = |source| {
        wanted.spec.mounts.truncate(7);
        wanted.spec.mounts.push(share("/data", source, 0));
        guest.run(&wanted).unwrap_err().1
    };
    assert!(refused(MountSource::SharedDirectory(7)).contains("/data"));
    assert!(refused(MountSource::SharedFile(1, "../0/hello".to_owned())).contains("../0/hello"));
    assert!(refused(MountSource::SharedFile(1, "missing".to_owned())).contains("/data"));
    guest.shut_down();
}

#[test]
fn a_program_that_cannot_be_executed_is_a_failed_start() {
    let Some(mut guest) = Guest::boot() else { return };
    let mut failure = |program: &str| {
        let mut wanted = shell("");
        wanted.spec.process.args = vec![program.to_owned()];
        guest.run(&wanted).unwrap_err().0
    };
    assert_eq!(failure("no-such-program"), StartFailure::NotFound);
    assert_eq!(failure("/no/such/program"), StartFailure::NotFound);
    assert_eq!(failure("/etc/passwd"), StartFailure::CannotExecute);
    assert_eq!(failure("/etc"), StartFailure::CannotExecute);
    guest.shut_down();
}

#[test]
fn a_guest_whose_host_is_gone_ends_itself() {
    let Some(mut guest) = Guest::boot() else { return };
    guest.start(&shell("sleep 1000")).unwrap();
    let console = guest.abandon();
    assert!(console.contains("beta9-vm-init: the host is gone"), "{console}");
}
