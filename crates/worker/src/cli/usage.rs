//! What is wrong with a command line, in one sentence with a way out.

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::cli::Failure;

/// docker's exit code for a command line that it does not understand.
const USAGE: u8 = 125;

/// docker's flags that are not here, and what to do instead.
const REFUSED: &[(&str, &str)] = &[
    ("--annotation", "use --label"),
    ("--blkio-weight-device", "use --blkio-weight, or --device-read-bps and its like"),
    ("--cgroup-parent", "every container has a cgroup of its own; limit it by -m, --cpus and --pids-limit"),
    ("--cgroupns", "every container has a cgroup namespace of its own"),
    ("--cpu-rt-period", "use --cpus, or --ulimit rtprio="),
    ("--cpu-rt-runtime", "use --cpus, or --ulimit rtprio="),
    ("--device-cgroup-rule", "use --device for each device"),
    ("--disable-content-trust", "images are verified by digest; leave it out"),
    ("--domainname", "use --hostname with the whole name, or --add-host"),
    ("--gpus", "there are no GPUs here; use --device on runc"),
    ("--ipc", "every container has IPC of its own; size its shared memory by --shm-size"),
    ("--isolation", "use --runtime"),
    ("--kernel-memory", "use --memory, which counts the kernel's memory, too"),
    ("--link", "use --add-host"),
    ("--oom-kill-disable", "use --memory; a container that is out of memory ends with 137 and reason oom"),
    ("--oom-score-adj", "use --memory-reservation for what must go on"),
    ("--pid", "every container has processes of its own; use `exec` to look into one"),
    (
        "--privileged",
        "use --cap-add, --device and --security-opt for what is needed, or a VM: --runtime microvm",
    ),
    ("--memory-swappiness", "use --memory-swap"),
    ("--userns", "use --user for another user, or --runtime gvisor or microvm for another kernel"),
    ("--uts", "every container has a host name of its own; use --hostname"),
    ("--volume-driver", "use -v with a path on the host"),
    ("--health-cmd", "there are no health checks yet; ask from outside with `exec`"),
    ("--no-healthcheck", "there are no health checks; leave it out"),
    ("--log-driver", "read the log by `logs`, in CRI format; --log-opt limits it"),
    ("--network", "containers have loopback alone; leave it out"),
    ("--net", "containers have loopback alone; leave it out"),
    ("--publish", "containers have loopback alone; leave it out"),
    ("-p", "containers have loopback alone; leave it out"),
    ("--publish-all", "containers have loopback alone; leave it out"),
    ("-P", "containers have loopback alone; leave it out"),
    ("--expose", "containers have loopback alone; leave it out"),
    ("--ip", "containers have loopback alone; leave it out"),
    ("--ip6", "containers have loopback alone; leave it out"),
    ("--mac-address", "containers have loopback alone; leave it out"),
    ("--network-alias", "containers have loopback alone; leave it out"),
    ("--size", "use `du` in the container's directory below the root"),
    ("-s", "use `du` in the container's directory below the root"),
];

/// Turns a parser's complaint into ours. Help and versions are printed and end well.
pub(super) fn failure(error: &clap::Error) -> Failure {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        Some(ContextValue::Strings(list)) => list.first().map(String::as_str),
        _ => None,
    };
    let meant = |kind| text(kind).map(|meant| format!("did you mean {meant}?"));
    let message = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            return Failure { message: String::new(), code: 0 };
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            return Failure { message: String::new(), code: USAGE };
        }
        ErrorKind::UnknownArgument => {
            let flag = text(ContextKind::InvalidArg).unwrap_or_default();
            match REFUSED.iter().find(|(name, _)| *name == flag) {
                Some((_, instead)) => format!("{flag} is not supported: {instead}"),
                None if flag.starts_with("--health-") => {
                    format!(
                        "{flag} is not supported: there are no health checks yet; ask from outside with `exec`"
                    )
                }
                None => format!(
                    "unknown flag {flag}: {}",
                    meant(ContextKind::SuggestedArg).unwrap_or_else(|| "see --help".to_owned())
                ),
            }
        }
        ErrorKind::InvalidSubcommand => format!(
            "unknown command {}: {}",
            text(ContextKind::InvalidSubcommand).unwrap_or_default(),
            meant(ContextKind::SuggestedSubcommand).unwrap_or_else(|| "see --help".to_owned())
        ),
        _ => first_sentence(&error.to_string()),
    };
    Failure { message, code: USAGE }
}

/// The parser's own words without its hints, in one line.
fn first_sentence(text: &str) -> String {
    let text = text.strip_prefix("error: ").unwrap_or(text);
    let words: Vec<&str> = text
        .lines()
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let sentence = words.join(" ");
    // A value's own rule says what to write; the rest is in the help.
    if sentence.contains(": use ") || sentence.contains("[possible values") || sentence.contains("tip: ") {
        sentence
    } else {
        format!("{}; see --help", sentence.trim_end_matches('.'))
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::cli::Cli;

    fn said(words: &[&str]) -> String {
        let error = Cli::try_parse_from(std::iter::once(&"beta9-worker").chain(words)).err().unwrap();
        let failure = failure(&error);
        assert_eq!(failure.code, USAGE);
        assert!(!failure.message.contains('\n') && !failure.message.is_empty(), "{:?}", failure.message);
        failure.message
    }

    #[test]
    fn a_flag_that_docker_has_is_refused_with_the_alternative() {
        assert!(said(&["run", "--privileged", "x"]).contains("--cap-add"));
        assert!(said(&["run", "--gpus", "all", "x"]).contains("--gpus is not supported"));
        assert!(said(&["run", "-p", "80:80", "x"]).contains("-p is not supported"));
        let run = Cli::command().find_subcommand("run").cloned().unwrap();
        for (flag, instead) in REFUSED.iter().filter(|(flag, _)| !flag.starts_with("--s")) {
            let name = flag.trim_start_matches('-');
            let has = run.get_arguments().any(|arg| {
                arg.get_long() == Some(name) || arg.get_short().map(String::from).as_deref() == Some(name)
            });
            assert!(!has, "{flag} is there: take it from the list");
            assert!(!instead.ends_with('.'));
        }
    }

    #[test]
    fn other_mistakes_are_one_sentence() {
        for words in [
            &["run"][..],
            &["run", "--memory", "much", "x"],
            &["run", "--cpus", "many", "x"],
            &["run", "--stop-timeout", "soon", "x"],
            &["rnu"],
            &["run", "--entrypiont", "x", "y"],
            &["kill", "-s", "NOPE", "x"],
            &["ps", "--output", "xml"],
            &["stop"],
        ] {
            let text = said(words);
            assert!(!text.starts_with("error"), "{text}");
        }
        assert!(said(&["run", "--entrypiont", "x", "y"]).contains("did you mean --entrypoint?"));
    }
}
