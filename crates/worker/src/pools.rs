//! Which runtime a request gets.
//!
//! A pool's runtime is decided once, when it is first needed or when the daemon starts, and a pool that fell back stays
//! where it is until the worker is started again. A runtime named in a request is exact: it is tried with the pool's
//! settings and works, or the request fails.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use beta9_config::{Config, Pool, Selection};
use beta9_types::{RuntimeChoice, RuntimeKind, RuntimeSettings};
use tokio::sync::{Mutex, OnceCell};
use tokio::task::JoinSet;

use crate::api;
use crate::cli::Global;
use crate::error::{Error, ErrorKind, Result, chain};
use crate::runtimes::{self, Working};

/// Where a configuration is looked for when none is named.
const DEFAULT_CONFIG: &str = "/etc/beta9/worker.yaml";
/// The state directory when nothing names one.
const DEFAULT_ROOT: &str = "/var/lib/beta9";

/// The configuration a process works with, and the state directory that follows from it.
pub(crate) struct Setup {
    pub(crate) root: PathBuf,
    pub(crate) debug: bool,
    pub(crate) config: Config,
}

/// The pools of one worker.
pub(crate) struct Pools {
    root: PathBuf,
    config: Config,
    pools: Vec<Arc<PoolState>>,
    /// Runtimes that a request named and that worked, by pool and runtime.
    exact: Mutex<HashMap<(String, RuntimeKind), Working>>,
}

struct PoolState {
    pool: Pool,
    decided: OnceCell<Decision>,
}

/// What a pool's runtime became.
struct Decision {
    selection: Selection,
    working: Option<Working>,
}

/// What a request gets.
#[derive(Debug, Clone)]
pub(crate) struct Assigned {
    pub(crate) pool: String,
    pub(crate) asked: RuntimeChoice,
    pub(crate) runtime: RuntimeKind,
    pub(crate) fallback_reason: Option<String>,
    pub(crate) settings: RuntimeSettings,
}

impl Setup {
    /// Loads the configuration named by flag, variable or its usual place.
    pub(crate) fn load(global: &Global) -> Result<Self> {
        let environment = |name: &str| std::env::var(name).ok();
        let usual = Path::new(DEFAULT_CONFIG);
        let path = global.config.as_deref().or(usual.exists().then_some(usual));
        let config =
            Config::load(path, environment).map_err(|e| Error::new(ErrorKind::Invalid, chain(&e)))?;
        let root = global.root.as_deref().or(config.root()).unwrap_or(Path::new(DEFAULT_ROOT));
        let root = std::path::absolute(root)
            .map_err(|e| Error::caused(ErrorKind::Invalid, format!("root {}", root.display()), e))?;
        Ok(Self { root, debug: config.debug_mode(), config })
    }

    /// The pools, or those of them that are named.
    pub(crate) fn into_pools(self, only: Option<Vec<String>>) -> Result<Pools> {
        let mut pools = self.config.pools();
        if let Some(only) = only {
            for name in &only {
                find(&pools, name)?;
            }
            pools.retain(|pool| only.iter().any(|name| name == pool.name.as_str()));
        }
        let pools =
            pools.into_iter().map(|pool| Arc::new(PoolState { pool, decided: OnceCell::new() })).collect();
        Ok(Pools { root: self.root, config: self.config, pools, exact: Mutex::default() })
    }
}

fn find<'p>(pools: impl IntoIterator<Item = &'p Pool>, name: &str) -> Result<&'p Pool> {
    let mut names = Vec::new();
    for pool in pools {
        if pool.name.as_str() == name {
            return Ok(pool);
        }
        names.push(pool.name.as_str());
    }
    let text = format!("no such pool: {name:?}; this worker has {}", names.join(", "));
    Err(Error::new(ErrorKind::NotFound, text))
}

impl Pools {
    /// Decides every pool's runtime now, pools beside each other.
    pub(crate) async fn prepare(&self) {
        let mut preparing = JoinSet::new();
        for state in &self.pools {
            let (root, state) = (self.root.clone(), Arc::clone(state));
            preparing.spawn(async move {
                state.decided.get_or_init(|| decide(&root, &state.pool)).await;
            });
        }
        while preparing.join_next().await.is_some() {}
    }

    /// The runtime for a request.
    pub(crate) async fn assign(
        &self,
        pool: Option<&str>,
        runtime: Option<RuntimeChoice>,
    ) -> Result<Assigned> {
        let name = pool.unwrap_or(self.config.default_pool());
        find(self.pools.iter().map(|state| &state.pool), name)?;
        let Some(state) = self.pools.iter().find(|state| state.pool.name.as_str() == name) else {
            return Err(Error::new(ErrorKind::NotFound, format!("no such pool: {name:?}")));
        };
        match runtime {
            Some(choice) => self.exactly(&state.pool, choice).await,
            None => {
                let decision = state.decided.get_or_init(|| decide(&self.root, &state.pool)).await;
                decision.assign(&state.pool)
            }
        }
    }

