//! Stories that are not run on a runtime, because the runtime differs and not because the worker is wrong.
//!
//! One per line in `exclusions.txt`: `RUNTIME STORY: REASON`; lines that start with `#` are comments.

use anyhow::{Context, Result, ensure};
use beta9_types::RuntimeKind;

/// A known difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exclusion {
    /// Where it differs.
    pub runtime: RuntimeKind,
    /// The story's name.
    pub story: String,
    /// How it differs, and why that is not the worker's.
    pub reason: String,
}

/// The project's own list. Every name in it must be one of `stories`.
pub fn load(stories: &[&str]) -> Result<Vec<Exclusion>> {
    parse(include_str!("../exclusions.txt"), stories)
}

fn parse(text: &str, stories: &[&str]) -> Result<Vec<Exclusion>> {
    let mut all: Vec<Exclusion> = Vec::new();
    for (index, line) in
        text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
    {
        let place = format!("exclusions.txt, line {}", index + 1);
        let words =
            line.split_once(": ").and_then(|(head, reason)| Some((head.split_once(' ')?, reason.trim())));
        let ((runtime, story), reason) =
            words.with_context(|| format!("{place}: write RUNTIME STORY: REASON, not {line:?}"))?;
        let runtime = runtime.parse().with_context(|| place.clone())?;
        ensure!(!reason.is_empty(), "{place}: {story} needs a reason");
        ensure!(stories.contains(&story), "{place}: there is no story {story:?}");
        let known = all.iter().any(|other| other.runtime == runtime && other.story == story);
        ensure!(!known, "{place}: {story} is excluded on {runtime} already");
        all.push(Exclusion { runtime, story: story.to_owned(), reason: reason.to_owned() });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_projects_list_names_stories_that_exist() {
        let names: Vec<_> = crate::stories::all().map(|story| story.name).collect();
        load(&names).unwrap();
    }

    #[test]
    fn a_line_has_a_runtime_a_story_and_a_reason() {
        let known = ["a", "b"];
        let good = parse("# comment\n\ngvisor a: has: colons\nqemu a: too\n", &known).unwrap();
        assert_eq!((good.len(), good[0].reason.as_str()), (2, "has: colons"));
        for bad in
            ["gvisor a", "gvisor a:", "gvisor c: unknown", "other a: b", "a: b", "qemu b: x\nqemu b: y"]
        {
            assert!(parse(bad, &known).is_err(), "{bad:?} was accepted");
        }
    }
}
