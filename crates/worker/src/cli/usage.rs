//! What is wrong with a command line, in one sentence with a way out.

use std::ffi::OsStr;

use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::cli::docker::{instead_of_command, instead_of_flag};
use crate::cli::{Cli, Failure};

/// docker's exit code for a command line that it does not understand.
const USAGE: u8 = 125;

/// Turns a parser's complaint about a command line into ours. Help and versions are printed and end well.
pub(super) fn failure(error: &clap::Error, words: &[impl AsRef<OsStr>]) -> Failure {
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
            match instead_of_flag(&command_of(words), flag) {
                Some(instead) => format!("{flag} is not supported: {instead}"),
                None if !flag.starts_with('-') => {
                    format!("{flag:?} is one word too many: the command takes no more; see --help")
                }
                None => format!(
                    "unknown flag {flag}: {}",
                    meant(ContextKind::SuggestedArg).unwrap_or_else(|| "see --help".to_owned())
                ),
            }
        }
        ErrorKind::InvalidSubcommand => {
            let name = text(ContextKind::InvalidSubcommand).unwrap_or_default();
            let group = command_of(words);
            let is_command = || Cli::command().find_subcommand(name).is_some();
            match instead_of_command(format!("{group} {name}").trim_start()) {
                Some(instead) => format!("{name} is not supported: {instead}"),
                // `container run`, `image pull`: docker has them in both places.
                None if matches!(&*group, "container" | "image") && is_command() => {
                    format!("{group} {name} is not supported: use `{name}`")
                }
                None => format!(
                    "unknown command {name}: {}",
                    meant(ContextKind::SuggestedSubcommand).unwrap_or_else(|| "see --help".to_owned())
                ),
            }
        }
        _ => first_sentence(&error.to_string()),
    };
    Failure { message, code: USAGE }
}

/// The command that a command line begins with, such as `image ls`; empty where there is none.
fn command_of(words: &[impl AsRef<OsStr>]) -> String {
    let mut command = Cli::command();
    let mut names: Vec<String> = Vec::new();
    let mut words = words.iter().skip(1).filter_map(|word| word.as_ref().to_str());
    while let Some(word) = words.next() {
        if word.starts_with('-') {
            // The flags before a command that take a value take the next word.
            let takes_value = names.is_empty() && matches!(word, "--root" | "--config");
            if takes_value {
                words.next();
            }
            if !names.is_empty() {
                break;
            }
            continue;
        }
        let Some(found) = command.find_subcommand(word).cloned() else { break };
        names.push(found.get_name().to_owned());
        command = found;
    }
    names.join(" ")
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
    use clap::Parser;

    use super::*;

    fn said(words: &[&str]) -> String {
        let words: Vec<&str> = std::iter::once("beta9-worker").chain(words.iter().copied()).collect();
        let error = Cli::try_parse_from(&words).err().unwrap();
        let failure = failure(&error, &words);
        assert_eq!(failure.code, USAGE);
        assert!(!failure.message.contains('\n') && !failure.message.is_empty(), "{:?}", failure.message);
        failure.message
    }

    #[test]
    fn a_flag_that_docker_has_is_refused_with_the_alternative() {
        assert!(said(&["run", "--privileged", "x"]).contains("--cap-add"));
        assert!(said(&["run", "--gpus", "all", "x"]).contains("--gpus is not supported"));
        assert!(said(&["--root", "run", "run", "--gpus", "all", "x"]).contains("--gpus is not supported"));
        assert!(said(&["rm", "-l", "x"]).contains("-l is not supported: containers are not linked"));
        assert!(said(&["images"]).contains("images is not supported: use `image ls`"));
        assert!(said(&["image", "pull", "x"]).contains("image pull is not supported: use `pull`"));
        assert!(said(&["container", "run"]).contains("container run is not supported: use `run`"));
        assert!(said(&["container", "ls"]).contains("ls is not supported: use `ps`"));
        assert!(said(&["image", "save"]).contains("save is not supported: use `image export`"));
        assert!(said(&["image", "nonsense"]).contains("unknown command nonsense"));
        assert!(said(&["image", "rmi"]).contains("unknown command rmi"));
        assert!(said(&["image", "ls", "busybox"]).contains("one word too many"));
    }

    #[test]
    fn the_command_of_a_line_is_found() {
        for (words, command) in [
            (&["beta9-worker", "run", "--rm", "x", "image", "ls"][..], "run"),
            (&["beta9-worker", "--verbose", "--root", "image", "image", "ls"], "image ls"),
            (&["beta9-worker", "images"], ""),
            (&["beta9-worker"], ""),
        ] {
            assert_eq!(command_of(words), command, "{words:?}");
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
