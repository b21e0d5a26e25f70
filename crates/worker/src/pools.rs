//! Which runtime a request gets.
//!
//! A pool's runtime is decided once, when it is first needed or when the daemon starts, and a pool that fell back stays
//! where it is until the worker is started again. A runtime named in a request is exact: it is tried with the pool's
//! settings and works, or the request fails.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use beta9_config::{Attempt, Config, Pool, Selection, Step, messages};
use beta9_types::{
    LogLimits, NetworkSettings, PoolName, RegistryHost, RegistrySettings, RuntimeChoice, RuntimeKind,
    RuntimeSettings,
};
use tokio::sync::{Mutex, OnceCell};
use tokio::task::JoinSet;

use crate::api;
use crate::cli::Global;
use crate::error::{Error, ErrorKind, Result, chain};
use crate::runtimes::{self, Working};
use crate::terminal;

/// Where a configuration is looked for when none is named.
const DEFAULT_CONFIG: &str = "/etc/beta9/worker.yaml";

/// The configuration a process works with, and the state directory that follows from it.
pub(crate) struct Setup {
    pub(crate) root: PathBuf,
    pub(crate) config: Config,
}

/// The pools of one worker.
pub(crate) struct Pools {
    root: PathBuf,
    config: Config,
    pools: Vec<Arc<PoolState>>,
    /// Runtimes that a request named and that worked, by pool and runtime.
    exact: Mutex<HashMap<(PoolName, RuntimeKind), Working>>,
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
        let environment = |name: &str| std::env::var_os(name);
        let usual = Path::new(DEFAULT_CONFIG);
        let config = match global.config.as_deref().or(usual.exists().then_some(usual)) {
            Some(path) => Config::load(path, environment),
            None => Config::without_file(environment),
        };
        let config = config.map_err(|e| {
            let text = if terminal::colours() { e.render() } else { chain(&e) };
            Error::new(ErrorKind::Invalid, text)
        })?;
        let root = global.root.as_deref().unwrap_or(config.root());
        let root = std::path::absolute(root)
            .map_err(|e| Error::caused(ErrorKind::Invalid, format!("root {}", root.display()), e))?;
        Ok(Self { root, config })
    }

    /// The pools, or those of them that are named.
    pub(crate) fn into_pools(self, only: &[String]) -> Result<Pools> {
        for name in only {
            self.config.pool(name).map_err(no_such_pool)?;
        }
        let chosen = |pool: &&Pool| only.is_empty() || only.iter().any(|name| name == pool.name.as_str());
        let state = |pool: &Pool| Arc::new(PoolState { pool: pool.clone(), decided: OnceCell::new() });
        let pools = self.config.pools().iter().filter(chosen).map(state).collect();
        Ok(Pools { root: self.root, config: self.config, pools, exact: Mutex::default() })
    }
}

fn no_such_pool(error: beta9_config::Error) -> Error {
    Error::new(ErrorKind::NotFound, chain(&error))
}

impl Pools {
    /// How registries are reached.
    pub(crate) fn registries(&self) -> BTreeMap<RegistryHost, RegistrySettings> {
        self.config.registries()
    }

    /// The network of this worker's containers.
    pub(crate) fn network(&self) -> &NetworkSettings {
        self.config.network()
    }

    /// The most that images may take up on the disk.
    pub(crate) fn image_limit(&self) -> Option<u64> {
        self.config.image_limit()
    }

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
        let pool = match pool {
            Some(name) => self.config.pool(name).map_err(no_such_pool)?,
            None => self.config.default_pool().ok_or_else(|| {
                let names: Vec<_> = self.pools.iter().map(|state| state.pool.name.as_str()).collect();
                let text = format!("no pool is the default one: name one of {}", names.join(", "));
                Error::new(ErrorKind::Invalid, text)
            })?,
        };
        let Some(state) = self.pools.iter().find(|state| state.pool.name == pool.name) else {
            let text = format!("pool {} is configured and this worker does not serve it", pool.name);
            return Err(Error::new(ErrorKind::NotFound, text));
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
        let mut selection = Selection::exactly(pool.name.clone(), choice);
        while let Some(kind) = selection.next() {
            match self.exactly_one(pool, kind).await {
                Ok(working) => {
                    return Ok(Assigned {
                        pool: pool.name.to_string(),
                        asked: choice,
                        runtime: kind,
                        fallback_reason: None,
                        settings: working.settings,
                    });
                }
                Err(error) => drop(selection.record(Err(chain(&error)))),
            }
        }
        let reasons = selection.explain().unwrap_or_default();
        let text = format!("runtime {choice} was asked for and cannot be used here: {reasons}");
        Err(Error::new(ErrorKind::Precondition, text))
    }

