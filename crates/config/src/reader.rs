//! Typed access to the tree: every refusal names the key's path and its place.

use std::collections::HashMap;
use std::path::Path;

use beta9_types::RuntimeChoice;

use crate::error::{Error, ErrorKind, Position, Result, quoted};
use crate::near::nearest;
use crate::node::{Key, Node, Value};

/// The file that is being read.
pub(crate) struct Reader<'a> {
    pub(crate) file: &'a Path,
    pub(crate) text: &'a str,
}

/// A key with its value, taken out of a mapping.
#[derive(Clone)]
pub(crate) struct Entry<'a> {
    /// The dotted path in snake_case.
    pub(crate) path: String,
    pub(crate) key: &'a Key,
    pub(crate) node: &'a Node,
}

/// The keys of one mapping, each at most once and known to be allowed.
pub(crate) struct Keys<'a>(Vec<(&'static str, Entry<'a>)>);

impl<'a> Keys<'a> {
    pub(crate) fn take(&mut self, name: &str) -> Option<Entry<'a>> {
        let index = self.0.iter().position(|(known, _)| *known == name)?;
        Some(self.0.swap_remove(index).1)
    }
}

impl<'a> Reader<'a> {
    pub(crate) fn error(&self, kind: ErrorKind, at: Position, message: impl Into<String>) -> Error {
        Error::new(kind, format_args!("config {}", self.file.display()), message).at(at, self.text)
    }

    fn wrong_type(&self, entry: &Entry<'_>, expected: &str) -> Error {
        let found = describe(&entry.node.value);
        self.error(
            ErrorKind::WrongType,
            entry.node.at,
            format!("{} must be {expected}, not {found}", entry.path),
        )
    }

    pub(crate) fn invalid(&self, entry: &Entry<'_>, text: &str, rule: impl Into<String>) -> Error {
        let message = format!("invalid value {} for {}", quoted(text), entry.path);
        self.error(ErrorKind::InvalidValue, entry.node.at, message).hint(Some(rule.into()))
    }

    /// A word out of a short list.
    pub(crate) fn unknown_word(&self, entry: &Entry<'_>, text: &str, allowed: &[&str]) -> Error {
        let message = format!("unknown value {} for {}", quoted(text), entry.path);
        let hint = nearest(text, allowed.iter().copied()).map(|word| format!("did you mean {word:?}?"));
        self.error(ErrorKind::InvalidValue, entry.node.at, message).hint(hint).allowed(allowed)
    }

