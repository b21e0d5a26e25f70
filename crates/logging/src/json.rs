//! One object per line: `time`, `level`, `message`, then the fields.

use serde_json::Value;
use tracing::Level;

use crate::event::Event;

/// Names that a line uses itself; a field of that name gets the prefix `field_`.
const OWN: [&str; 3] = ["time", "level", "message"];

pub(crate) fn line(time: &str, level: Level, event: &Event) -> String {
    let mut line = String::from("{");
    push(&mut line, "time", &time.into());
    push(&mut line, "level", &level.as_str().into());
    push(&mut line, "message", &event.message.as_str().into());
    for (name, value) in &event.fields {
        if OWN.contains(name) {
            push(&mut line, &format!("field_{name}"), value);
        } else {
            push(&mut line, name, value);
        }
    }
    line.push_str("}\n");
    line
}

fn push(line: &mut String, name: &str, value: &Value) {
    if line.len() > 1 {
        line.push(',');
    }
    line.push_str(&Value::from(name).to_string());
    line.push(':');
    line.push_str(&value.to_string());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_keep_their_order_and_cannot_take_the_lines_own_names() {
        let event = Event { message: "m".into(), fields: vec![("pool", "x".into()), ("time", 3.into())] };
        assert_eq!(
            line("2026-01-02T03:04:05.000000Z", Level::WARN, &event),
            "{\"time\":\"2026-01-02T03:04:05.000000Z\",\"level\":\"WARN\",\"message\":\"m\",\"pool\":\"x\",\"field_time\":3}\n"
        );
    }

    proptest! {
        #[test]
        fn any_value_comes_back(value in any::<String>()) {
            let event = Event { message: value.clone(), fields: vec![("k", value.clone().into())] };
            let line = line("t", Level::INFO, &event);
            prop_assert_eq!(line.matches('\n').count(), 1);
            let parsed: Value = serde_json::from_str(&line).unwrap();
            prop_assert_eq!(parsed["k"].as_str(), Some(value.as_str()));
            prop_assert_eq!(parsed["message"].as_str(), Some(value.as_str()));
        }
    }
}
