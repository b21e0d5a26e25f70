use clap::{Command, CommandFactory, Parser};

use super::*;
use crate::cli::{Cli, usage};

/// Every flag of docker's commands, as its reference lists them; a short form stands before its long one.
const DOCKER: &[(&str, &str)] = &[
    (
        "run",
        "add-host annotation a attach blkio-weight blkio-weight-device cap-add cap-drop cgroup-parent cgroupns cidfile
        cpu-count cpu-percent cpu-period cpu-quota cpu-rt-period cpu-rt-runtime c cpu-shares cpus cpuset-cpus cpuset-mems
        d detach detach-keys device device-cgroup-rule device-read-bps device-read-iops device-write-bps
        device-write-iops disable-content-trust dns dns-opt dns-option dns-search domainname entrypoint e env env-file
        expose gpus group-add health-cmd health-interval health-retries health-start-interval health-start-period
        health-timeout help h hostname init i interactive io-maxbandwidth io-maxiops ip ip6 ipc isolation kernel-memory
        l label label-file link link-local-ip log-driver log-opt mac-address m memory memory-reservation memory-swap
        memory-swappiness mount name net net-alias network network-alias no-healthcheck oom-kill-disable oom-score-adj
        pid pids-limit platform privileged p publish P publish-all pull q quiet read-only restart rm runtime
        security-opt shm-size sig-proxy stop-signal stop-timeout storage-opt sysctl tmpfs t tty ulimit use-api-socket u
        user userns uts v volume volume-driver volumes-from w workdir",
    ),
    ("exec", "d detach detach-keys e env env-file i interactive privileged t tty u user w workdir"),
    ("ps", "a all f filter format n last l latest no-trunc q quiet s size"),
    ("logs", "details f follow since n tail t timestamps until"),
    ("inspect", "f format s size type"),
    ("cp", "a archive L follow-link q quiet"),
    (
        "update",
        "blkio-weight cpu-period cpu-quota cpu-rt-period cpu-rt-runtime c cpu-shares cpus cpuset-cpus cpuset-mems
        kernel-memory m memory memory-reservation memory-swap pids-limit restart",
    ),
    ("start", "a attach checkpoint checkpoint-dir detach-keys i interactive"),
    ("stop", "s signal t time timeout"),
    ("restart", "s signal t time timeout"),
    ("kill", "s signal"),
    ("rm", "f force l link v volumes"),
    ("attach", "detach-keys no-stdin sig-proxy"),
    ("stats", "a all format no-stream no-trunc"),
    ("events", "f filter format since until"),
    ("pull", "a all-tags disable-content-trust platform q quiet"),
    ("push", "a all-tags disable-content-trust platform q quiet"),
    ("login", "p password password-stdin u username"),
    ("container prune", "filter f force"),
    ("image ls", "a all digests f filter format no-trunc q quiet tree"),
    ("image inspect", "f format platform"),
    ("image history", "format H human no-trunc q quiet platform"),
    ("image rm", "f force no-prune platform"),
    ("image prune", "a all filter f force"),
    ("image import", "c change m message platform"),
    ("", "context c debug D host H log-level l tls tlscacert tlscert tlskey tlsverify version v"),
];

/// Its commands.
const DOCKERS_COMMANDS: &str = "attach build builder buildx checkpoint commit compose container context cp create diff \
    events exec export history image images import info inspect kill load login logout logs manifest network node pause \
    plugin port ps pull push rename restart rm rmi run save scout search secret service stack start stats stop swarm \
    system tag top trust unpause update version volume wait";

fn find(words: &str) -> Command {
    let mut all = Cli::command();
    // Has every command know the flags that all have.
    all.build();
    words.split_whitespace().fold(all, |command, word| {
        command.find_subcommand(word).unwrap_or_else(|| panic!("there is no command {words}")).clone()
    })
}

fn has(command: &Command, flag: &str) -> bool {
    let long = flag.strip_prefix("--");
    command.get_arguments().any(|arg| match long {
        Some(name) => {
            arg.get_long() == Some(name) || arg.get_all_aliases().is_some_and(|all| all.contains(&name))
        }
        None => {
            arg.get_short_and_visible_aliases().is_some_and(|all| all.contains(&flag.chars().nth(1).unwrap()))
        }
    })
}

fn dashed(name: &str) -> String {
    if name.len() == 1 { format!("-{name}") } else { format!("--{name}") }
}

/// What is said to a command line.
fn said(command: &str, flag: &str) -> String {
    let words: Vec<String> = ["beta9-worker"]
        .into_iter()
        .chain(command.split_whitespace())
        .chain([flag])
        .map(str::to_owned)
        .collect();
    let error = Cli::try_parse_from(&words).err().unwrap_or_else(|| panic!("{words:?} was accepted"));
    let failure = usage::failure(&error, &words);
    assert_eq!(failure.code, 125, "{words:?}");
    failure.message
}

#[test]
fn every_flag_of_dockers_is_taken_or_refused_by_name() {
    let mut refused = 0;
    for (command, flags) in DOCKER {
        let clap = find(command);
        for flag in flags.split_whitespace().map(dashed) {
            if has(&clap, &flag) {
                continue;
            }
            let text = said(command, &flag);
            let start = format!("{flag} is not supported: ");
            assert!(text.starts_with(&start), "docker {command} {flag}: {text}");
            assert!(!text.contains('\n') && !text.ends_with('.'), "{text}");
            refused += 1;
        }
    }
    assert!(refused > 80, "only {refused} flags are refused: is the table read?");
}

#[test]
fn create_differs_from_run_as_dockers_does() {
    let flags = DOCKER[0]
        .1
        .split_whitespace()
        .filter(|flag| !matches!(*flag, "d" | "detach" | "detach-keys" | "sig-proxy"));
    let create = find("create");
    for flag in flags.map(dashed) {
        assert!(
            has(&create, &flag) || said("create", &flag).contains("is not supported: "),
            "docker create {flag}"
        );
    }
}

#[test]
fn every_command_of_dockers_is_there_or_refused_by_name() {
    let all = Cli::command();
    for name in DOCKERS_COMMANDS.split_whitespace() {
        if all.find_subcommand(name).is_some() {
            assert!(instead_of_command(name).is_none(), "{name} is there: take it from the list");
            continue;
        }
        let words = ["beta9-worker".to_owned(), name.to_owned()];
        let failure = usage::failure(&Cli::try_parse_from(&words).err().unwrap(), &words);
        assert!(failure.message.starts_with(&format!("{name} is not supported: ")), "{}", failure.message);
        assert_eq!(failure.code, 125);
    }
}

#[test]
fn nothing_is_refused_that_is_there() {
    let of_run = [("run", OF_RUN)];
    for (command, refused) in of_run.iter().chain(OF_COMMANDS) {
        let clap = find(command);
        for (flag, instead) in *refused {
            assert!(!has(&clap, flag), "{command} {flag} is there: take it from the list");
            assert!(!instead.ends_with('.'), "{instead}");
        }
    }
}
