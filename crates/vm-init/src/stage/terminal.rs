//! A process's terminal, made in the container's own `devpts`.

use std::fs::File;
use std::os::unix::net::UnixStream;

use beta9_sys::passing::send_descriptor;
use beta9_types::TerminalSize;
use beta9_wire::write_message;
use rustix::fs::{Mode, OFlags};
use rustix::mount::mount_bind;
use rustix::process::ioctl_tiocsctty;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, ptsname, unlockpt};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::termios::{Winsize, tcsetwinsize};

use super::Answer;
use crate::failure::{Context, Result};

/// Where the container's own terminals are made. Not `/dev/ptmx`, which an image could have replaced.
const MULTIPLEXER: &str = "/dev/pts/ptmx";

/// Whether `/dev/console` is to be the terminal, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Console {
    Shown,
    Absent,
}

/// Gives this process, which leads a session, a terminal for its streams, and sends the other end to PID 1.
pub(super) fn make(socket: &mut UnixStream, size: TerminalSize, console: Console) -> Result<()> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = rustix::fs::open(MULTIPLEXER, flags, Mode::empty()).context(|| "make a terminal")?;
    unlockpt(&master).context(|| "unlock a terminal")?;
    // By the other end, not by its name, which says something else where something is mounted over it.
    let peer = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let user = ioctl_tiocgptpeer(&master, peer).context(|| "open a terminal")?;
    set_size(&master, size).context(|| "set the size of a terminal")?;
    if console == Console::Shown {
        // An image whose /dev is its own may have no room for it.
        let _ = show_console(&master);
    }
    ioctl_tiocsctty(&user).context(|| "take a terminal")?;
    dup2_stdin(&user)
        .and_then(|()| dup2_stdout(&user))
        .and_then(|()| dup2_stderr(&user))
        .context(|| "use a terminal")?;
    write_message(socket, &Answer::Terminal).context(|| "tell PID 1 of a terminal")?;
    send_descriptor(&*socket, &master).context(|| "send a terminal to PID 1")
}

fn show_console(master: &rustix::fd::OwnedFd) -> std::io::Result<()> {
    let name = ptsname(master, Vec::new())?;
    File::options().write(true).create_new(true).open("/dev/console")?;
    Ok(mount_bind(name.as_c_str(), "/dev/console")?)
}

/// Changes the size of a terminal, of which the kernel tells the programs at it.
pub(crate) fn set_size(terminal: impl rustix::fd::AsFd, size: TerminalSize) -> rustix::io::Result<()> {
    let TerminalSize { rows, columns } = size;
    tcsetwinsize(terminal, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })
}
