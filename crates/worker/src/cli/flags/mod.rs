//! docker's further flags of `run` and `create`, one group per file. Values are checked where they are used, by the worker.

mod files;
mod life;
mod limits;
mod mounts;
mod network;
mod process;

use clap::Args;

use crate::api;
use crate::cli::Failure;

pub(super) use limits::nano_cpus;

/// Every group.
#[derive(Args)]
pub(super) struct Options {
    #[command(flatten, next_help_heading = "Process")]
    process: process::ProcessFlags,
    #[command(flatten, next_help_heading = "Limits")]
    limits: limits::LimitFlags,
    #[command(flatten, next_help_heading = "Mounts and the writable layer")]
    mounts: mounts::MountFlags,
    #[command(flatten, next_help_heading = "Files, devices and names")]
    files: files::FileFlags,
    #[command(flatten, next_help_heading = "Network")]
    network: network::NetworkFlags,
    #[command(flatten, next_help_heading = "Life")]
    life: life::LifeFlags,
}

impl Options {
    /// Puts what was given into a request, whose own variables win over those of files.
    pub(super) fn apply(self, request: &mut api::CreateRequest) -> Result<(), Failure> {
        self.process.apply(request)?;
        self.limits.apply(request)?;
        self.files.apply(request)?;
        self.network.apply(request);
        self.mounts.apply(request)?;
        self.life.apply(request)
    }
}

/// The variables of files, in their order.
pub(super) fn variables_of(files: &[std::path::PathBuf]) -> Result<Vec<String>, Failure> {
    let mut variables = Vec::new();
    for path in files {
        variables.extend(lines_of(path)?.into_iter().filter_map(super::run::variable));
    }
    Ok(variables)
}

/// The lines of a file of `NAME=VALUE` or `NAME`: docker's form, in which `#` begins a comment.
fn lines_of(path: &std::path::Path) -> Result<Vec<String>, Failure> {
    let text =
        std::fs::read_to_string(path).map_err(|e| Failure::new(format!("read {}: {e}", path.display())))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned();
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let name = line.split('=').next().unwrap_or_default();
        if name.is_empty() || name.contains(char::is_whitespace) {
            let text = format!(
                "{}, line {}: write NAME=VALUE, with a name without spaces",
                path.display(),
                index + 1
            );
            return Err(Failure::new(text));
        }
        lines.push(line.to_owned());
    }
    Ok(lines)
}

/// A size with an optional unit, of at least a byte.
fn bytes(text: &str) -> Result<u64, String> {
    rate(text).and_then(|bytes| if bytes > 0 { Ok(bytes) } else { Err(BYTES_RULE.to_owned()) })
}

const BYTES_RULE: &str = "use a number with an optional k, m or g, as in 64m";

/// The same, and 0 for no limit.
pub(super) fn rate(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let lower = lower.strip_suffix("ib").or(lower.strip_suffix('b')).unwrap_or(&lower);
    let (number, shift) = match lower.as_bytes().last() {
        Some(b'k') => (&lower[..lower.len() - 1], 10),
        Some(b'm') => (&lower[..lower.len() - 1], 20),
        Some(b'g') => (&lower[..lower.len() - 1], 30),
        _ => (lower, 0),
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    bytes.ok_or_else(|| BYTES_RULE.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_variables_are_read_as_docker_reads_them() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "\u{feff}# note\n\n  A=1 # kept\nB=\nC\n").unwrap();
        assert_eq!(lines_of(file.path()).ok().unwrap(), ["A=1 # kept", "B=", "C"]);
        std::fs::write(file.path(), "A=1\nwith space=2\n").unwrap();
        assert!(lines_of(file.path()).err().unwrap().message.contains("line 2"));
        assert!(lines_of("/does/not/exist".as_ref()).is_err());
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!((bytes("1k"), bytes("64M"), bytes("7")), (Ok(1024), Ok(64 << 20), Ok(7)));
        for bad in ["", "0", "k", "1.5m", "-1", "99999999999999999999"] {
            assert!(bytes(bad).is_err(), "{bad} was accepted");
        }
    }
}
