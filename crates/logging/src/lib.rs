//! How log events look.
//!
//! A text line is `[LEVEL] message key=value key="quoted when needed"`. It has no timestamp: journald, Kubernetes and
//! terminals that want one add their own. A JSON line is one object with `time` (RFC 3339, UTC), `level`, `message` and
//! the same fields. Both go to standard error, one write per line, so lines of several threads never mix.
//!
//! Fields come in the order in which the event names them; the fields of the spans around it follow, innermost first,
//! and a name that was already printed is not repeated.
//!
//! What an event carries may come from a guest, an image or a client. So nothing in a line can forge another line, a
//! field or a terminal's escape sequence, and a value has an upper size.

mod event;
mod json;
mod lines;
mod text;

use std::str::FromStr;

use tracing::Level;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub use lines::Lines;

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For machines: one JSON object per line.
    Json,
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(Error::UnknownFormat { given: text.to_owned() }),
        }
    }
}

/// Logging could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A word that names no format.
    #[error("unknown log format {given:?}; allowed: text, json")]
    UnknownFormat {
        /// The word.
        given: String,
    },
    /// The process already has a logger.
    #[error("set up logging, which a process can do only once")]
    AlreadySet(#[source] tracing_subscriber::util::TryInitError),
}

/// Sends the process's events from `level` up to standard error.
///
/// Libraries that are not ours speak only from `warn` up, unless `level` is `trace`: at `debug` an HTTP library alone
/// would drown the worker's own lines.
pub fn init(format: Format, level: Level) -> Result<(), Error> {
    tracing_subscriber::registry()
        .with(Lines::new(format, std::io::stderr))
        .with(filter(level))
        .try_init()
        .map_err(Error::AlreadySet)
}

fn filter(level: Level) -> Targets {
    let others = if level == Level::TRACE { level } else { level.min(Level::WARN) };
    Targets::new()
        .with_default(LevelFilter::from_level(others))
        .with_target("beta9", LevelFilter::from_level(level))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_at_debug_is_not_heard() {
        let filter = filter(Level::DEBUG);
        assert!(filter.would_enable("beta9_worker::pool", &Level::DEBUG));
        assert!(!filter.would_enable("beta9_worker::pool", &Level::TRACE));
        assert!(filter.would_enable("hyper::proto", &Level::WARN));
        assert!(!filter.would_enable("hyper::proto", &Level::INFO));
    }

    #[test]
    fn an_error_level_holds_for_libraries_too() {
        let filter = filter(Level::ERROR);
        assert!(!filter.would_enable("hyper", &Level::WARN));
        assert!(filter.would_enable("hyper", &Level::ERROR));
    }

    #[test]
    fn trace_opens_everything() {
        assert!(super::filter(Level::TRACE).would_enable("hyper", &Level::TRACE));
    }

    #[test]
    fn an_unknown_format_lists_the_known_ones() {
        let error = "yaml".parse::<Format>().unwrap_err();
        assert_eq!(error.to_string(), "unknown log format \"yaml\"; allowed: text, json");
    }
}
