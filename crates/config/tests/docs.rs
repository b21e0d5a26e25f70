//! The documentation says what the code does.

use std::path::Path;

use beta9_config::Config;
use serde_json::Value;

fn page(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The code blocks of a page with this language.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if let Some(found) = line.strip_prefix("```") {
            let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            if found == language {
                blocks.push(block.join("\n"));
            }
        }
    }
    blocks
}

#[test]
fn every_yaml_example_is_valid() {
    let mut count = 0;
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !name.ends_with(".md") {
            continue;
        }
        // Other pages have manifests too; the worker's configuration is what has its key.
        for block in blocks(&page(&name), "yaml").iter().filter(|block| block.contains("worker:\n")) {
            count += 1;
            if let Err(error) = Config::parse(block, &name, |_| None) {
                panic!("{}", error.render());
            }
        }
    }
    assert!(count >= 4, "{count} examples found");
}

#[test]
fn the_tables_name_every_key_with_its_default() {
    let page = page("configuration.md");
    let shown = Config::without_file(|_| None).unwrap().show_json();
    let pool = &shown["worker"]["pools"]["default"];
    for (mapping, defaults_shown) in
        [(&shown["worker"], false), (pool, false), (&pool["container_runtime_config"], true)]
    {
        for (key, value) in mapping.as_object().unwrap() {
            let row = page.lines().find(|line| line.starts_with(&format!("| `{key}` |")));
            let Some(row) = row else { panic!("docs/configuration.md has no row for {key}") };
            let default = match value {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let told_otherwise = key.ends_with("_initrd") || key == "debug" || key == "storage_size";
            assert!(
                !defaults_shown || told_otherwise || row.contains(&format!("`{default}`")),
                "{row}: {default}"
            );
        }
    }
}

#[test]
fn the_json_example_is_one() {
    let lines = blocks(&page("logging.md"), "json");
    let event: Value = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!(event["message"], "initializing container runtime for worker pool");
}