    async fn exactly(&self, pool: &Pool, choice: RuntimeChoice) -> Result<Assigned> {
        let mut reasons = Vec::new();
        for &kind in choice.candidates() {
            let key = (pool.name.to_string(), kind);
            // Held while a probe runs: two requests for one runtime need one probe.
            let mut exact = self.exact.lock().await;
            let working = match exact.get(&key) {
                Some(working) => working.clone(),
                None => match runtimes::create(&self.root, kind, &pool.settings).await {
                    Ok(working) => exact.entry(key).or_insert(working).clone(),
                    Err(error) => {
                        reasons.push(format!("{kind}: {}", chain(&error)));
                        continue;
                    }
                },
            };
            return Ok(Assigned {
                pool: pool.name.to_string(),
                asked: choice,
                runtime: kind,
                fallback_reason: None,
                settings: working.settings,
            });
        }
        let text = format!("runtime {choice} was asked for and cannot be used here: {}", reasons.join("; "));
        Err(Error::new(ErrorKind::Precondition, text))
    }

    /// The pools as they are shown; those not decided yet are decided first.
    pub(crate) async fn status(&self) -> Vec<api::Pool> {
        self.prepare().await;
        self.pools.iter().filter_map(|state| Some(state.decided.get()?.show(&state.pool))).collect()
    }

    /// The file that was loaded; empty for none.
    pub(crate) fn config_path(&self) -> String {
        self.config.path().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// SHA-256 of the configuration as it was loaded; empty for none.
    pub(crate) fn loaded_hash(&self) -> String {
        self.config.loaded_hash().unwrap_or_default().to_owned()
    }

    /// SHA-256 of the file as it is now; empty when it is gone.
    pub(crate) fn file_hash(&self) -> String {
        self.config.path().and_then(|path| Config::file_hash_now(path).ok()).unwrap_or_default()
    }
}

/// Tries what the pool asks for, then what it may fall back to.
async fn decide(root: &Path, pool: &Pool) -> Decision {
    let mut selection = Selection::begin(pool);
    beta9_config::messages::initializing(pool);
    while let Some(kind) = selection.next() {
        match runtimes::create(root, kind, &pool.settings).await {
            Ok(working) => {
                beta9_config::messages::initialized(kind, &working.settings);
                selection.record(kind, Ok(()));
                return Decision { selection, working: Some(working) };
            }
            Err(error) => {
                selection.record(kind, Err(chain(&error)));
                beta9_config::messages::failed(pool, &selection);
            }
        }
    }
    Decision { selection, working: None }
}

impl Decision {
    fn assign(&self, pool: &Pool) -> Result<Assigned> {
        let reasons = || {
            let reasons =
                self.selection.failures().iter().map(|failed| format!("{}: {}", failed.kind, failed.error));
            reasons.collect::<Vec<_>>().join("; ")
        };
        match (self.selection.used(), &self.working) {
            (Some(kind), Some(working)) => Ok(Assigned {
                pool: pool.name.to_string(),
                asked: pool.runtime,
                runtime: kind,
                fallback_reason: self.selection.fell_back().then(reasons),
                settings: working.settings.clone(),
            }),
            _ => {
                let text = format!("pool {} is not ready: {}", pool.name, reasons());
                Err(Error::new(ErrorKind::Precondition, text))
            }
        }
    }

    fn show(&self, pool: &Pool) -> api::Pool {
        let attempt = |failed: &beta9_config::Attempt| api::Attempt {
            runtime: failed.kind.to_string(),
            error: failed.error.clone(),
        };
        api::Pool {
            name: pool.name.to_string(),
            runtime_asked: pool.runtime.to_string(),
            runtime_source: pool.runtime_source.to_string(),
            runtime: self.selection.used().map(|kind| kind.to_string()).unwrap_or_default(),
            ready: self.working.is_some(),
            fell_back: self.selection.fell_back(),
            failures: self.selection.failures().iter().map(attempt).collect(),
            capabilities: self.working.as_ref().map(|working| api::Capabilities {
                checkpoint_restore: working.capabilities.checkpoint_restore,
                gpu: working.capabilities.gpu,
                oom_events: working.capabilities.oom_events,
                join_existing_netns: working.capabilities.join_existing_netns,
                cdi: working.capabilities.cdi,
            }),
            detail: self.working.as_ref().map(|working| working.detail.clone()).unwrap_or_default(),
        }
    }
}
