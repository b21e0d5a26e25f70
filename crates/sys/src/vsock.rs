//! Connections over `AF_VSOCK`, vsock(7), from a guest to its host.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// The host, seen from a guest.
pub const HOST_CID: u32 = libc::VMADDR_CID_HOST;

/// Connects to a port of the machine `cid`; gives up after `deadline`.
///
/// Without a transport in the kernel the answer is `ENODEV` or `EAFNOSUPPORT`, without a listener `ECONNRESET`.
pub fn connect(cid: u32, port: u32, deadline: Duration) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::VSOCK, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_connect_timeout(&socket, deadline)?;
    let address = libc::sockaddr_vm {
        svm_family: libc::AF_VSOCK as libc::sa_family_t,
        svm_reserved1: 0,
        svm_port: port,
        svm_cid: cid,
        svm_zero: [0; 4],
    };
    // SAFETY: the address lives through the call and the length is its own.
    let result = unsafe {
        libc::connect(socket.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_vm>() as u32)
    };
    if result == 0 { Ok(socket) } else { Err(io::Error::last_os_error()) }
}

fn set_connect_timeout(socket: &OwnedFd, deadline: Duration) -> io::Result<()> {
    /// `SO_VM_SOCKETS_CONNECT_TIMEOUT` of linux/vm_sockets.h, which takes a `struct timeval`.
    const CONNECT_TIMEOUT: libc::c_int = 6;
    let timeout = libc::timeval {
        tv_sec: deadline.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_usec: deadline.subsec_micros().into(),
    };
    // SAFETY: the value lives through the call and the length is its own.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::AF_VSOCK,
            CONNECT_TIMEOUT,
            (&raw const timeout).cast(),
            size_of::<libc::timeval>() as u32,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets so many bytes wait in `socket` for its reader; the peer is told with the next packet.
pub fn set_buffer_size(socket: &impl AsFd, size: u64) -> io::Result<()> {
    /// `SO_VM_SOCKETS_BUFFER_SIZE` and `SO_VM_SOCKETS_BUFFER_MAX_SIZE` of linux/vm_sockets.h. The first is cut to the second.
    const SIZE: libc::c_int = 0;
    const MOST: libc::c_int = 2;
    for option in [MOST, SIZE] {
        // SAFETY: the value lives through the call and the length is its own.
        let result = unsafe {
            libc::setsockopt(
                socket.as_fd().as_raw_fd(),
                libc::AF_VSOCK,
                option,
                (&raw const size).cast(),
                size_of::<u64>() as u32,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_without_a_listener_is_an_error_and_not_a_wait() {
        // 4 billion - 2: no machine has this context id.
        let error = connect(u32::MAX - 1, 1, Duration::from_millis(200)).unwrap_err();
        assert!(error.raw_os_error().is_some(), "{error}");
    }
}
