//! Loop mounts of the images that the tests made themselves.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// A file system mounted until the end of a test.
pub struct Mounted {
    at: TempDir,
}

impl Mounted {
    /// `None`, with the reason printed, where loop mounts are not possible.
    pub fn mount(image: &Path, format: &str, options: &str) -> Option<Self> {
        let at = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", format, "-o", &format!("loop,{options}")])
            .args([image, at.path()])
            .output()
            .unwrap();
        if mounted.status.success() {
            return Some(Self { at });
        }
        println!("skipped: cannot mount {format}: {}", String::from_utf8_lossy(&mounted.stderr).trim());
        None
    }

    pub fn path(&self) -> &Path {
        self.at.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(self.at.path()).status().unwrap();
        assert!(status.success() || std::thread::panicking(), "the test's mount is left behind");
    }
}
