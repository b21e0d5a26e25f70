//! The file's shape, before the environment and the defaults are laid over it.

use std::path::PathBuf;

use beta9_types::{LogLimits, PoolName, RuntimeChoice, RuntimeKind, RuntimeSettings};

use crate::error::{ErrorKind, Position, Result};
use crate::near::nearest;
use crate::network::{self, FileNetwork};
use crate::node::{Node, Value};
use crate::reader::{Entry, Reader, camel_case};
use crate::registries::{self, FileRegistry};
use crate::settings::{self, Rule};
use crate::size;

const TOP: [&str; 2] = ["worker", "debug_mode"];
const WORKER: [&str; 10] = [
    "root",
    "container_runtime",
    "debug_mode",
    "default_pool",
    "image_limit",
    "log_max_size",
    "log_max_files",
    "network",
    "pools",
    "registries",
];
const POOL: [&str; 3] = ["container_runtime", "runtime_fallback", "container_runtime_config"];
/// More pools than a node has reason to serve, fewer than a metric's labels can bear.
const MAX_POOLS: usize = 256;

/// A value of the file and the line of its key.
#[derive(Debug, Clone)]
pub(crate) struct Given<T> {
    pub(crate) value: T,
    pub(crate) line: u32,
}

/// What the file says; `None` where it says nothing.
#[derive(Debug, Default)]
pub(crate) struct File {
    pub(crate) root: Option<Given<PathBuf>>,
    pub(crate) container_runtime: Option<Given<RuntimeChoice>>,
    pub(crate) debug_mode: Option<Given<bool>>,
    pub(crate) default_pool: Option<Given<PoolName>>,
    pub(crate) log_max_size: Option<Given<u64>>,
    pub(crate) log_max_files: Option<Given<u32>>,
    pub(crate) image_limit: Option<Given<u64>>,
    pub(crate) network: FileNetwork,
    pub(crate) pools: Vec<FilePool>,
    pub(crate) registries: Vec<FileRegistry>,
}

/// What the file says about one pool.
#[derive(Debug)]
pub(crate) struct FilePool {
    pub(crate) name: PoolName,
    pub(crate) container_runtime: Option<Given<RuntimeChoice>>,
    pub(crate) runtime_fallback: Option<Given<Vec<RuntimeKind>>>,
    pub(crate) settings: RuntimeSettings,
    /// The settings that the file gives, with their lines.
    pub(crate) given: Vec<(&'static str, u32)>,
}

/// Where a key that was found elsewhere belongs.
pub(crate) fn home_of(key: &str) -> Option<&'static str> {
    let has = |names: &[&str]| names.iter().any(|name| *name == key || camel_case(name) == key);
    if has(&settings::names()) {
        Some("worker.pools.<name>.container_runtime_config")
    } else if has(&POOL) && !has(&WORKER) {
        Some("worker.pools.<name>")
    } else if has(&registries::KEYS) {
        Some("worker.registries.<host>")
    } else if has(&network::KEYS) {
        Some("worker.network")
    } else if has(&WORKER) {
        Some("worker")
    } else {
        has(&TOP).then_some("the top of the file")
    }
}

impl File {
    pub(crate) fn read(reader: &Reader<'_>, root: &Node) -> Result<Self> {
        let mut top = reader.keys(root, "", &TOP)?;
        let mut file = Self::default();
        let mut debug_mode = top.take("debug_mode");
        if let Some(worker) = top.take("worker") {
            let mut keys = reader.keys(worker.node, &worker.path, &WORKER)?;
            if let Some(entry) = keys.take("root") {
                file.root = given(&entry, settings::read_path(reader, &entry, Rule::Directory)?);
            }
            if let Some(entry) = keys.take("container_runtime") {
                file.container_runtime = given(&entry, Some(reader.runtime(&entry)?));
            }
            if let Some(entry) = keys.take("debug_mode") {
                if let Some(first) = debug_mode {
                    return Err(debug_mode_twice(reader, &first, &entry));
                }
                debug_mode = Some(entry);
            }
            if let Some(entry) = keys.take("log_max_size") {
                file.log_max_size = given(&entry, log_size(reader, &entry)?);
            }
            if let Some(entry) = keys.take("log_max_files") {
                file.log_max_files = given(&entry, reader.number(&entry, 1, LogLimits::MAX_FILES)?);
            }
            if let Some(entry) = keys.take("registries") {
                file.registries = registries::read(reader, &entry)?;
            }
            if let Some(entry) = keys.take("network") {
                file.network = network::read(reader, &entry)?;
            }
            if let Some(entry) = keys.take("image_limit") {
                file.image_limit = given(&entry, size::read(reader, &entry)?);
            }
            let default_pool = keys.take("default_pool");
            if let Some(entry) = keys.take("pools") {
                file.pools = pools(reader, &entry)?;
            }
            if let Some(entry) = default_pool {
                file.default_pool = default_pool_of(reader, &entry, &file.pools)?;
            }
        }
        if let Some(entry) = debug_mode {
            file.debug_mode = given(&entry, Some(reader.flag(&entry)?));
        }
        Ok(file)
    }
}

