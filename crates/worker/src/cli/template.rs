//! `--format`: the part of docker's templates that scripts use.
//!
//! `{{.Field}}`, `{{.a.b}}`, `{{json .}}`, `{{json .Field}}`, `{{.Label "name"}}`, and text between them with `\t` and
//! `\n`. Everything else of Go's templates is refused.

use serde_json::Value;

use crate::cli::Failure;

/// A template that was read.
pub(super) struct Template(Vec<Piece>);

enum Piece {
    Text(String),
    Value { path: Vec<String>, as_json: bool },
    Label(String),
}

impl Template {
    /// Reads a template.
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        let text = text.replace("\\t", "\t").replace("\\n", "\n");
        let mut pieces = Vec::new();
        let mut rest = text.as_str();
        while let Some((before, after)) = rest.split_once("{{") {
            let (action, after) = after.split_once("}}").ok_or_else(|| refused(&format!("{{{{{after}")))?;
            pieces.push(Piece::Text(before.to_owned()));
            pieces.push(piece(action.trim())?);
            rest = after;
        }
        pieces.push(Piece::Text(rest.to_owned()));
        Ok(Self(pieces))
    }

    /// Fills it in from `value`. A field that is not there is an error that lists those that are.
    pub(super) fn fill(&self, value: &Value) -> Result<String, Failure> {
        let mut text = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(words) => text.push_str(words),
                Piece::Label(name) => {
                    text.push_str(value["labels"][name].as_str().unwrap_or_default());
                }
                Piece::Value { path, as_json } => {
                    let found = find(value, path)?;
                    match found {
                        _ if *as_json => text.push_str(&found.to_string()),
                        Value::String(words) => text.push_str(words),
                        Value::Null => text.push_str("<no value>"),
                        other => text.push_str(&other.to_string()),
                    }
                }
            }
        }
        Ok(text)
    }

    /// The names of the fields as a table's heads, docker's way.
    pub(super) fn heads(&self) -> String {
        let pieces = self.0.iter().map(|piece| match piece {
            Piece::Text(words) => words.clone(),
            Piece::Label(name) => name.clone(),
            Piece::Value { path, .. } => match path.last().map(String::as_str) {
                Some("ID") => "CONTAINER ID".to_owned(),
                Some(name) => name.to_uppercase(),
                None => String::new(),
            },
        });
        pieces.collect()
    }
}

fn piece(action: &str) -> Result<Piece, Failure> {
    let (as_json, path) = match action.strip_prefix("json ") {
        Some(path) => (true, path.trim()),
        None => (false, action),
    };
    if let Some(name) = path.strip_prefix(".Label ") {
        let name = name.trim().strip_prefix('"').and_then(|name| name.strip_suffix('"'));
        return name.map(|name| Piece::Label(name.to_owned())).ok_or_else(|| refused(action));
    }
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
    match path.strip_prefix('.') {
        Some("") => Ok(Piece::Value { path: Vec::new(), as_json: true }),
        Some(path) if path.chars().all(known) && !path.split('.').any(str::is_empty) => {
            Ok(Piece::Value { path: path.split('.').map(str::to_owned).collect(), as_json })
        }
        _ => Err(refused(action)),
    }
}

fn find<'v>(value: &'v Value, path: &[String]) -> Result<&'v Value, Failure> {
    let mut found = value;
    for name in path {
        found = match found {
            Value::Null => return Ok(found),
            Value::Object(fields) => fields.get(name).ok_or_else(|| {
                let names: Vec<&str> = fields.keys().map(String::as_str).collect();
                Failure::new(format!("there is no field {name:?}: use one of {}", names.join(", ")))
            })?,
            _ => {
                return Err(Failure::new(format!(
                    "there is nothing below the field before {name:?}: leave it out"
                )));
            }
        };
    }
    Ok(found)
}

fn refused(action: &str) -> Failure {
    Failure::new(format!(
        "--format cannot {action:?}: use {{{{.Field}}}}, {{{{json .Field}}}} or {{{{.Label \"name\"}}}}, or --output json"
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn filled(template: &str) -> Result<String, String> {
        let value = json!({ "ID": "abc", "exit": { "code": 7 }, "none": null, "labels": { "a.b": "c" } });
        Template::parse(template)
            .and_then(|template| template.fill(&value))
            .map_err(|failure| failure.message)
    }

    #[test]
    fn fields_are_filled_in() {
        assert_eq!(filled("{{.ID}}\\t{{ .exit.code }}!").unwrap(), "abc\t7!");
        assert_eq!(filled("{{json .ID}}{{.exit.code}}").unwrap(), "\"abc\"7");
        assert_eq!(filled("{{.Label \"a.b\"}}|{{.none.below}}").unwrap(), "c|<no value>");
        assert!(filled("{{.}}").unwrap().starts_with("{\"ID\""));
    }

    #[test]
    fn what_is_no_field_is_refused_by_name() {
        for bad in ["{{if .ID}}", "{{.ID", "{{range .}}", "{{ID}}", "{{.a..b}}"] {
            assert!(filled(bad).unwrap_err().contains("--format cannot"), "{bad}");
        }
        assert!(filled("{{.Name}}").unwrap_err().contains("use one of ID, exit"));
    }
}
