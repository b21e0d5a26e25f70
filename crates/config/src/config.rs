use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use beta9_types::{
    Digest, LogLimits, NetworkSettings, PoolName, RegistryHost, RegistrySettings, RuntimeChoice, RuntimeKind,
};
use sha2::{Digest as _, Sha256};

use crate::error::{Error, ErrorKind, Position, Result, quoted};
use crate::file::{File, FilePool, Given};
use crate::near::nearest;
use crate::network::FileNetwork;
use crate::node;
use crate::pool::{Pool, Source};
use crate::reader::{RUNTIME_WORDS, Reader};
use crate::registries::FileRegistry;

/// The variable that overrides `worker.container_runtime`.
pub(crate) const RUNTIME_VARIABLE: &str = "CONTAINER_RUNTIME";

/// The effective configuration, with the source of every value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub(crate) file: Option<PathBuf>,
    pub(crate) loaded_hash: Option<Digest>,
    pub(crate) root: (PathBuf, Source),
    /// What pools get that name no runtime themselves.
    pub(crate) runtime: (RuntimeChoice, Source),
    pub(crate) debug_mode: (bool, Source),
    pub(crate) default_pool: (Option<PoolName>, Source),
    pub(crate) log_max_size: (u64, Source),
    pub(crate) log_max_files: (u32, Source),
    pub(crate) image_limit: (Option<u64>, Source),
    pub(crate) network: FileNetwork,
    pub(crate) pools: Vec<Pool>,
    pub(crate) registries: Vec<FileRegistry>,
}

impl Config {
    /// The state directory when nothing is configured.
    pub const DEFAULT_ROOT: &'static str = "/var/lib/beta9";
    /// Larger files are refused.
    pub const MAX_FILE_BYTES: u64 = 1 << 20;

    /// Reads a file and lays the environment over it. `environment` looks a variable up, as `std::env::var_os` does.
    pub fn load(path: &Path, environment: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let bytes = read_capped(path)?;
        let hash = hash_of(&bytes);
        let text = String::from_utf8(bytes).map_err(|error| not_utf8(path, &error))?;
        let mut config = Self::parse(&text, path, environment)?;
        config.loaded_hash = Some(hash);
        Ok(config)
    }