    /// The entries of a mapping whose keys are names, not words of ours. Null is an empty mapping.
    pub(crate) fn entries(&self, node: &'a Node, path: &str) -> Result<Vec<Entry<'a>>> {
        let entries = match &node.value {
            Value::Null => return Ok(Vec::new()),
            Value::Map(entries) => entries,
            other => {
                let what = if path.is_empty() { "the file" } else { path };
                let message = format!("{what} must be a mapping of keys to values, not {}", describe(other));
                return Err(self.error(ErrorKind::WrongType, node.at, message));
            }
        };
        let mut found: Vec<Entry<'a>> = Vec::new();
        let mut known = HashMap::new();
        for (key, node) in entries {
            let path = if path.is_empty() { key.text.clone() } else { format!("{path}.{}", key.text) };
            if let Some(first) = known.insert(key.text.as_str(), key) {
                return Err(self.twice(first, key, &path));
            }
            found.push(Entry { path, key, node });
        }
        Ok(found)
    }

    /// The keys of a mapping, each in snake_case or camelCase, and none but the allowed ones.
    pub(crate) fn keys(&self, node: &'a Node, path: &str, allowed: &[&'static str]) -> Result<Keys<'a>> {
        let mut keys = Keys(Vec::new());
        for mut entry in self.entries(node, path)? {
            let given = &entry.key.text;
            let known = allowed.iter().copied().find(|name| *name == *given || camel_case(name) == *given);
            let Some(name) = known else { return Err(self.unknown_key(&entry, allowed)) };
            if let Some((_, first)) = keys.0.iter().find(|(known, _)| *known == name) {
                return Err(self.twice(first.key, entry.key, &entry.path));
            }
            entry.path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            keys.0.push((name, entry));
        }
        Ok(keys)
    }

    fn twice(&self, first: &Key, key: &Key, path: &str) -> Error {
        let line = first.at.line;
        let message = if first.text == key.text {
            format!("duplicate key {}; it is given in line {line} already", quoted(path))
        } else {
            format!(
                "key {} is also given as {} in line {line}; keep one spelling",
                quoted(path),
                quoted(&first.text)
            )
        };
        self.error(ErrorKind::DuplicateKey, key.at, message)
    }

    fn unknown_key(&self, entry: &Entry<'_>, allowed: &[&'static str]) -> Error {
        let given = &entry.key.text;
        let camel: Vec<String> = allowed.iter().map(|name| camel_case(name)).collect();
        // In the spelling that the writer of the file uses.
        let meant = if given.contains('_') {
            nearest(given, allowed.iter().copied())
        } else {
            nearest(given, allowed.iter().copied().chain(camel.iter().map(String::as_str)))
        };
        let hint = meant
            .map(|word| format!("did you mean {word:?}?"))
            .or_else(|| crate::file::home_of(given).map(|home| format!("it belongs under {home}")));
        self.error(ErrorKind::UnknownKey, entry.key.at, format!("unknown key {}", quoted(&entry.path)))
            .hint(hint)
            .allowed(allowed)
    }

    /// A text; `None` where it is null or empty.
    pub(crate) fn text<'n>(&self, entry: &Entry<'n>) -> Result<Option<&'n str>> {
        match &entry.node.value {
            Value::Null => Ok(None),
            Value::Text(text) if text.is_empty() => Ok(None),
            Value::Text(text) => Ok(Some(text)),
            _ => Err(self.wrong_type(entry, "a text")),
        }
    }

    pub(crate) fn flag(&self, entry: &Entry<'_>) -> Result<bool> {
        match entry.node.value {
            Value::Bool(value) => Ok(value),
            _ => Err(self.wrong_type(entry, "true or false")),
        }
    }

    /// A whole number from `min` to `max`; `None` where it is null, empty or zero.
    pub(crate) fn number(&self, entry: &Entry<'_>, min: u32, max: u32) -> Result<Option<u32>> {
        let rule = format!("a whole number from {min} to {max}");
        match &entry.node.value {
            Value::Null | Value::Integer(0) => Ok(None),
            Value::Text(text) if text.is_empty() => Ok(None),
            Value::Integer(number) => match u32::try_from(*number) {
                Ok(number) if (min..=max).contains(&number) => Ok(Some(number)),
                _ => {
                    Err(self.invalid(entry, &number.to_string(), format!("use {rule}, or 0 for the default")))
                }
            },
            _ => Err(self.wrong_type(entry, &rule)),
        }
    }

    /// The items of a list, each with its own path.
    pub(crate) fn list(&self, entry: &Entry<'a>, expected: &str) -> Result<Vec<Entry<'a>>> {
        match &entry.node.value {
            Value::List(items) => Ok(items
                .iter()
                .enumerate()
                .map(|(index, node)| Entry { path: format!("{}[{index}]", entry.path), key: entry.key, node })
                .collect()),
            _ => Err(self.wrong_type(entry, expected)),
        }
    }

    pub(crate) fn runtime(&self, entry: &Entry<'_>) -> Result<RuntimeChoice> {
        let Some(text) = self.text(entry).map_err(|error| error.allowed(RUNTIME_WORDS))? else {
            // An unset template variable must not become the default, which isolates least.
            let message = format!("{} is empty; name a runtime or remove the key", entry.path);
            return Err(self.error(ErrorKind::InvalidValue, entry.key.at, message).allowed(RUNTIME_WORDS));
        };
        text.parse().map_err(|_| self.unknown_runtime(entry, text, &RUNTIME_WORDS))
    }

    pub(crate) fn unknown_runtime(&self, entry: &Entry<'_>, text: &str, allowed: &[&str]) -> Error {
        let error = self.unknown_word(entry, text, allowed);
        // Closer to another word by spelling, and that word would isolate less.
        if text == "runsc" { error.hint(Some("did you mean \"gvisor\"?".into())) } else { error }
    }
}

/// What a pool's `container_runtime` may be.
pub(crate) const RUNTIME_WORDS: [&str; 5] = ["runc", "gvisor", "firecracker", "qemu", "microvm"];

pub(crate) fn camel_case(snake: &str) -> String {
    let mut words = snake.split('_');
    let mut camel = words.next().unwrap_or_default().to_owned();
    for word in words {
        let mut letters = word.chars();
        camel.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        camel.push_str(letters.as_str());
    }
    camel
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "an empty value".into(),
        Value::Bool(value) => value.to_string(),
        Value::Integer(number) => format!("the number {number}"),
        Value::Float(number) => format!("the number {number}"),
        Value::Text(text) => format!("the text {}", quoted(text)),
        Value::List(_) => "a list".into(),
        Value::Map(_) => "a mapping".into(),
    }
}
