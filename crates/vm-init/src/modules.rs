//! Kernel modules, loaded when the machine or a container turns out to need them.
//!
//! A stock kernel has its drivers and file systems as modules, and loading one takes a while. The initramfs has the few
//! that a guest can need, and a file `order` with one line for each purpose: its name, a colon, and the modules in the
//! order to load them in. A kernel with everything built in comes without.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;
use rustix::system::finit_module;

use crate::failure::{Context, Result};
use crate::report;

/// The drivers for devices on the virtio bus, by the device's number (Virtual I/O Device specification, section 5).
const DRIVERS: [(u32, &str); 5] =
    [(1, "virtio_net"), (2, "virtio_blk"), (4, "virtio_rng"), (5, "virtio_balloon"), (19, "vsock")];

/// The modules of the initramfs that are not loaded yet.
pub(crate) struct Modules(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    /// Where the files are. The descriptor stays good when the initramfs is covered by another root.
    directory: Option<OwnedFd>,
    purposes: HashMap<String, Vec<String>>,
}

impl Modules {
    /// Finds the modules in a directory of the initramfs.
    pub(crate) fn find(directory: &Path) -> Result<Self> {
        let Ok(order) = fs::read_to_string(directory.join("order")) else {
            return Ok(Self(Mutex::default()));
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptor = rustix::fs::open(directory, flags, Mode::empty())
            .context(|| format!("open {}", directory.display()))?;
        Ok(Self(Mutex::new(Waiting { directory: Some(descriptor), purposes: parse(&order) })))
    }

    /// Loads the bus drivers and then the driver of every device that is there.
    pub(crate) fn load_drivers(&self) {
        if self.0.lock().unwrap_or_else(PoisonError::into_inner).directory.is_none() {
            return;
        }
        self.load("virtio_mmio");
        if fs::read_dir("/sys/bus/pci/devices").is_ok_and(|mut devices| devices.next().is_some()) {
            self.load("virtio_pci");
        }
        for device in fs::read_dir("/sys/bus/virtio/devices").into_iter().flatten().flatten() {
            let number = fs::read_to_string(device.path().join("device")).unwrap_or_default();
            let number = u32::from_str_radix(number.trim().trim_start_matches("0x"), 16).ok();
            if let Some((_, driver)) = DRIVERS.iter().find(|(known, _)| Some(*known) == number) {
                self.load(driver);
            }
        }
    }

    /// Loads what serves a purpose, for example the file system `erofs`; nothing if it is loaded or built in.
    ///
    /// A module that cannot be loaded is only noted: what is really missing shows when it is used.
    pub(crate) fn load(&self, purpose: &str) {
        // The lock is held while modules load, so that whoever asks second finds them loaded.
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let files = waiting.purposes.remove(purpose).unwrap_or_default();
        let Some(directory) = &waiting.directory else { return };
        for name in files {
            match load(directory, &name) {
                // Modules that several purposes share are gone with the first.
                Ok(()) | Err(Errno::EXIST | Errno::NOENT) => {}
                Err(error) => report::warn(&format!("load module {name}: {error}")),
            }
        }
    }
}

fn load(directory: &OwnedFd, name: &str) -> rustix::io::Result<()> {
    let file = File::from(openat(directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?);
    let loaded = finit_module(&file, c"", 0);
    // It lies in memory.
    let _ = unlinkat(directory, name, AtFlags::empty());
    loaded
}

fn parse(order: &str) -> HashMap<String, Vec<String>> {
    let lines = order.lines().filter_map(|line| line.split_once(':'));
    let files = |list: &str| list.split_whitespace().map(str::to_owned).collect();
    lines.map(|(purpose, list)| (purpose.to_owned(), files(list))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_lists_modules_by_purpose() {
        let purposes = parse("erofs: libcrc32c.ko erofs.ko\nnothing:\nmalformed\n");
        assert_eq!(purposes["erofs"], ["libcrc32c.ko", "erofs.ko"]);
        assert!(purposes["nothing"].is_empty());
        assert_eq!(purposes.len(), 2);
    }
}
