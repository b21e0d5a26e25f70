//! Becoming another program, and what is inherited by it.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Replaces this process by the program at `path`; returns only when that failed.
///
/// Unlike `Command::exec` it looks along no `PATH`, hands the environment over as it is, and does not give a file that
/// is no program to a shell.
pub fn execute(path: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: both arrays end in a null pointer and, like the strings they point to, live through the call.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// Lets the child, and no other, have `descriptor` under the same number; its number becomes the next argument.
pub fn pass_descriptor(command: &mut Command, descriptor: OwnedFd) {
    command.arg(descriptor.as_raw_fd().to_string());
    let keep = move || {
        // SAFETY: takes two numbers; without the flag the descriptor survives the exec.
        match unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_SETFD, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure makes one async-signal-safe system call and allocates nothing.
    unsafe { command.pre_exec(keep) };
}

/// Takes a descriptor that the parent passed by [`pass_descriptor`], and keeps it from being inherited further.
///
/// Call it once per number, first thing in `main`: a second owner of the same number would close it under the first.
pub fn take_passed_descriptor(number: RawFd) -> io::Result<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: takes two numbers; a descriptor that is not open is reported and changes nothing.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and nothing else in this process owns it: the parent put it there for this call.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Sets a resource limit of this process by the kernel's number; `u64::MAX` is unlimited.
pub fn set_resource_limit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the limit lives through the call; a number that does not exist is reported.
    match unsafe { libc::setrlimit64(resource, &raw const limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_child_gets_the_passed_descriptor_and_the_next_child_does_not() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo through >/proc/self/fd/$0"]);
        pass_descriptor(&mut command, OwnedFd::from(writer));
        assert!(command.status().unwrap().success());
        let mut other = Command::new("sh");
        let number = command.get_args().last().unwrap().to_owned();
        other.args(["-c", "test ! -e /proc/self/fd/$0"]).arg(&number);
        assert!(other.status().unwrap().success());
        drop(command);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through\n");
        assert!(take_passed_descriptor(2).is_err());
        assert!(take_passed_descriptor(9999).is_err());
    }

    #[test]
    fn a_file_that_is_no_program_is_reported() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = CString::new(file.path().to_str().unwrap()).unwrap();
        let error = execute(&path, std::slice::from_ref(&path), &[]);
        assert_eq!(error.raw_os_error(), Some(libc::EACCES));
        assert_eq!(execute(c"/does/not/exist", &[], &[]).raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn limits_are_set_by_number() {
        // A limit can be lowered to what it is by anyone.
        set_resource_limit(libc::RLIMIT_CORE, 0, 0).unwrap();
        assert_eq!(set_resource_limit(99, 0, 0).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