    /// The same for a text that was read already; messages name it `file_name`.
    pub fn parse(
        text: &str,
        file_name: impl AsRef<Path>,
        environment: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self> {
        let path = file_name.as_ref();
        if text.len() as u64 > Self::MAX_FILE_BYTES {
            return Err(too_large(path));
        }
        let reader = Reader { file: path, text };
        let tree = node::parse(text).map_err(|error| match error.at {
            Some(at) => reader.error(error.kind, at, error.message),
            None => Error::new(error.kind, format_args!("config {}", path.display()), error.message),
        })?;
        let file = File::read(&reader, &tree)?;
        let mut config = Self::resolve(file, &environment)?;
        config.file = Some(path.to_owned());
        config.loaded_hash = Some(hash_of(text.as_bytes()));
        Ok(config)
    }

    /// The configuration of a worker that has no file: one pool, `default`.
    pub fn without_file(environment: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        Self::resolve(File::default(), &environment)
    }

    fn resolve(file: File, environment: &dyn Fn(&str) -> Option<OsString>) -> Result<Self> {
        let runtime = match (runtime_of(environment)?, file.container_runtime) {
            (Some(choice), _) => (choice, Source::Environment),
            (None, Some(given)) => (given.value, Source::WorkerKey { line: given.line }),
            (None, None) => (RuntimeChoice::Exactly(RuntimeKind::Runc), Source::Default),
        };
        let debug_mode = match file.debug_mode {
            Some(given) => (given.value, Source::WorkerKey { line: given.line }),
            None => (false, Source::Default),
        };
        let mut pools: Vec<Pool> =
            file.pools.into_iter().map(|pool| resolve_pool(pool, runtime, debug_mode)).collect();
        if pools.is_empty() {
            let mut pool = Pool::bare(PoolName::default(), runtime);
            inherit_debug(&mut pool, debug_mode);
            pools.push(pool);
        }
        let default_pool = match file.default_pool {
            Some(given) => (Some(given.value), Source::WorkerKey { line: given.line }),
            None => (implied_default(&pools), Source::Default),
        };
        let image_limit = match file.image_limit {
            Some(given) => (Some(given.value), Source::WorkerKey { line: given.line }),
            None => (None, Source::Default),
        };
        let root = match file.root {
            Some(given) => (given.value, Source::WorkerKey { line: given.line }),
            None => (Self::DEFAULT_ROOT.into(), Source::Default),
        };
        let log = LogLimits::default();
        let log_max_size = or_default(file.log_max_size, log.max_size);
        let log_max_files = or_default(file.log_max_files, log.max_files);
        let (network, registries) = (file.network, file.registries);
        Ok(Self {
            file: None,
            loaded_hash: None,
            root,
            runtime,
            debug_mode,
            default_pool,
            log_max_size,
            log_max_files,
            image_limit,
            network,
            pools,
            registries,
        })
    }

    /// The file it came from.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// SHA-256 of the file's bytes as they were read.
    pub fn loaded_hash(&self) -> Option<&Digest> {
        self.loaded_hash.as_ref()
    }

    /// SHA-256 of a file as it is now: another value than [`Config::loaded_hash`] means that the file was changed since.
    pub fn file_hash_now(path: &Path) -> Result<Digest> {
        Ok(hash_of(&read_capped(path)?))
    }

    /// The state directory.
    pub fn root(&self) -> &Path {
        &self.root.0
    }

    /// Whether logs are at debug level and guests have a console.
    pub fn debug_mode(&self) -> bool {
        self.debug_mode.0
    }

    /// How much of a container's output is kept where its request does not say.
    pub fn log_limits(&self) -> LogLimits {
        LogLimits { max_size: self.log_max_size.0, max_files: self.log_max_files.0 }
    }

    /// The network of the worker's containers.
    pub fn network(&self) -> &NetworkSettings {
        &self.network.settings
    }

    /// Every pool, in the file's order; never empty.
    pub fn pools(&self) -> &[Pool] {
        &self.pools
    }

    /// How the registries are reached that the file names.
    pub fn registries(&self) -> BTreeMap<RegistryHost, RegistrySettings> {
        let pair = |registry: &FileRegistry| (registry.host.clone(), registry.settings.clone());
        self.registries.iter().map(pair).collect()
    }

    /// A pool by its name.
    pub fn pool(&self, name: &str) -> Result<&Pool> {
        self.pools.iter().find(|pool| pool.name.as_str() == name).ok_or_else(|| {
            let origin = match &self.file {
                Some(path) => format!("config {}", path.display()),
                None => "config (no file)".to_owned(),
            };
            let names: Vec<&str> = self.pools.iter().map(|pool| pool.name.as_str()).collect();
            let hint = nearest(name, names.iter().copied()).map(|word| format!("did you mean {word:?}?"));
            Error::new(ErrorKind::UnknownPool, origin, format!("unknown pool {}", quoted(name)))
                .hint(hint)
                .allowed(names)
        })
    }

    /// The most that images may take up on the disk, in bytes: beyond it those that were used longest ago go. `None` is no
    /// limit.
    pub fn image_limit(&self) -> Option<u64> {
        self.image_limit.0
    }

    /// The pool for whoever names none: `worker.default_pool`, else `default`, else the only one. `None` where several
    /// could be meant.
    pub fn default_pool(&self) -> Option<&Pool> {
        let name = self.default_pool.0.as_ref()?;
        self.pools.iter().find(|pool| pool.name == *name)
    }
}

fn or_default<T>(given: Option<Given<T>>, default: T) -> (T, Source) {
    match given {
        Some(given) => (given.value, Source::WorkerKey { line: given.line }),
        None => (default, Source::Default),
    }
}

fn resolve_pool(file: FilePool, runtime: (RuntimeChoice, Source), debug_mode: (bool, Source)) -> Pool {
    let mut pool = Pool::bare(file.name, runtime);
    if let Some(given) = file.container_runtime {
        pool.runtime = given.value;
        pool.runtime_source = Source::PoolKey { line: given.line };
    }
    if let Some(given) = file.runtime_fallback {
        pool.fallback = given.value;
        pool.fallback_source = Source::PoolKey { line: given.line };
    }
    pool.settings = file.settings;
    pool.setting_sources =
        file.given.into_iter().map(|(name, line)| (name, Source::PoolKey { line })).collect();
    inherit_debug(&mut pool, debug_mode);
    pool
}

/// `debug_mode` turns every pool's guest console on that says nothing itself.
fn inherit_debug(pool: &mut Pool, debug_mode: (bool, Source)) {
    if pool.setting_source("debug") == Source::Default {
        pool.settings.debug = debug_mode.0;
        if debug_mode.1 != Source::Default {
            pool.setting_sources.insert("debug", debug_mode.1);
        }
    }
}

fn implied_default(pools: &[Pool]) -> Option<PoolName> {
    let usual = PoolName::default();
    match pools {
        [only] => Some(only.name.clone()),
        several => several.iter().any(|pool| pool.name == usual).then_some(usual),
    }
}

/// An empty variable is an unset one, as everywhere in Unix.
fn runtime_of(environment: &dyn Fn(&str) -> Option<OsString>) -> Result<Option<RuntimeChoice>> {
    let Some(value) = environment(RUNTIME_VARIABLE).filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let text = value.to_string_lossy();
    text.parse().map(Some).map_err(|_| {
        let origin = format!("environment variable {RUNTIME_VARIABLE}");
        let meant = if text == "runsc" { Some("gvisor") } else { nearest(&text, RUNTIME_WORDS) };
        Error::new(ErrorKind::InvalidValue, origin, format!("unknown runtime {}", quoted(&text)))
            .hint(meant.map(|word| format!("did you mean {word:?}?")))
            .allowed(RUNTIME_WORDS)
    })
}

fn read_capped(path: &Path) -> Result<Vec<u8>> {
    let unreadable = |error| Error::unreadable(path, error);
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(unreadable)?;
    file.take(Config::MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > Config::MAX_FILE_BYTES {
        return Err(too_large(path));
    }
    Ok(bytes)
}

fn too_large(path: &Path) -> Error {
    let message = "larger than 1 MiB, which a configuration file has no reason to be";
    Error::new(ErrorKind::TooLarge, format_args!("config {}", path.display()), message)
}

fn not_utf8(path: &Path, error: &std::string::FromUtf8Error) -> Error {
    let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
    let start_of_line = good.iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
    let count = |number: usize| u32::try_from(number + 1).unwrap_or(u32::MAX);
    let position = Position {
        line: count(good.iter().filter(|&&byte| byte == b'\n').count()),
        column: count(String::from_utf8_lossy(&good[start_of_line..]).chars().count()),
        length: 1,
    };
    let origin = format!("config {}", path.display());
    let message = "not UTF-8 text; save the file in UTF-8";
    Error::new(ErrorKind::Syntax, origin, message).at(position, &String::from_utf8_lossy(error.as_bytes()))
}

fn hash_of(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes).into())
}
