//! Network namespaces and what is in them, as `ip`, `tc` and `nft` list it.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::process::{Command, Stdio};

use super::{Kind, Snapshot};
use crate::{Error, Result};

const NAMED: &str = "/run/netns";

pub(super) fn everything(snapshot: &mut Snapshot) -> Result<()> {
    inside(None, snapshot)?;
    let names = match fs::read_dir(NAMED) {
        Ok(entries) => {
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        }
        // The directory is made with the first name.
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(Error::new("list", NAMED, error)),
    };
    for name in names {
        snapshot.add(Kind::NetworkNamespace, format!("{NAMED}/{name}"));
        inside(Some(&name), snapshot)?;
    }
    Ok(())
}

/// Links, queueing disciplines and rules of the named namespace, or of this one.
fn inside(namespace: Option<&str>, snapshot: &mut Snapshot) -> Result<()> {
    let place = namespace.map(|name| format!(" in {NAMED}/{name}")).unwrap_or_default();
    for line in list(namespace, "ip", &["-oneline", "link", "show"])?.lines() {
        // `7: veth0@if6: <BROADCAST,…`: the number may be used again, the rest changes with the link's state.
        if let Some(name) = line.split(": ").nth(1) {
            let other_names =
                line.split(" altname ").skip(1).filter_map(|rest| rest.split([' ', '\\']).next());
            let names: Vec<_> = other_names.collect();
            let also = if names.is_empty() { String::new() } else { format!(" ({})", names.join(" ")) };
            snapshot.add(Kind::Link, format!("{name}{also}{place}"));
        }
    }
    for line in list(namespace, "tc", &["qdisc", "show"])?.lines() {
        // `qdisc ingress ffff: dev eth0 parent ffff:fff1 …`; what follows are settings and counts.
        let words: Vec<_> = line.split_ascii_whitespace().take(5).collect();
        if let ["qdisc", kind, _handle, "dev", device] = words[..] {
            snapshot.add(Kind::QueueingDiscipline, format!("{kind} on {device}{place}"));
        }
    }
    let mut context: Vec<&str> = Vec::new();
    for line in list(namespace, "nft", &["--stateless", "list", "ruleset"])?.lines() {
        let line = line.trim();
        if line == "}" {
            context.pop();
        } else if !line.is_empty() {
            let header = line.strip_suffix('{').map(str::trim_end);
            let path: Vec<_> = context.iter().copied().chain([header.unwrap_or(line)]).collect();
            snapshot.add(Kind::NftRule, format!("{}{place}", path.join(" / ")));
            context.extend(header);
        }
    }
    Ok(())
}

/// What `program` lists. A program that is not installed cannot have made anything to list; a namespace may go at any time.
fn list(namespace: Option<&str>, program: &'static str, arguments: &[&str]) -> Result<String> {
    let mut command = match namespace {
        // Unlike `ip netns exec` this leaves the mounts as they are.
        Some(name) => {
            let mut enter = Command::new("nsenter");
            enter.arg(format!("--net={NAMED}/{name}")).arg(program);
            enter
        }
        None => Command::new(program),
    };
    let output = match command.args(arguments).stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(Error::new("run", program, error)),
    };
    let gone = namespace.is_some_and(|name| !is_namespace(&Path::new(NAMED).join(name)));
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else if gone || output.status.code() == Some(NOT_FOUND) {
        Ok(String::new())
    } else {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Error::new("list with", OsStr::new(program), io::Error::other(said)))
    }
}

/// What `nsenter` returns when there is no such program.
const NOT_FOUND: i32 = 127;

/// A name is made as an empty file before the namespace is mounted on it, and becomes one again before it is removed.
fn is_namespace(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|fs| fs.f_type == NSFS_MAGIC)
}

/// `NSFS_MAGIC` of the kernel's `include/uapi/linux/magic.h`.
const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;
