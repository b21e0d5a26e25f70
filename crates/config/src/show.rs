//! The effective configuration for people (YAML that can be loaded again) and for programs (JSON).

use std::fmt::Write;

use serde_json::{Map, Value as Json, json};

use crate::config::{Config, RUNTIME_VARIABLE};
use crate::pool::{Pool, Source};
use crate::registries::FileRegistry;
use crate::settings;

/// One key of the effective configuration.
struct Shown {
    key: String,
    content: Content,
}

enum Content {
    Value(Json, Source),
    Mapping(Vec<Shown>),
}

impl Shown {
    fn value(key: &str, value: impl Into<Json>, source: Source) -> Self {
        Self { key: key.to_owned(), content: Content::Value(value.into(), source) }
    }

    fn mapping(key: &str, entries: Vec<Shown>) -> Self {
        Self { key: key.to_owned(), content: Content::Mapping(entries) }
    }
}

impl Config {
    /// Every value, each with a comment that says where it came from. Loading the text gives the same configuration.
    pub fn show_yaml(&self) -> String {
        let mut text = String::new();
        if let (Some(path), Some(hash)) = (&self.file, &self.loaded_hash) {
            let _ = writeln!(text, "# {} {hash}", comment_safe(&path.display().to_string()));
        }
        self.push_yaml(&mut text, &self.shown(), 0);
        text
    }

    /// `file` and `hash`, the values under `worker` in the file's shape, and `sources` from dotted path to source.
    pub fn show_json(&self) -> Json {
        let shown = self.shown();
        let mut object = to_object(&shown);
        let mut sources = Map::new();
        self.push_sources(&mut sources, &shown, "");
        object.insert("sources".into(), Json::Object(sources));
        object.insert("file".into(), json!(self.file.as_ref().map(|path| path.display().to_string())));
        object.insert("hash".into(), json!(self.loaded_hash));
        Json::Object(object)
    }

    fn shown(&self) -> Vec<Shown> {
        let mut worker = vec![
            Shown::value("root", self.root.0.display().to_string(), self.root.1),
            Shown::value("container_runtime", self.runtime.0.to_string(), self.runtime.1),
            Shown::value("debug_mode", self.debug_mode.0, self.debug_mode.1),
        ];
        if let (Some(name), source) = &self.default_pool {
            worker.push(Shown::value("default_pool", name.as_str(), *source));
        }
        worker.push(Shown::value("log_max_size", self.log_max_size.0, self.log_max_size.1));
        worker.push(Shown::value("log_max_files", self.log_max_files.0, self.log_max_files.1));
        if let (Some(limit), source) = self.image_limit {
            worker.push(Shown::value("image_limit", crate::size::show(limit), source));
        }
        let network = self.network.shown().into_iter();
        let network = network.map(|(key, value, source)| Shown::value(key, value, source)).collect();
        worker.push(Shown::mapping("network", network));
        worker.push(Shown::mapping("pools", self.pools.iter().map(shown_pool).collect()));
        if !self.registries.is_empty() {
            worker.push(Shown::mapping("registries", self.registries.iter().map(shown_registry).collect()));
        }
        vec![Shown::mapping("worker", worker)]
    }

    /// Where a value came from, in words.
    pub fn describe_source(&self, source: Source) -> String {
        match source {
            Source::Default => "default".to_owned(),
            Source::Environment => format!("environment {RUNTIME_VARIABLE}"),
            Source::PoolKey { line } | Source::WorkerKey { line } => match &self.file {
                Some(path) => format!("{}:{line}", path.display()),
                None => format!("line {line}"),
            },
        }
    }

    fn push_yaml(&self, text: &mut String, entries: &[Shown], depth: usize) {
        for Shown { key, content } in entries {
            let key = yaml_scalar(key);
            let indent = "  ".repeat(depth);
            match content {
                Content::Value(value, source) => {
                    let source = comment_safe(&self.describe_source(*source));
                    let _ = writeln!(text, "{indent}{key}: {}  # {source}", yaml_value(value));
                }
                Content::Mapping(entries) => {
                    let _ = writeln!(text, "{indent}{key}:");
                    self.push_yaml(text, entries, depth + 1);
                }
            }
        }
    }

    fn push_sources(&self, sources: &mut Map<String, Json>, entries: &[Shown], prefix: &str) {
        for Shown { key, content } in entries {
            match content {
                Content::Value(_, source) => {
                    sources.insert(format!("{prefix}{key}"), self.describe_source(*source).into());
                }
                Content::Mapping(entries) => self.push_sources(sources, entries, &format!("{prefix}{key}.")),
            }
        }
    }
}

fn shown_registry(registry: &FileRegistry) -> Shown {
    let values = registry.shown().into_iter().map(|(key, value, source)| Shown::value(key, value, source));
    Shown::mapping(registry.host.as_str(), values.collect())
}

fn shown_pool(pool: &Pool) -> Shown {
    let fallback: Vec<&str> = pool.fallback.iter().map(|kind| kind.as_str()).collect();
    let settings = settings::show(&pool.settings)
        .into_iter()
        .map(|(name, value)| Shown::value(name, value, pool.setting_source(name)))
        .collect();
    let entries = vec![
        Shown::value("container_runtime", pool.runtime.to_string(), pool.runtime_source),
        Shown::value("runtime_fallback", fallback, pool.fallback_source),
        Shown::mapping("container_runtime_config", settings),
    ];
    Shown::mapping(pool.name.as_str(), entries)
}

fn to_object(entries: &[Shown]) -> Map<String, Json> {
    entries
        .iter()
        .map(|Shown { key, content }| {
            let value = match content {
                Content::Value(value, _) => value.clone(),
                Content::Mapping(entries) => Json::Object(to_object(entries)),
            };
            (key.clone(), value)
        })
        .collect()
}

fn yaml_value(value: &Json) -> String {
    match value {
        Json::String(text) => yaml_scalar(text),
        // A list of texts in JSON is the same list in YAML's flow style.
        other => other.to_string(),
    }
}

/// A word or a path stands as it is; what YAML could take for something else is quoted as JSON does, which YAML reads.
fn yaml_scalar(text: &str) -> String {
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
    let reserved = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    if plain && !reserved.contains(&text.to_ascii_lowercase().as_str()) {
        text.to_owned()
    } else {
        Json::from(text).to_string()
    }
}

/// A file's name may hold a newline, which would end the comment.
fn comment_safe(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