    async fn exactly_one(&self, pool: &Pool, kind: RuntimeKind) -> Result<Working> {
        // Held while a probe runs: two requests for one runtime need one probe.
        let mut exact = self.exact.lock().await;
        let key = (pool.name.clone(), kind);
        if let Some(working) = exact.get(&key) {
            return Ok(working.clone());
        }
        let working = runtimes::create(&self.root, kind, &pool.settings).await?;
        Ok(exact.entry(key).or_insert(working).clone())
    }

    /// The pools as they are shown; those not decided yet are decided first.
    pub(crate) async fn status(&self) -> Vec<api::Pool> {
        self.prepare().await;
        self.decided()
    }

    /// The pools whose runtime is decided.
    pub(crate) fn decided(&self) -> Vec<api::Pool> {
        let show = |state: &Arc<PoolState>| Some(state.decided.get()?.show(&self.config, &state.pool));
        self.pools.iter().filter_map(show).collect()
    }

    /// How much of a container's output is kept where its request does not say.
    pub(crate) fn log_limits(&self) -> LogLimits {
        self.config.log_limits()
    }

    /// The file that was loaded; empty for none.
    pub(crate) fn config_path(&self) -> String {
        self.config.file().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// SHA-256 of the configuration as it was loaded; empty for none.
    pub(crate) fn loaded_hash(&self) -> String {
        self.config.loaded_hash().map(|digest| digest.hex().to_owned()).unwrap_or_default()
    }

    /// SHA-256 of the file as it is now; empty when it is gone.
    pub(crate) fn file_hash(&self) -> String {
        let hash = self.config.file().and_then(|path| Config::file_hash_now(path).ok());
        hash.map(|digest| digest.hex().to_owned()).unwrap_or_default()
    }
}

/// Tries what the pool asks for, then what it may fall back to.
async fn decide(root: &Path, pool: &Pool) -> Decision {
    let mut selection = Selection::begin(pool);
    messages::initializing(&pool.name, pool.runtime);
    while let Some(kind) = selection.next() {
        let tried = runtimes::create(root, kind, &pool.settings).await;
        let (result, working) = match tried {
            Ok(working) => (Ok(()), Some(working)),
            Err(error) => (Err(chain(&error)), None),
        };
        match selection.record(result) {
            Step::Ready(kind) => {
                if let Some(working) = &working {
                    messages::initialized(kind, &shown(&pool.settings, &working.settings));
                    for warning in &working.warnings {
                        messages::warned(&pool.name, kind, warning);
                    }
                }
                return Decision { selection, working };
            }
            step => messages::failed(&selection, step),
        }
    }
    Decision { selection, working: None }
}

/// Programs as the operator named them, everything else as it was decided.
fn shown(asked: &RuntimeSettings, decided: &RuntimeSettings) -> RuntimeSettings {
    RuntimeSettings {
        runc_bin: asked.runc_bin.clone(),
        gvisor_bin: asked.gvisor_bin.clone(),
        firecracker_bin: asked.firecracker_bin.clone(),
        qemu_bin: asked.qemu_bin.clone(),
        ..decided.clone()
    }
}

impl Decision {
    fn assign(&self, pool: &Pool) -> Result<Assigned> {
        match (self.selection.used(), &self.working) {
            (Some(kind), Some(working)) => Ok(Assigned {
                pool: pool.name.to_string(),
                asked: pool.runtime,
                runtime: kind,
                fallback_reason: self.selection.explain(),
                settings: working.settings.clone(),
            }),
            _ => {
                let text = format!(
                    "pool {} is not ready: {}",
                    pool.name,
                    self.selection.explain().unwrap_or_default()
                );
                Err(Error::new(ErrorKind::Precondition, text))
            }
        }
    }

    fn show(&self, config: &Config, pool: &Pool) -> api::Pool {
        let attempt =
            |failed: &Attempt| api::Attempt { runtime: failed.kind.to_string(), error: failed.error.clone() };
        api::Pool {
            name: pool.name.to_string(),
            runtime_asked: pool.runtime.to_string(),
            runtime_source: config.describe_source(pool.runtime_source),
            runtime: self.selection.used().map(|kind| kind.to_string()).unwrap_or_default(),
            ready: self.working.is_some(),
            fell_back: self.selection.fell_back(),
            failures: self.selection.reasons().iter().map(attempt).collect(),
            capabilities: self.working.as_ref().map(|working| api::Capabilities {
                checkpoint_restore: working.capabilities.checkpoint_restore,
                gpu: working.capabilities.gpu,
                oom_events: working.capabilities.oom_events,
                join_existing_netns: working.capabilities.join_existing_netns,
                cdi: working.capabilities.cdi,
            }),
            detail: self.working.as_ref().map(|working| working.detail.clone()).unwrap_or_default(),
            warnings: self.working.as_ref().map(|working| working.warnings.clone()).unwrap_or_default(),
        }
    }
}
