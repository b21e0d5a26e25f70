//! What people see: data on stdout, everything else on stderr, colours only on a terminal.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::cli::Failure;

/// Prints one line of data.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{text}").map_err(|e| match e.kind() {
        // Whoever reads has enough of it.
        std::io::ErrorKind::BrokenPipe => Failure { message: String::new(), code: 141 },
        _ => Failure::new(format!("write to stdout: {e}")),
    })
}

/// Prints one JSON document.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Failure::new(format!("write JSON: {e}")))?;
    line(&text)
}

/// Says what went wrong. An empty message says nothing.
pub(crate) fn error(message: &str) {
    say("error", "31", message);
}

/// Says what is odd.
pub(crate) fn warning(message: &str) {
    say("warning", "33", message);
}

fn say(word: &str, colour: &str, message: &str) {
    if message.is_empty() {
        return;
    }
    let mut stderr = std::io::stderr().lock();
    // Nobody is left to tell when stderr is gone.
    let _ = if colours() {
        writeln!(stderr, "\u{1b}[1;{colour}m{word}\u{1b}[0m: {message}")
    } else {
        writeln!(stderr, "{word}: {message}")
    };
}

/// Whether stderr is a terminal whose user wants colours (no-color.org).
pub(crate) fn colours() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Logging for a command: quiet unless something is odd.
pub(crate) fn init_logging(verbose: u8) {
    let level = match verbose {
        0 => tracing::Level::WARN,
        1 => tracing::Level::INFO,
        _ => tracing::Level::DEBUG,
    };
    // Set up once per process, by the first command that needs it.
    let _ = beta9_logging::init(beta9_logging::Format::Text, level);
}

/// A size as people read it.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut size = count as f64;
    let mut unit = 0;
    while size >= 1000.0 && unit + 1 < UNITS.len() {
        size /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{size:.1} {}", UNITS[unit]) }
}

/// The progress of one long operation: a bar on a terminal, a line now and then elsewhere.
pub(crate) struct Progress {
    bar: ProgressBar,
    is_terminal: bool,
    step: String,
    said: Option<Instant>,
}

impl Progress {
    /// Between two lines where there is no terminal.
    const EVERY: Duration = Duration::from_secs(5);

    pub(crate) fn new() -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{msg:12} [{bar:32}] {bytes} of {total_bytes}");
        if let Ok(style) = style {
            bar.set_style(style.progress_chars("=> "));
        }
        Self { bar, is_terminal, step: String::new(), said: None }
    }

    /// How far a step is; `total` 0 is unknown.
    pub(crate) fn step(&mut self, step: &str, done: u64, total: u64) {
        let is_new = self.step != step;
        step.clone_into(&mut self.step);
        if self.is_terminal {
            if total > 0 {
                self.bar.set_length(total);
            } else {
                self.bar.unset_length();
            }
            self.bar.set_message(self.step.clone());
            self.bar.set_position(done);
        } else if is_new || self.said.is_some_and(|said| said.elapsed() > Self::EVERY) {
            self.said = Some(Instant::now());
            let of = if total > 0 { format!(" of {}", bytes(total)) } else { String::new() };
            let _ = writeln!(std::io::stderr(), "{step}: {}{of}", bytes(done));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_are_short() {
        for (count, text) in [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (127_400_000, "127.4 MB")] {
            assert_eq!(super::bytes(count), text);
        }
    }
}
