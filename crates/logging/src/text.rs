//! `[LEVEL] message key=value key="quoted when needed"`

use std::fmt::Write;

use serde_json::Value;
use tracing::Level;

use crate::event::Event;

pub(crate) fn line(level: Level, event: &Event) -> String {
    let mut line = format!("[{level}] ");
    for c in event.message.chars() {
        push_visible(&mut line, c);
    }
    for (name, value) in &event.fields {
        let _ = write!(line, " {name}=");
        match value {
            Value::String(text) if is_plain(text) => line.push_str(text),
            Value::String(text) => push_quoted(&mut line, text),
            number_or_bool => {
                let _ = write!(line, "{number_or_bool}");
            }
        }
    }
    line.push('\n');
    line
}

fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && !text.chars().any(|c| c.is_whitespace() || c == '"' || c == '=' || c == '\'' || is_unsafe(c))
}

fn push_quoted(line: &mut String, text: &str) {
    line.push('"');
    for c in text.chars() {
        match c {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            c => push_visible(line, c),
        }
    }
    line.push('"');
}

fn push_visible(line: &mut String, c: char) {
    if is_unsafe(c) {
        line.extend(c.escape_default());
    } else {
        line.push(c);
    }
}

/// Characters that end a line, drive a terminal, or turn the direction of what follows (CVE-2021-42574).
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with(value: impl Into<Value>) -> String {
        let event = Event { message: "m".into(), fields: vec![("k", value.into())] };
        line(Level::INFO, &event)
    }

    #[test]
    fn values_are_quoted_only_when_they_must_be() {
        for (value, shown) in [
            ("runc", "runc"),
            ("/var/lib/beta9", "/var/lib/beta9"),
            ("a:b,c;d[0]", "a:b,c;d[0]"),
            ("ä…", "ä…"),
            ("C:\\x", "C:\\x"),
            ("", "\"\""),
            ("two words", "\"two words\""),
            ("a=b", "\"a=b\""),
            ("say \"x\"", "\"say \\\"x\\\"\""),
            ("it's", "\"it's\""),
            ("a b\\c", "\"a b\\\\c\""),
            ("a\nb", "\"a\\nb\""),
            ("\u{1b}[31mred", "\"\\u{1b}[31mred\""),
            ("\u{202e}txt", "\"\\u{202e}txt\""),
        ] {
            assert_eq!(with(value), format!("[INFO] m k={shown}\n"));
        }
        assert_eq!(with(512), "[INFO] m k=512\n");
        assert_eq!(with(true), "[INFO] m k=true\n");
    }

    #[test]
    fn a_message_cannot_start_a_second_line() {
        let event = Event { message: "x\n[ERROR] forged".into(), fields: Vec::new() };
        assert_eq!(line(Level::WARN, &event), "[WARN] x\\n[ERROR] forged\n");
    }

    proptest! {
        #[test]
        fn whatever_a_value_holds_it_stays_one_line(value in any::<String>()) {
            let line = with(value);
            prop_assert_eq!(line.chars().filter(|c| c.is_control()).collect::<String>(), "\n");
        }
    }
}
