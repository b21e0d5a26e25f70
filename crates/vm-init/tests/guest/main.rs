//! The guest's init in a real machine: QEMU without hardware acceleration, a real kernel, vsock to this test.
//!
//! Needs the guest files of `cargo xtask guest` (looked for in `BETA9_GUEST_DIR`, or `target/guest` of the workspace),
//! `qemu-system-x86_64`, `vhost-device-vsock`, `mkfs.erofs`, `mkfs.ext4` and a static `busybox`. Where one is missing
//! every test here is a printed skip. Each boot costs seconds, so a test asks one machine many questions.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod host;
mod image;
mod spec;

use beta9_wire::{GuestExit, StartFailure};

use crate::host::Guest;
use crate::spec::shell;

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
