//! Installing system call filters that somebody else compiled.

use std::io;

/// Bytes of one instruction, `struct sock_filter` of `linux/filter.h`.
const INSTRUCTION: usize = 8;

/// Filters this process's system calls, and those of every program it executes, by `program`: whole instructions in the
/// machine's own byte order. The kernel checks them. Needs CAP_SYS_ADMIN, or no new privileges.
///
/// Only the calling thread is filtered.
pub fn install(program: &[u8]) -> io::Result<()> {
    let mut steps: Vec<libc::sock_filter> = Vec::with_capacity(program.len() / INSTRUCTION);
    let (whole, rest) = program.as_chunks::<INSTRUCTION>();
    for &[code_low, code_high, jt, jf, a, b, c, d] in whole {
        let code = u16::from_ne_bytes([code_low, code_high]);
        steps.push(libc::sock_filter { code, jt, jf, k: u32::from_ne_bytes([a, b, c, d]) });
    }
    let length = u16::try_from(steps.len()).ok().filter(|length| *length > 0 && rest.is_empty());
    let Some(len) = length else { return Err(io::ErrorKind::InvalidInput.into()) };
    let description = libc::sock_fprog { len, filter: steps.as_mut_ptr() };
    // SAFETY: the description and the instructions that it points to live through the call, which only reads them.
    let result =
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const description, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_answers_for_the_kernel() {
        // Load the number; if it is getppid's, answer EACCES; else allow.
        let steps: [(u16, u8, u8, u32); 4] = [
            (0x20, 0, 0, 0),
            (0x15, 0, 1, libc::SYS_getppid as u32),
            (0x06, 0, 0, 0x0005_0000 | libc::EACCES as u32),
            (0x06, 0, 0, 0x7fff_0000),
        ];
        let bytes = steps.iter().flat_map(|(code, jt, jf, k)| {
            let ([a, b], [c, d, e, f]) = (code.to_ne_bytes(), k.to_ne_bytes());
            [a, b, *jt, *jf, c, d, e, f]
        });
        let program: Vec<u8> = bytes.collect();
        let answer = std::thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            install(&program).unwrap();
            // SAFETY: takes nothing and changes nothing.
            let answer = unsafe { libc::syscall(libc::SYS_getppid) };
            (answer, io::Error::last_os_error().raw_os_error())
        });
        assert_eq!(answer.join().unwrap(), (-1, Some(libc::EACCES)));
        for bad in [&[][..], &[0; 7], &[0xff; 8]] {
            assert!(install(bad).is_err());
        }
    }
}
