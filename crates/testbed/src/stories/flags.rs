//! Bad values of every flag: the program's own list of flags is gone through, so that none is forgotten.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};

use super::stories;
use crate::World;
use crate::program::Finished;

stories![
    Full a_bad_value_of_any_flag_is_one_sentence,
];

/// For each flag that takes a value, one that it does not take, and a word that the complaint has beside the flag's name.
const BAD: &[(&str, &str)] = &[
    ("add-host", "db"),
    ("allow-network", "everywhere"),
    ("blkio-weight", "9999"),
    ("cap-add", "ROOT"),
    ("cap-drop", "ROOT"),
    ("cidfile", "/no/such/directory/cid"),
    ("cpu-period", "soon"),
    ("cpu-quota", "much"),
    ("cpu-shares", "1"),
    ("cpus", "many"),
    ("cpuset-cpus", "a-b"),
    ("cpuset-mems", "x"),
    ("detach-keys", "ctrl-?!"),
    ("device", "fuse"),
    ("device-read-bps", "sda:1m"),
    ("device-read-iops", "sda:1"),
    ("device-write-bps", "sda:1m"),
    ("device-write-iops", "sda:1"),
    ("disk-operations", "many"),
    ("disk-rate", "fast"),
    ("dns", "example.org"),
    ("dns-option", "two words"),
    ("dns-search", "two words"),
    ("egress-rate", "fast"),
    ("env", "=value"),
    ("env-file", "/no/such/file"),
    ("filter", "colour=blue"),
    ("format", "{{nonsense}}"),
    ("group-add", "no-such-group"),
    ("hostname", "two words"),
    ("ingress-rate", "fast"),
    ("label", "=x"),
    ("label-file", "/no/such/file"),
    ("last", "many"),
    ("log-opt", "driver=x"),
    ("memory", "much"),
    ("memory-reservation", "much"),
    ("memory-swap", "x"),
    ("mount", "type=bind"),
    ("name", "-x-"),
    ("network", "no such network"),
    ("network-alias", "a b"),
    ("network-policy", "sometimes"),
    ("output", "xml"),
    ("patience", "long"),
    ("pids-limit", "x"),
    ("platform", "abacus"),
    ("pool", "no-such-pool"),
    ("publish", "http"),
    ("publish-add", "x:y"),
    ("publish-rm", "80-81"),
    ("pull", "sometimes"),
    ("restart", "sometimes"),
    ("runtime", "no-such-runtime"),
    ("security-opt", "what=ever"),
    ("shm-size", "0"),
    ("sig-proxy", "perhaps"),
    ("signal", "NOPE"),
    ("since", "yesterday"),
    ("stop-signal", "NOPE"),
    ("stop-timeout", "-1"),
    ("storage-opt", "colour=blue"),
    ("sysctl", "kernel.hostname=x"),
    ("tag", "UPPER CASE"),
    ("tail", "some"),
    ("time", "soon"),
    ("tmpfs", "run"),
    ("type", "volume"),
    ("ulimit", "files=1"),
    ("until", "yesterday"),
    ("user", "no-such-user"),
    ("volume", "/a:/b:what"),
    ("volumes-from", "no-such-container"),
    ("workdir", "relative"),
];

/// Flags of which every value is one, or that cannot be tried here.
const FREE: &[(&str, &str)] = &[
    ("config", "every command of these tests has it"),
    ("entrypoint", "any text may be a program's name"),
    ("password", "it is refused whatever it is: others could read it"),
    ("root", "every command of these tests has it"),
    ("username", "any text may be a user's name, and a registry would have to be asked"),
];

/// Commands that are not tried: what they take is tried where they are.
const ELSEWHERE: [&str; 7] = ["serve", "init", "status", "config", "doctor", "completion", "kernel"];

/// A command and the long names of its flags that take a value.
struct Taking {
    command: Vec<String>,
    flags: BTreeSet<String>,
}

