//! Signals as events that a thread waits for, instead of handlers.

use std::fs::File;
use std::io::Read;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use rustix::process::Signal;

use crate::{Error, Result};

/// Signals that no longer act on the process but are read from here.
///
/// They are blocked in the thread that made this and in every thread it starts afterwards, so make it before
/// any other thread exists. Programs inherit it: start them with
/// [`default_signals`](crate::command::CommandExtra::default_signals).
#[derive(Debug)]
pub struct SignalFd {
    file: File,
}

impl SignalFd {
    /// Takes `signals` over.
    pub fn take(signals: &[Signal]) -> Result<Self> {
        let set = set_of(signals);
        // SAFETY: `set` is an initialized signal set, and a null pointer asks for no old mask.
        match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut()) } {
            0 => {}
            error => {
                return Err(Error::new("block signals", std::io::Error::from_raw_os_error(error)));
            }
        }
        // SAFETY: `set` is an initialized signal set; -1 asks for a new descriptor.
        let descriptor = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC) };
        if descriptor < 0 {
            return Err(Error::new("make signalfd", std::io::Error::last_os_error()));
        }
        // SAFETY: the kernel just returned this descriptor and nothing else owns it.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        Ok(Self { file: File::from(descriptor) })
    }

    /// Waits for the next one and returns its number.
    pub fn wait(&self) -> Result<i32> {
        let mut record = [0; size_of::<libc::signalfd_siginfo>()];
        (&self.file).read_exact(&mut record).map_err(|e| Error::new("read signalfd", e))?;
        // `ssi_signo` is the record's first field.
        let [a, b, c, d, ..] = record;
        Ok(i32::from_ne_bytes([a, b, c, d]))
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn set_of(signals: &[Signal]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the call initializes what it is given and cannot fail.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: `sigemptyset` initialized it.
    let mut set = unsafe { set.assume_init() };
    for signal in signals {
        // SAFETY: `set` is initialized; a wrong number is refused, not undefined.
        unsafe { libc::sigaddset(&mut set, signal.as_raw()) };
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_signal_is_read_instead_of_killing() {
        let signals = SignalFd::take(&[Signal::USR1]).unwrap();
        // Sent to this thread alone: the other tests' threads have not blocked it.
        // SAFETY: `pthread_self` names the calling thread, which is alive.
        let this = unsafe { libc::pthread_self() };
        // SAFETY: `this` is alive, and the signal is one that it has blocked.
        assert_eq!(unsafe { libc::pthread_kill(this, libc::SIGUSR1) }, 0);
        assert_eq!(signals.wait().unwrap(), libc::SIGUSR1);
    }
}
