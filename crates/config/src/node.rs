//! YAML as a tree in which every key and value knows its place.
//!
//! Structs derived from serde would say which field is wrong, yet not on which path, and they drop a value's place once
//! it is read. A tree keeps both, and one walk over it can refuse, resolve and explain.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::{DuplicateKeyPolicy, Options};
use serde_saphyr::{MessageFormatter, Spanned, UserMessageFormatter};

use crate::error::{ErrorKind, Position};

/// A value and where it stands.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) at: Position,
}

#[derive(Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Integer(i128),
    /// Also an integer beyond what YAML libraries keep exact.
    Float(f64),
    Text(String),
    List(Vec<Node>),
    /// In the file's order; a key may come twice.
    Map(Vec<(Key, Node)>),
}

/// A key and where it stands.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) text: String,
    pub(crate) at: Position,
}

/// Why a text is not a tree.
pub(crate) struct SyntaxError {
    pub(crate) kind: ErrorKind,
    pub(crate) message: String,
    pub(crate) at: Option<Position>,
}

/// Reads one document. An empty one is a null.
pub(crate) fn parse(text: &str) -> Result<Node, SyntaxError> {
    serde_saphyr::from_str_with_options(text, options()).map_err(|error| syntax_error(&error))
}

fn options() -> Options {
    serde_saphyr::options! {
        // Found by the walk, which can name both places.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        with_snippet: false,
        // YAML 1.2: `no` is a word, `010` is not a number.
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        reject_unsupported_tags: true,
        budget: serde_saphyr::budget! {
            max_depth: 16,
            flow_nesting_limit: 16,
            // Twice what the largest number of pools needs with every key given.
            max_events: 50_000,
            max_nodes: 25_000,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_merge_keys: 1_000,
            max_recorded_anchor_events: 50_000,
            max_documents: 2,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 25_000,
            max_replay_stack_depth: 16,
        },
    }
}

fn syntax_error(error: &serde_saphyr::Error) -> SyntaxError {
    use serde_saphyr::Error as Yaml;
    let at = error.location().map(|location| position(&location));
    let cause = match error {
        Yaml::AliasError { error, .. } => error,
        other => other,
    };
    let (kind, message) = match cause {
        Yaml::Budget { .. }
        | Yaml::AliasReplayCounterOverflow { .. }
        | Yaml::AliasReplayLimitExceeded { .. }
        | Yaml::AliasExpansionLimitExceeded { .. }
        | Yaml::AliasReplayStackDepthExceeded { .. } => (
            ErrorKind::TooLarge,
            "nests deeper or expands to more than a configuration file has reason to".into(),
        ),
        Yaml::MultipleDocuments { .. } => {
            (ErrorKind::Syntax, "a second YAML document starts here; keep one".into())
        }
        Yaml::NullIntoString { .. } => {
            (ErrorKind::Syntax, "a key is missing or null; quote it if it is a name".into())
        }
        Yaml::UnknownAnchor { .. } => (ErrorKind::Syntax, "no anchor of this name stands above".into()),
        other => {
            let text = UserMessageFormatter.format_message(other);
            (ErrorKind::Syntax, format!("not valid YAML: {}", text.lines().next().unwrap_or_default()))
        }
    };
    SyntaxError { kind, message, at }
}

fn position(location: &serde_saphyr::Location) -> Position {
    let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    Position {
        line: small(location.line()),
        column: small(location.column()),
        length: small(location.span().len()),
    }
}

/// Where the thing itself is written, rather than where an alias repeats it.
fn place<T>(spanned: &Spanned<T>) -> Position {
    let defined = position(&spanned.defined);
    if defined.line > 0 { defined } else { position(&spanned.referenced) }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { at: place(&spanned), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<String>::deserialize(deserializer)?;
        Ok(Self { at: place(&spanned), text: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Value::Map(map))
    }
}
