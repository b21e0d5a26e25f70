use std::path::PathBuf;

use clap::Args;

use super::lines_of;
use crate::api;
use crate::cli::Failure;

/// How it lives and ends.
#[derive(Args)]
pub(super) struct LifeFlags {
    /// Attach a note that `ps --filter label=` finds.
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    label: Vec<String>,
    /// Attach the notes of a file of NAME=VALUE lines.
    #[arg(long, value_name = "FILE")]
    label_file: Vec<PathBuf>,
    /// Start it again when it ends: no, on-failure[:TIMES], always or unless-stopped.
    #[arg(long, value_name = "POLICY", default_value = "", hide_default_value = true)]
    restart: String,
    /// What `stop` sends first; the image's own where absent, else TERM.
    #[arg(long, value_name = "SIGNAL", default_value = "", hide_default_value = true)]
    stop_signal: String,
    /// Seconds between that signal and KILL; 10 where absent.
    #[arg(long, value_name = "SECONDS")]
    stop_timeout: Option<u32>,
}

impl LifeFlags {
    pub(super) fn apply(self, request: &mut api::CreateRequest) -> Result<(), Failure> {
        let mut labels = Vec::new();
        for path in &self.label_file {
            labels.extend(lines_of(path)?);
        }
        labels.extend(self.label);
        for label in labels {
            let (name, value) = label.split_once('=').unwrap_or((&label, ""));
            if name.is_empty() {
                return Err(Failure::new(format!("invalid label {label:?}: use NAME=VALUE")));
            }
            request.labels.insert(name.to_owned(), value.to_owned());
        }
        request.restart = self.restart;
        request.stop_signal = self.stop_signal;
        request.stop_timeout = self.stop_timeout;
        Ok(())
    }
}
