//! What a person sees of this program: short lines in the kernel's log, and one line on the console when it is over.

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use rustix::system::{RebootCommand, reboot};

/// Something odd that was served all the same; shown on the console by a kernel that is not `quiet`.
pub(crate) fn warn(message: &str) {
    // Without a kernel log there is no one to tell.
    if let Ok(mut log) = File::options().write(true).open("/dev/kmsg") {
        let _ = log.write_all(format!("<4>beta9-vm-init: {message}").as_bytes());
    }
}

/// The machine cannot go on: says why on the console and restarts it, which ends the VMM.
pub(crate) fn fatal(message: &str) -> ! {
    let line = format!("beta9-vm-init: {message}\n");
    let console = File::options().write(true).open("/dev/console");
    if console.and_then(|mut console| console.write_all(line.as_bytes())).is_err() {
        eprint!("{line}");
    }
    restart()
}

/// Restarts the machine. What has not been synced is lost.
pub(crate) fn restart() -> ! {
    loop {
        let _ = reboot(RebootCommand::Restart);
        // Refused or slow: PID 1 must not end, that would be a kernel panic.
        std::thread::sleep(Duration::from_secs(1));
    }
}