fn given<T>(entry: &Entry<'_>, value: Option<T>) -> Option<Given<T>> {
    value.map(|value| Given { value, line: entry.key.at.line })
}

/// A number of bytes, or a text such as `10m`; `None` where it is null, empty or zero.
fn log_size(reader: &Reader<'_>, entry: &Entry<'_>) -> Result<Option<u64>> {
    const RULE: &str = "use 64k to 1t, as in 10m, or 0 for the default";
    let text = match &entry.node.value {
        Value::Integer(0) => return Ok(None),
        Value::Integer(number) => number.to_string(),
        _ => match reader.text(entry)? {
            Some(text) => text.to_owned(),
            None => return Ok(None),
        },
    };
    let bytes = LogLimits::parse_size(&text).map_err(|_| reader.invalid(entry, &text, RULE))?;
    Ok(Some(bytes))
}

fn debug_mode_twice(reader: &Reader<'_>, a: &Entry<'_>, b: &Entry<'_>) -> crate::Error {
    let line = |entry: &Entry<'_>| entry.key.at.line;
    let (first, second) = if line(a) <= line(b) { (a, b) } else { (b, a) };
    let message =
        format!("{} is also given as {} in line {}; keep one", second.path, first.path, line(first));
    reader.error(ErrorKind::DuplicateKey, second.key.at, message)
}

fn pools(reader: &Reader<'_>, entry: &Entry<'_>) -> Result<Vec<FilePool>> {
    let entries = reader.entries(entry.node, &entry.path)?;
    if entries.len() > MAX_POOLS {
        let message = format!("{} has {} pools; use at most {MAX_POOLS}", entry.path, entries.len());
        return Err(reader.error(ErrorKind::InvalidValue, entry.key.at, message));
    }
    entries.iter().map(|entry| pool(reader, entry)).collect()
}

fn pool(reader: &Reader<'_>, entry: &Entry<'_>) -> Result<FilePool> {
    let name = pool_name(reader, &entry.key.text, entry.key.at)?;
    let mut keys = reader.keys(entry.node, &entry.path, &POOL)?;
    let mut pool = FilePool {
        name,
        container_runtime: None,
        runtime_fallback: None,
        settings: RuntimeSettings::default(),
        given: Vec::new(),
    };
    if let Some(entry) = keys.take("container_runtime") {
        pool.container_runtime = given(&entry, Some(reader.runtime(&entry)?));
    }
    if let Some(entry) = keys.take("runtime_fallback") {
        pool.runtime_fallback = given(&entry, Some(fallback(reader, &entry)?));
    }
    if let Some(entry) = keys.take("container_runtime_config") {
        pool.given = settings::read(reader, &entry, &mut pool.settings)?;
    }
    Ok(pool)
}

fn pool_name(reader: &Reader<'_>, text: &str, at: Position) -> Result<PoolName> {
    PoolName::parse(text).map_err(|error| reader.error(ErrorKind::InvalidValue, at, error.to_string()))
}

fn fallback(reader: &Reader<'_>, entry: &Entry<'_>) -> Result<Vec<RuntimeKind>> {
    if matches!(entry.node.value, Value::Null) {
        // "Nothing" could mean the default as well as no fallback, and one of them lowers isolation.
        let message =
            format!("{} has no value; write [] to refuse any fallback, or remove the key", entry.path);
        return Err(reader.error(ErrorKind::WrongType, entry.key.at, message));
    }
    let words = RuntimeKind::ALL.map(RuntimeKind::as_str);
    let mut kinds = Vec::new();
    for item in reader.list(entry, "a list, as in [\"runc\"], or [] for none")? {
        let text = reader.text(&item)?.unwrap_or_default();
        let kind: RuntimeKind = text.parse().map_err(|_| reader.unknown_runtime(&item, text, &words))?;
        if kinds.contains(&kind) {
            let message = format!("{} names {kind} a second time", item.path);
            return Err(reader.error(ErrorKind::InvalidValue, item.node.at, message));
        }
        kinds.push(kind);
    }
    Ok(kinds)
}

fn default_pool_of(
    reader: &Reader<'_>,
    entry: &Entry<'_>,
    pools: &[FilePool],
) -> Result<Option<Given<PoolName>>> {
    let Some(text) = reader.text(entry)? else { return Ok(None) };
    let name = pool_name(reader, text, entry.node.at)?;
    let mut names: Vec<&str> = pools.iter().map(|pool| pool.name.as_str()).collect();
    let implied = PoolName::default();
    if names.is_empty() {
        names.push(implied.as_str());
    }
    if !names.contains(&name.as_str()) {
        let message =
            format!("{} names the pool {:?}, which this file does not have", entry.path, name.as_str());
        let hint = nearest(text, names.iter().copied()).map(|word| format!("did you mean {word:?}?"));
        return Err(reader.error(ErrorKind::UnknownPool, entry.node.at, message).hint(hint).allowed(names));
    }
    Ok(given(entry, Some(name)))
}
