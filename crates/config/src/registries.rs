//! `worker.registries`: how the images of each registry are reached.

use beta9_types::{RegistryHost, RegistrySettings};
use serde_json::Value as Json;

use crate::error::{ErrorKind, Position, Result};
use crate::pool::Source;
use crate::reader::{Entry, Reader};
use crate::settings::{Rule, read_path};

pub(crate) const KEYS: [&str; 3] = ["mirrors", "plain_http", "ca_file"];
/// More than anybody has reason to name.
const MAX_REGISTRIES: usize = 256;
const MAX_MIRRORS: usize = 16;

/// What the file says about one registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileRegistry {
    pub(crate) host: RegistryHost,
    pub(crate) settings: RegistrySettings,
    /// The keys that the file gives, with their lines.
    given: Vec<(&'static str, u32)>,
}

pub(crate) fn read(reader: &Reader<'_>, entry: &Entry<'_>) -> Result<Vec<FileRegistry>> {
    let entries = reader.entries(entry.node, &entry.path)?;
    if entries.len() > MAX_REGISTRIES {
        let message =
            format!("{} has {} registries; use at most {MAX_REGISTRIES}", entry.path, entries.len());
        return Err(reader.error(ErrorKind::InvalidValue, entry.key.at, message));
    }
    let mut found: Vec<FileRegistry> = Vec::new();
    for entry in &entries {
        let registry = registry(reader, entry)?;
        if found.iter().any(|other| other.host == registry.host) {
            let message = format!("{} is {}, which is given already", entry.path, registry.host);
            return Err(reader.error(ErrorKind::DuplicateKey, entry.key.at, message));
        }
        found.push(registry);
    }
    Ok(found)
}

fn registry(reader: &Reader<'_>, entry: &Entry<'_>) -> Result<FileRegistry> {
    let host = host(reader, &entry.key.text, entry.key.at)?;
    let mut keys = reader.keys(entry.node, &entry.path, &KEYS)?;
    let mut settings = RegistrySettings::default();
    let mut given = Vec::new();
    if let Some(entry) = keys.take("mirrors") {
        for item in reader.list(&entry, "a list of registries, as in [\"mirror.example:5000\"]")? {
            let text = reader.text(&item)?.unwrap_or_default();
            let mirror = self::host(reader, text, item.node.at)?;
            if mirror == host || settings.mirrors.contains(&mirror) {
                let message = format!("{} names {mirror} a second time", item.path);
                return Err(reader.error(ErrorKind::InvalidValue, item.node.at, message));
            }
            settings.mirrors.push(mirror);
        }
        if settings.mirrors.len() > MAX_MIRRORS {
            let message = format!("{} names more than {MAX_MIRRORS} mirrors", entry.path);
            return Err(reader.error(ErrorKind::InvalidValue, entry.key.at, message));
        }
        given.push(("mirrors", entry.key.at.line));
    }
    if let Some(entry) = keys.take("plain_http") {
        settings.plain_http = Some(reader.flag(&entry)?);
        given.push(("plain_http", entry.key.at.line));
    }
    if let Some(entry) = keys.take("ca_file") {
        settings.ca_file = read_path(reader, &entry, Rule::File)?;
        given.extend(settings.ca_file.as_ref().map(|_| ("ca_file", entry.key.at.line)));
    }
    Ok(FileRegistry { host, settings, given })
}

fn host(reader: &Reader<'_>, text: &str, at: Position) -> Result<RegistryHost> {
    RegistryHost::parse(text).map_err(|error| reader.error(ErrorKind::InvalidValue, at, error.to_string()))
}

impl FileRegistry {
    /// The values that the file gives, with their sources.
    pub(crate) fn shown(&self) -> Vec<(&'static str, Json, Source)> {
        let RegistrySettings { mirrors, plain_http, ca_file } = &self.settings;
        let value = |key| match key {
            "mirrors" => mirrors.iter().map(|mirror| Json::from(mirror.as_str())).collect::<Vec<_>>().into(),
            "plain_http" => Json::from(*plain_http),
            _ => Json::from(ca_file.as_ref().map(|path| path.display().to_string())),
        };
        self.given.iter().map(|(key, line)| (*key, value(*key), Source::WorkerKey { line: *line })).collect()
    }
}
