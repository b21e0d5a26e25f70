//! TAP devices: an interface whose other side is a file, for a VM.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::{Error, Result};

const DEVICE: &str = "/dev/net/tun";

/// `struct ifreq` as `TUNSETIFF` reads it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}
const _: () = assert!(size_of::<InterfaceRequest>() == size_of::<libc::ifreq>());

/// Makes a TAP device in this thread's network namespace. It stays until its interface is removed, and whoever opens it
/// later gets packets with a virtio header before them.
pub fn create_persistent(name: &str) -> Result<()> {
    let file =
        File::options().read(true).write(true).open(DEVICE).map_err(|e| Error::at("open", DEVICE, e))?;
    let mut request = InterfaceRequest {
        name: [0; libc::IFNAMSIZ],
        // Both fit into the lower 16 bits, whose highest is a sign to this type.
        flags: (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short,
        rest: [0; 22],
    };
    // The last byte stays a zero.
    for (to, from) in request.name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: the request has the size and layout that the kernel copies in and out, and lives through the call.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    check(made)?;
    // SAFETY: the request takes its argument by value.
    let kept = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETPERSIST, 1 as libc::c_ulong) };
    check(kept)
}

fn check(result: libc::c_int) -> Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(Error::at("make a TAP device with", DEVICE, io::Error::last_os_error())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespaces::{enter_new_network, on_own_thread};
    use crate::netlink::Socket;

    #[test]
    fn a_device_outlives_the_file_it_was_made_by() {
        if !rustix::process::geteuid().is_root() || !std::path::Path::new(DEVICE).exists() {
            return eprintln!("skipped: needs root and {DEVICE}");
        }
        on_own_thread(None, || {
            enter_new_network()?;
            create_persistent("tap-of-a-test")?;
            let mut socket = Socket::open()?;
            assert!(socket.link("tap-of-a-test")?.is_some());
            socket.remove_link("tap-of-a-test")?;
            assert_eq!(socket.link("tap-of-a-test")?, None);
            Ok(())
        })
        .unwrap();
    }
}
