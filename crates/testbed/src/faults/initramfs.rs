//! Initramfs images of the tests' own, whose init is a shell script: a guest that does what it wants.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// A static busybox: nothing else is in the guest.
const BUSYBOX: &str = "/bin/busybox";

/// Writes one into `directory` and says where. `script` is run by busybox's shell, as process 1.
pub(super) fn with_init(directory: &Path, script: &str) -> Result<PathBuf> {
    let busybox =
        fs::read(BUSYBOX).with_context(|| format!("cannot read {BUSYBOX}: install busybox-static"))?;
    ensure!(
        !busybox.windows(7).any(|bytes| bytes == b"/ld-lin"),
        "{BUSYBOX} is not static: install busybox-static"
    );
    let init = format!("#!/busybox sh\n{script}\n");
    let mut archive = Vec::new();
    member(&mut archive, "busybox", 0o100_755, &busybox);
    member(&mut archive, "init", 0o100_755, init.as_bytes());
    member(&mut archive, "TRAILER!!!", 0, b"");
    let path = directory.join("own-initrd.img");
    fs::write(&path, archive).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// One entry in the kernel's "newc" format (Documentation/driver-api/early-userspace/buffer-format.rst).
fn member(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    let inode = archive.len();
    let numbers = [inode, mode as usize, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
    archive.extend_from_slice(b"070701");
    for number in numbers {
        archive.extend_from_slice(format!("{number:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(content);
    pad(archive);
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}
