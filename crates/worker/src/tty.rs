//! The user's own terminal: its size, its raw mode, and that it is always given back as it was.

use std::io::{Stdin, Stdout, stdin, stdout};
use std::os::fd::AsFd;
use std::sync::{Mutex, Once, PoisonError};

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

use crate::api;
use crate::cli::Failure;

/// How the terminal was. A static, because a panic has to find it.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Whether stdin is a terminal.
pub(crate) fn stdin_is_terminal() -> bool {
    isatty(stdin())
}

/// The size of the terminal that output goes to, or that input comes from.
pub(crate) fn size() -> Option<api::TerminalSize> {
    let (input, output): (Stdin, Stdout) = (stdin(), stdout());
    let size = tcgetwinsize(output.as_fd()).or_else(|_| tcgetwinsize(input.as_fd())).ok()?;
    Some(api::TerminalSize { rows: size.ws_row.into(), columns: size.ws_col.into() })
}

/// The terminal passes every key on as it is, to be read by a program elsewhere. Until this is dropped, or the process
/// panics.
pub(crate) struct RawMode(());

impl RawMode {
    /// Puts stdin's terminal into raw mode.
    pub(crate) fn enter() -> Result<Self, Failure> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let hook = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore();
                hook(panic);
            }));
        });
        let failed = |e: rustix::io::Errno| Failure::new(format!("set the terminal up: {e}"));
        let before = tcgetattr(stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        tcsetattr(stdin(), OptionalActions::Now, &raw).map_err(failed)?;
        Ok(Self(()))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before {
        // A terminal that is gone needs nothing.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &before);
    }
}
