//! The drives: a root image with busybox, and an empty writable layer.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

/// Makes both in `directory`; an error is a reason to skip.
pub(crate) fn make(directory: &Path) -> Result<(), String> {
    let tree = directory.join("tree");
    let busybox = Path::new("/bin/busybox");
    let applets =
        Command::new(busybox).arg("--list").output().map_err(|e| format!("cannot run busybox: {e}"))?;
    for name in ["bin", "etc", "tmp", "proc", "sys"] {
        fs::create_dir_all(tree.join(name)).unwrap();
    }
    fs::copy(busybox, tree.join("bin/busybox")).unwrap();
    for applet in String::from_utf8_lossy(&applets.stdout).lines().filter(|name| *name != "busybox") {
        symlink("busybox", tree.join("bin").join(applet)).unwrap();
    }
    fs::write(tree.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n").unwrap();
    symlink("/somewhere/else", tree.join("dangling")).unwrap();
    let layer = directory.join("layer.ext4");
    let file = fs::File::create(&layer).unwrap();
    file.set_len(64 << 20).unwrap();
    run(Command::new("mkfs.ext4").args(["-q", "-F", "-O", "^has_journal"]).arg(&layer))?;
    run(Command::new("mkfs.erofs").args(["--all-root"]).arg(directory.join("root.erofs")).arg(&tree))
}

fn run(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{program}: {status}")),
        Err(error) => Err(format!("cannot run {program}: {error}")),
    }
}
