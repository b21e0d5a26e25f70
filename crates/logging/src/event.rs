//! An event or a span's attributes, taken apart.

use std::error::Error;
use std::fmt::{Debug, Write};

use serde_json::Value;
use tracing::field::{Field, Visit};

/// Longest text of one value in a line, in bytes. A console's tail fits; a flood does not.
const VALUE_CAP: usize = 8 << 10;

/// What an event or a span carries, in the order in which it was given.
#[derive(Debug, Default)]
pub(crate) struct Event {
    pub(crate) message: String,
    pub(crate) fields: Vec<(&'static str, Value)>,
}

impl Event {
    fn put(&mut self, field: &Field, value: Value) {
        let name = field.name();
        let name = name.strip_prefix("r#").unwrap_or(name);
        match self.fields.iter_mut().find(|(known, _)| *known == name) {
            // A span's field that was declared empty and recorded later, or recorded twice.
            Some(known) => known.1 = value,
            None => self.fields.push((name, value)),
        }
    }

    fn put_text(&mut self, field: &Field, text: String) {
        let text = capped(text);
        if field.name() == "message" {
            self.message = text;
        } else {
            self.put(field, Value::String(text));
        }
    }

    /// Adds what is not there yet: an event's own fields win over its spans', an inner span's over an outer one's.
    pub(crate) fn inherit(&mut self, span: &Event) {
        for (name, value) in &span.fields {
            if !self.fields.iter().any(|(known, _)| known == name) {
                self.fields.push((name, value.clone()));
            }
        }
    }
}

impl Visit for Event {
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no infinities; they become text.
        let number = serde_json::Number::from_f64(value);
        self.put(field, number.map_or_else(|| value.to_string().into(), Value::Number));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put_text(field, value.to_owned());
    }

    fn record_error(&mut self, field: &Field, error: &(dyn Error + 'static)) {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let _ = write!(text, ": {cause}");
            source = cause.source();
        }
        self.put_text(field, text);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.put_text(field, format!("{value:?}"));
    }
}

fn capped(mut text: String) -> String {
    if text.len() > VALUE_CAP {
        let mut end = VALUE_CAP;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let left_out = text.len() - end;
        text.truncate(end);
        let _ = write!(text, "… ({left_out} bytes left out)");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_between_characters() {
        let cut = capped("ä".repeat(VALUE_CAP));
        assert!(cut.len() < VALUE_CAP + 64, "{}", cut.len());
        assert!(cut.ends_with("ä… (8192 bytes left out)"), "{}", &cut[VALUE_CAP - 2..]);
        assert_eq!(capped("short".to_owned()), "short");
    }
}
