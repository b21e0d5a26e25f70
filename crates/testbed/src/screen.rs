//! A program at a terminal of its own, with somebody who types.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::program::{DEADLINE, Invocation, Output};

/// A terminal at which a program runs. Dropped, it hangs up.
#[derive(Debug)]
pub struct Screen {
    master: File,
    /// Held, so that the terminal's modes can be looked at when the program has ended.
    user: OwnedFd,
    before: Termios,
    shown: Output,
    child: Child,
    line: String,
}

impl Screen {
    /// Runs a program at a new terminal of this size.
    pub fn open(invocation: Invocation, rows: u16, columns: u16) -> Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).context("cannot make a terminal")?;
        unlockpt(&master).context("cannot unlock a terminal")?;
        let user = ioctl_tiocgptpeer(&master, flags).context("cannot open a terminal")?;
        set_size(&master, rows, columns)?;
        let before = tcgetattr(&user).context("cannot look at a terminal")?;
        let inner = invocation.into_command();
        // It makes the terminal the one of a new session, as a login does.
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(inner.get_program()).args(inner.get_args());
        for (name, value) in inner.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let stream = || user.try_clone().map(Stdio::from).context("cannot keep a terminal");
        command.stdin(stream()?).stdout(stream()?).stderr(stream()?);
        let line = format!("{inner:?}");
        let child = command.spawn().context("cannot run setsid")?;
        drop(command);
        let master = File::from(master);
        let shown = Output::read(Some(master.try_clone().context("cannot keep a terminal")?));
        Ok(Self { master, user, before, shown, child, line })
    }

    /// Types.
    pub fn types(&mut self, keys: &str) -> Result<()> {
        self.master.write_all(keys.as_bytes()).context("cannot type")
    }

    /// Waits until it shows `text`.
    pub fn shows(&self, text: &str) -> Result<()> {
        if self.shown.holds(text.as_bytes(), DEADLINE) {
            return Ok(());
        }
        bail!("{} did not show {text:?} but {:?}", self.line, self.text())
    }

    /// Everything it has shown.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.shown.so_far()).into_owned()
    }

    /// Changes its size.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        set_size(&self.master, rows, columns)
    }

    /// Whether keys go to the program as they are, and are not shown by the terminal itself.
    pub fn is_raw(&self) -> Result<bool> {
        let now = tcgetattr(&self.user).context("cannot look at a terminal")?;
        Ok(!now.local_modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG))
    }

    /// Whether it is as it was in the beginning.
    pub fn is_restored(&self) -> Result<bool> {
        let now = tcgetattr(&self.user).context("cannot look at a terminal")?;
        Ok(now.local_modes == self.before.local_modes
            && now.input_modes == self.before.input_modes
            && now.output_modes == self.before.output_modes)
    }

    /// Sends the program a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("no process id")?;
        kill_process(pid, signal).context("cannot send a signal")
    }

    /// Waits for the program's end and returns its exit code.
    pub fn ends(&mut self) -> Result<i32> {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().context("cannot wait")? {
                return Ok(status.code().unwrap_or(-1));
            }
            if Instant::now() > end {
                bail!("{} did not end and shows {:?}", self.line, self.text());
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn set_size(terminal: impl rustix::fd::AsFd, rows: u16, columns: u16) -> Result<()> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).context("cannot set the size of a terminal")
}
