use std::collections::BTreeMap;

use beta9_types::{PoolName, RuntimeChoice, RuntimeKind, RuntimeSettings};

/// Where a value came from. A pool's own key wins over the environment, the environment over the worker's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A key under `worker.pools.<name>`.
    PoolKey {
        /// The line of the key.
        line: u32,
    },
    /// The environment variable `CONTAINER_RUNTIME`.
    Environment,
    /// A key under `worker`, or at the top of the file.
    WorkerKey {
        /// The line of the key.
        line: u32,
    },
    /// Nobody said anything.
    Default,
}

/// A pool with everything decided that can be decided without trying a runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// The pool's name.
    pub name: PoolName,
    /// The runtime that it asks for.
    pub runtime: RuntimeChoice,
    /// Who asked for that runtime.
    pub runtime_source: Source,
    /// What the pool may fall back to when that runtime does not work, in this order; empty means nothing.
    pub fallback: Vec<RuntimeKind>,
    /// Who said so.
    pub fallback_source: Source,
    /// How its runtimes are set up.
    pub settings: RuntimeSettings,
    /// The settings that did not come from the default.
    pub(crate) setting_sources: BTreeMap<&'static str, Source>,
}

impl Pool {
    /// Where a key of `container_runtime_config` (in snake_case) got its value.
    pub fn setting_source(&self, key: &str) -> Source {
        self.setting_sources.get(key).copied().unwrap_or(Source::Default)
    }

    /// A pool of which nothing is configured.
    pub(crate) fn bare(name: PoolName, runtime: (RuntimeChoice, Source)) -> Self {
        Self {
            name,
            runtime: runtime.0,
            runtime_source: runtime.1,
            fallback: vec![RuntimeKind::Runc],
            fallback_source: Source::Default,
            settings: RuntimeSettings::default(),
            setting_sources: BTreeMap::new(),
        }
    }
}
