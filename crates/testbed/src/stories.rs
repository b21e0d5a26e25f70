//! Parity stories: what a container must do, whatever isolates it.
//!
//! A story is a function that gets a [`World`] and fails with everything a reader needs. It knows the runtime only as
//! something containers run on; where a runtime differs for a reason of its own, `exclusions.txt` says so.

mod again;
mod commands;
mod copies;
mod exec;
mod exit;
mod files;
mod flags;
mod images;
mod lifecycle;
mod limits;
mod logs;
mod mounts;
mod network;
mod operate;
mod options;
mod process;
mod security;
mod storage;
mod streams;
mod terminal;
mod volumes;

use crate::World;

/// How much a story tells for the time that it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// One of some twenty-five that are run even where each container takes seconds to boot.
    Core,
    /// Every other.
    Full,
}

/// One story.
#[derive(Debug, Clone, Copy)]
pub struct Story {
    /// The function's name.
    pub name: &'static str,
    /// When to run it.
    pub tier: Tier,
    /// What to run.
    pub run: fn(&World<'_>) -> anyhow::Result<()>,
}

/// Every story, in order of topics.
pub fn all() -> impl Iterator<Item = &'static Story> {
    [
        exit::STORIES,
        streams::STORIES,
        exec::STORIES,
        terminal::STORIES,
        logs::STORIES,
        process::STORIES,
        files::STORIES,
        images::STORIES,
        mounts::STORIES,
        network::STORIES,
        volumes::STORIES,
        storage::STORIES,
        limits::STORIES,
        lifecycle::STORIES,
        operate::STORIES,
        copies::STORIES,
        security::STORIES,
        options::STORIES,
        again::STORIES,
        commands::STORIES,
        flags::STORIES,
    ]
    .into_iter()
    .flatten()
}

/// Lists the stories of a file: `stories![Core this_one, Full that_one]`.
macro_rules! stories {
    ($($tier:ident $name:ident),* $(,)?) => {
        pub(super) const STORIES: &[$crate::stories::Story] = &[$($crate::stories::Story {
            name: stringify!($name),
            tier: $crate::stories::Tier::$tier,
            run: $name,
        }),*];
    };
}
use stories;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_the_core_is_small() {
        let mut names: Vec<_> = all().map(|story| story.name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        let core = all().filter(|story| story.tier == Tier::Core).count();
        assert!((15..=55).contains(&core), "{core} core stories");
    }
}
