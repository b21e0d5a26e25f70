use std::fmt;

use beta9_types::{RuntimeChoice, RuntimeKind};

use crate::config::{Config, RUNTIME_VARIABLE};
use crate::pool::{Pool, Source};

/// Configuration that works and is probably not what was meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// What it is about: the file with a line, or a dotted key.
    pub place: String,
    /// What it means and what to do, in one sentence.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

impl Config {
    /// What an operator should look at before rolling this out.
    pub fn warnings(&self) -> Vec<Warning> {
        let mut warnings = Vec::new();
        for pool in &self.pools {
            self.push_lower_isolation(pool, &mut warnings);
            self.push_pointless_fallback(pool, &mut warnings);
        }
        let own_key = |pool: &Pool| matches!(pool.runtime_source, Source::PoolKey { .. });
        if self.runtime.1 == Source::Environment && self.pools.iter().all(own_key) {
            warnings.push(Warning {
                place: format!("environment variable {RUNTIME_VARIABLE}"),
                message: format!("{} has no effect, as every pool names its own runtime", self.runtime.0),
            });
        }
        warnings
    }

    fn push_lower_isolation(&self, pool: &Pool, warnings: &mut Vec<Warning>) {
        let runc = RuntimeKind::Runc;
        if pool.runtime != RuntimeChoice::Exactly(runc) && pool.fallback.contains(&runc) {
            let message = format!(
                "pool {} may fall back from {} to runc, which lowers isolation; set runtime_fallback: [] to refuse that",
                pool.name, pool.runtime
            );
            warnings.push(Warning { place: self.place_of_fallback(pool), message });
        }
    }

    fn push_pointless_fallback(&self, pool: &Pool, warnings: &mut Vec<Warning>) {
        // The default fallback of a runc pool is runc, and nobody wrote that.
        if pool.fallback_source == Source::Default {
            return;
        }
        for kind in pool.fallback.iter().filter(|kind| pool.runtime.candidates().contains(kind)) {
            let message =
                format!("pool {} falls back to {kind}, which {} tried already", pool.name, pool.runtime);
            warnings.push(Warning { place: self.place_of_fallback(pool), message });
        }
    }

    fn place_of_fallback(&self, pool: &Pool) -> String {
        match pool.fallback_source {
            Source::Default => format!("worker.pools.{}.runtime_fallback (default)", pool.name),
            source => format!("config {}", self.describe_source(source)),
        }
    }
}
