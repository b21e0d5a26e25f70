//! What only the owner of a whole machine does: its random pool, its loopback interface, its namespaces.

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::{Error, Result};

/// Mixes 32 bytes into the kernel's random pool, counts them as 256 bits of entropy, and has them used at once.
pub fn add_entropy(bytes: [u8; 32]) -> Result<()> {
    /// `struct rand_pool_info` of linux/random.h with its trailing array in place.
    #[repr(C)]
    struct RandomPool {
        entropy_bits: libc::c_int,
        size: libc::c_int,
        bytes: [u8; 32],
    }
    const ADD_ENTROPY: libc::Ioctl = 0x4008_5203; // RNDADDENTROPY
    const RESEED: libc::Ioctl = 0x5207; // RNDRESEEDCRNG
    let device = "/dev/random";
    let file = File::options().write(true).open(device).map_err(|e| Error::at("open", device, e))?;
    let pool = RandomPool { entropy_bits: 256, size: 32, bytes };
    // SAFETY: the request reads a header and as many bytes as the header says, which is what the struct holds.
    match unsafe { libc::ioctl(file.as_raw_fd(), ADD_ENTROPY, &raw const pool) } {
        0 => {}
        _ => return Err(Error::at("add entropy to", device, io::Error::last_os_error())),
    }
    // What was mixed in shows in what is read from now on, and not only at the kernel's next turn.
    // SAFETY: the request takes no argument.
    match unsafe { libc::ioctl(file.as_raw_fd(), RESEED) } {
        0 => Ok(()),
        _ => Err(Error::at("reseed", device, io::Error::last_os_error())),
    }
}

/// Brings the loopback interface of the current network namespace up.
pub fn loopback_up() -> Result<()> {
    let failed = |e: io::Error| Error::new("bring up the loopback interface", e);
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .map_err(|e| failed(e.into()))?;
    set_up(&socket).map_err(failed)
}

fn set_up(socket: &OwnedFd) -> io::Result<()> {
    /// `struct ifreq` as SIOCSIFFLAGS reads it.
    #[repr(C)]
    struct InterfaceRequest {
        name: [u8; libc::IFNAMSIZ],
        flags: libc::c_short,
        rest: [u8; 22],
    }
    const { assert!(size_of::<InterfaceRequest>() == size_of::<libc::ifreq>()) };
    let mut name = [0; libc::IFNAMSIZ];
    name[..2].copy_from_slice(b"lo");
    let flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    let request = InterfaceRequest { name, flags, rest: [0; 22] };
    // SAFETY: the request has the size and layout that the kernel copies, and lives through the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Puts the children that this *thread* starts from now on into a new PID namespace; the first one is its init.
///
/// The thread itself stays where it is and can start no more threads.
pub fn children_in_new_pid_namespace() -> io::Result<()> {
    unshare(libc::CLONE_NEWPID)
}

/// Moves this thread into new mount, host name, IPC and cgroup namespaces.
///
/// In a process with more than one thread the others stay where they are.
pub fn enter_container_namespaces() -> io::Result<()> {
    unshare(libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC | libc::CLONE_NEWCGROUP)
}

fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: `unshare` takes a flag word and no pointers; none of these flags unshares memory or descriptors.
    match unsafe { libc::unshare(flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn privileged() -> bool {
        let root = rustix::process::geteuid().is_root();
        if !root {
            eprintln!("skipped: needs root");
        }
        root
    }

    #[test]
    fn the_first_child_after_the_call_is_process_one() {
        if !privileged() {
            return;
        }
        let output = std::thread::spawn(|| {
            children_in_new_pid_namespace().unwrap();
            std::process::Command::new("sh").args(["-c", "echo $$"]).output().unwrap()
        });
        assert_eq!(output.join().unwrap().stdout, b"1\n");
    }

    #[test]
    fn a_host_name_set_in_new_namespaces_is_not_seen_outside() {
        if !privileged() {
            return;
        }
        let before = rustix::system::uname().nodename().to_owned();
        let inside = std::thread::spawn(|| {
            enter_container_namespaces().unwrap();
            rustix::system::sethostname(b"inside-only").unwrap();
            rustix::system::uname().nodename().to_owned()
        });
        assert_eq!(inside.join().unwrap().as_c_str(), c"inside-only");
        assert_eq!(rustix::system::uname().nodename(), before.as_c_str());
    }

    #[test]
    fn a_new_network_namespace_gets_its_loopback() {
        if !privileged() {
            return;
        }
        let answer = std::thread::spawn(|| {
            unshare(libc::CLONE_NEWNET).unwrap();
            let before = std::net::UdpSocket::bind("127.0.0.1:0").and_then(|s| s.connect("127.0.0.1:9"));
            loopback_up().unwrap();
            let after = std::net::UdpSocket::bind("127.0.0.1:0").and_then(|s| s.connect("127.0.0.1:9"));
            (before.is_err(), after.is_ok())
        });
        assert_eq!(answer.join().unwrap(), (true, true));
    }

    #[test]
    fn entropy_is_taken() {
        if !privileged() {
            return;
        }
        add_entropy([7; 32]).unwrap();
    }
}
