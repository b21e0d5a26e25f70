//! How layers on their way are shown: a bar each on a terminal, plain lines elsewhere. All on stderr.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::api;
use crate::terminal::bytes;

/// The layers of one pull or push.
pub(super) struct Layers {
    bars: Option<MultiProgress>,
    layers: HashMap<String, Layer>,
    /// What the word for bytes that move is: `fetching` or `sending`.
    verb: &'static str,
}

struct Layer {
    status: String,
    bar: Option<ProgressBar>,
}

impl Layers {
    pub(super) fn new(verb: &'static str) -> Self {
        let target = || MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        Self { bars: std::io::stderr().is_terminal().then(target), layers: HashMap::new(), verb }
    }

    /// A layer got somewhere.
    pub(super) fn see(&mut self, progress: &api::LayerProgress) {
        let bars = self.bars.as_ref();
        let layer = self.layers.entry(progress.digest.clone()).or_insert_with(|| Layer {
            status: String::new(),
            bar: bars.map(|bars| bars.add(bar(&progress.digest, progress.total_bytes))),
        });
        let word = match progress.status.as_str() {
            "moving" => self.verb,
            "exists" => "already there",
            other => other,
        };
        if let Some(bar) = &layer.bar {
            bar.set_message(word.to_owned());
            bar.set_position(progress.done_bytes);
            if matches!(progress.status.as_str(), "done" | "exists") {
                bar.finish();
            }
        } else if layer.status != progress.status && progress.status != "waiting" {
            let size = bytes(progress.total_bytes);
            // Nobody is left to tell when stderr is gone.
            let _ = writeln!(std::io::stderr(), "{}: {word} ({size})", short(&progress.digest));
        }
        progress.status.clone_into(&mut layer.status);
    }
}

fn bar(digest: &str, total: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
    let style = ProgressStyle::with_template("{prefix} {msg:13} [{bar:32}] {bytes} of {total_bytes}");
    if let Ok(style) = style {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.with_prefix(short(digest))
}

/// The first 12 digits of a digest.
pub(super) fn short(digest: &str) -> String {
    digest.trim_start_matches("sha256:").chars().take(12).collect()
}
