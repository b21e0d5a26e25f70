//! Files as block devices (loop(4)).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// `LOOP_CTL_GET_FREE` and `LOOP_CONFIGURE` of linux/loop.h; the latter is there since Linux 5.8.
const GET_FREE: libc::c_ulong = 0x4c82;
const CONFIGURE: libc::c_ulong = 0x4c0a;
/// `LO_FLAGS_AUTOCLEAR`: the device lets go of its file with its last user.
const AUTOCLEAR: u32 = 4;
/// How often a free device may be taken by somebody else before this one gets it.
const ATTEMPTS: u32 = 64;

/// `struct loop_config` of linux/loop.h, of which the file and one field of its `struct loop_info64` are set.
#[repr(C)]
struct Config {
    file: u32,
    block_size: u32,
    numbers: [u64; 5],
    words: [u32; 3],
    flags: u32,
    names: [u8; 160],
    rest: [u64; 10],
}

/// A device that shows a file. It goes when this is dropped and nothing of it is mounted.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    _device: File,
}

impl LoopDevice {
    /// Makes one that shows the file at `path`, which can be written.
    pub fn attach(path: &Path) -> Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).open(path).map_err(|e| Error::at("open", path, e))?;
        let control = Path::new("/dev/loop-control");
        let control_file = File::options()
            .read(true)
            .write(true)
            .open(control)
            .map_err(|e| Error::at("open", control, e))?;
        for _ in 0..ATTEMPTS {
            // SAFETY: this request takes no argument and returns a number.
            let number = unsafe { libc::ioctl(control_file.as_raw_fd(), GET_FREE) };
            if number < 0 {
                return Err(Error::at("find a free loop device at", control, io::Error::last_os_error()));
            }
            let device = PathBuf::from(format!("/dev/loop{number}"));
            let opened = File::options().read(true).write(true).open(&device);
            let device_file = opened.map_err(|e| Error::at("open", &device, e))?;
            let config = Config {
                file: file.as_raw_fd().unsigned_abs(),
                block_size: 0,
                numbers: [0; 5],
                words: [0; 3],
                flags: AUTOCLEAR,
                names: [0; 160],
                rest: [0; 10],
            };
            // SAFETY: the kernel reads one `struct loop_config`, which `config` is laid out as and which lives on.
            let result = unsafe { libc::ioctl(device_file.as_raw_fd(), CONFIGURE, &raw const config) };
            if result == 0 {
                return Ok(Self { path: device, _device: device_file });
            }
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EBUSY) {
                return Err(Error::at("show a file through", &device, error));
            }
        }
        Err(Error::at("find a free loop device at", control, io::Error::from_raw_os_error(libc::EBUSY)))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn the_layout_is_the_kernels() {
        assert_eq!(size_of::<Config>(), 304);
        assert_eq!(std::mem::offset_of!(Config, flags), 8 + 5 * 8 + 3 * 4);
    }

    #[test]
    fn a_device_shows_its_file_and_goes_with_it() {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
            eprintln!("skipped: needs root and loop devices");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        std::fs::write(&path, [7; 8192]).unwrap();
        let device = LoopDevice::attach(&path).unwrap();
        assert_eq!(std::fs::read(device.path()).unwrap(), [7; 8192]);
        let backing =
            PathBuf::from("/sys/block").join(device.path().file_name().unwrap()).join("loop/backing_file");
        assert_eq!(std::fs::read_to_string(&backing).unwrap().trim(), path.to_str().unwrap());
        drop(device);
        // A program that another test is starting has it open until it is executed.
        let end = Instant::now() + Duration::from_secs(10);
        while std::fs::read_to_string(&backing).is_ok_and(|left| left.trim() == path.to_str().unwrap()) {
            assert!(Instant::now() < end, "the device still has its file");
            std::thread::yield_now();
        }
    }
}
