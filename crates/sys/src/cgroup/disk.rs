//! Which disk a file is on.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{major, minor};

use crate::{Error, Result};

/// The numbers of the disk that holds `path`, as limits of groups name it: the whole disk, where the file system is on a
/// part of one. Refused where the file system is on none, as one in memory is.
pub fn disk_of(path: &Path) -> Result<(u64, u64)> {
    let device = fs::metadata(path).map_err(|e| Error::at("look at", path, e))?.dev();
    whole(Path::new("/sys/dev/block"), (u64::from(major(device)), u64::from(minor(device)))).ok_or_else(
        || {
            let text = "its file system is on no disk of its own";
            Error::at("find the disk of", path, std::io::Error::new(std::io::ErrorKind::Unsupported, text))
        },
    )
}

fn whole(devices: &Path, (major, minor): (u64, u64)) -> Option<(u64, u64)> {
    let directory = devices.join(format!("{major}:{minor}"));
    if !directory.join("partition").exists() {
        return directory.exists().then_some((major, minor));
    }
    // The directory of a part is inside its disk's.
    let text = fs::read_to_string(fs::canonicalize(directory).ok()?.parent()?.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_stands_for_its_disk() {
        let sys = tempfile::tempdir().unwrap();
        let disk = sys.path().join("devices/sda");
        fs::create_dir_all(disk.join("sda1")).unwrap();
        fs::write(disk.join("dev"), "8:0\n").unwrap();
        fs::write(disk.join("sda1/partition"), "1\n").unwrap();
        let numbers = sys.path().join("block");
        fs::create_dir(&numbers).unwrap();
        for (number, target) in [("8:0", "sda"), ("8:1", "sda/sda1")] {
            std::os::unix::fs::symlink(format!("../devices/{target}"), numbers.join(number)).unwrap();
        }
        assert_eq!(whole(&numbers, (8, 1)), Some((8, 0)));
        assert_eq!(whole(&numbers, (8, 0)), Some((8, 0)));
        assert_eq!(whole(&numbers, (0, 23)), None);
    }

    #[test]
    fn a_file_system_in_memory_is_on_no_disk() {
        let error = beta9_types::chain(&disk_of(Path::new("/proc")).unwrap_err());
        assert!(error.contains("/proc") && error.contains("on no disk"), "{error}");
    }
}