/// What the program says of itself to a shell that completes it.
fn commands(world: &World<'_>) -> Result<Vec<Taking>> {
    let finished = world.worker(&["completion", "fish"])?.ends_with(0)?;
    let mut all: Vec<Taking> = Vec::new();
    for line in finished.out().lines().filter(|line| line.starts_with("complete -c ")) {
        let Some((_, rest)) = line.split_once("_using_subcommand ") else { continue };
        let Some((place, rest)) = rest.split_once('"') else { continue };
        // `image; and __fish_seen_subcommand_from ls` is a command, and `image; and not …` is its parent.
        let command: Vec<String> = match place.split_once("; and ") {
            None => vec![place.to_owned()],
            Some((parent, child)) => match child.strip_prefix("__fish_seen_subcommand_from ") {
                Some(child) => vec![parent.to_owned(), child.to_owned()],
                None => continue,
            },
        };
        // Before its description, which may hold anything.
        let names = rest.split(" -d ").next().unwrap_or(rest);
        let Some((_, name)) = names.split_once(" -l ") else { continue };
        let takes_value = rest.rsplit("' ").next().is_some_and(|end| end.trim_start().starts_with("-r"));
        if !takes_value {
            continue;
        }
        let flag = name.split_whitespace().next().context("a flag without a name")?.to_owned();
        match all.iter_mut().find(|one| one.command == command) {
            Some(one) => drop(one.flags.insert(flag)),
            None => all.push(Taking { command, flags: BTreeSet::from([flag]) }),
        }
    }
    Ok(all)
}

/// What is wrong with the answer to a bad value: it is one sentence, has the right code, and names the flag or the value.
fn verdict(finished: &Finished, codes: &[i32], names: [&str; 2]) -> Option<String> {
    let said = finished.err();
    let what = if !codes.contains(&finished.code()) {
        format!("expected one of the codes {codes:?}")
    } else if said.lines().count() != 1 || !said.starts_with("error: ") {
        "not one sentence".to_owned()
    } else if said.contains("panicked") || !finished.stdout.is_empty() {
        "more than a sentence".to_owned()
    } else if !names.iter().any(|name| said.contains(name)) {
        format!("neither of {names:?} is named")
    } else {
        return None;
    };
    Some(format!("{what}\n{finished}"))
}

fn a_bad_value_of_any_flag_is_one_sentence(world: &World<'_>) -> Result<()> {
    let all = commands(world)?;
    let run = all.iter().find(|one| one.command == ["run"]).context("run is not listed")?;
    ensure!(run.flags.len() > 50, "only {} flags of run are listed", run.flags.len());
    let container = world.detach_ready(&[], "echo ready; while :; do sleep 1; done")?;
    let name = world.name();
    let runtime = format!("--runtime={}", world.runtime());
    let (mut tried, mut wrong) = (BTreeSet::new(), Vec::new());
    for Taking { command, flags } in all.iter().filter(|one| !ELSEWHERE.contains(&one.command[0].as_str())) {
        for flag in flags.iter().filter(|flag| FREE.iter().all(|(free, _)| free != flag)) {
            let (_, value) = BAD.iter().find(|(known, _)| known == flag).with_context(|| {
                format!("no bad value of {} --{flag} is known: add one to the story", command.join(" "))
            })?;
            tried.insert(flag.clone());
            let bad = format!("--{flag}={value}");
            let mut words: Vec<&str> = command.iter().map(String::as_str).collect();
            let is_run = matches!(words[0], "run" | "create");
            if is_run {
                words.extend(
                    ["--runtime", "--name"]
                        .iter()
                        .zip([&runtime[10..], &name])
                        .filter(|(known, _)| known[2..] != **flag)
                        .flat_map(|(known, value)| [*known, value]),
                );
            }
            words.push(&bad);
            if words[..2] == ["volume", "prune"] {
                words.push("--force");
            }
            match words[0] {
                "run" | "create" => words.extend(["busybox", "true"]),
                "exec" => words.extend([&container.name, "true"]),
                "image" | "volume" if matches!(words[1], "ls" | "prune" | "create") => {}
                "image" | "pull" | "push" => words.push("busybox"),
                "ps" | "events" | "container" | "login" => {}
                _ => words.push(&container.name),
            }
            let codes: &[i32] = if is_run || words[0] == "exec" { &[125] } else { &[1, 125] };
            wrong.extend(verdict(&world.worker(&words)?, codes, [flag, value.trim_matches(['{', '}'])]));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    let unused: Vec<_> =
        BAD.iter().filter(|(flag, _)| !tried.contains(*flag)).map(|(flag, _)| flag).collect();
    ensure!(unused.is_empty(), "no command has --{unused:?}: take them from the story");
    world.worker(&["inspect", &name])?.ends_with(1)?;
    ensure!(container.inspect()?["status"] == "running", "it does not run any more");
    Ok(())
}
