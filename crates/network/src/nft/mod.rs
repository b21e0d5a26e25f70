//! Rules, as typed JSON (libnftables-json(5)) for the program `nft`. Each call is one transaction: all of it or nothing.
//!
//! ```text
//! table inet <bridge>          what leaves is masqueraded, what is published arrives, what nobody asked for does not
//! table bridge <bridge>        each port's own addresses and nothing else
//!   map from  { b9h… : jump f_b9h… }      one chain per container
//! ```
//!
//! The tables carry the bridge's name and are this project's alone. A container's chains are made, replaced and removed as
//! one.

pub(crate) mod container;
pub(crate) mod expression;
pub(crate) mod skeleton;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use beta9_sys::command::CommandExtra;
use beta9_sys::reaper::{ChildExit, Reaper};
use rustix::fs::MemfdFlags;
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};

use crate::error::{Error, ErrorKind, Result};

/// A transaction takes milliseconds; only one that waits for a lock of somebody else's takes longer.
const DEADLINE: Duration = Duration::from_secs(20);
/// Longest list that is read.
const MAX_LIST: u64 = 8 << 20;
/// How much of its complaint is repeated.
const SHOWN: u64 = 1000;
/// Directories with system programs that `PATH` may lack.
const SYSTEM: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// The program `nft`, and who waits for it.
#[derive(Clone)]
pub struct Nft {
    reaper: Option<Reaper>,
}

/// The commands of one transaction.
#[derive(Debug, Clone, Default)]
pub(crate) struct Script(Vec<Value>);

impl Script {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn push(&mut self, verb: &str, object: &str, value: Value) {
        self.0.push(json!({ verb: { object: value } }));
    }

    pub(crate) fn json(&self) -> Value {
        json!({ "nftables": self.0 })
    }
}

impl Nft {
    /// In a process that has a [`Reaper`] no one else may wait for a child, so it must be given.
    pub fn new(reaper: Option<Reaper>) -> Self {
        Self { reaper }
    }

    /// Applies all of a script, or nothing.
    pub(crate) fn apply(&self, script: &Script) -> Result<()> {
        let mut input = memory()?;
        serde_json::to_writer(&mut input, &script.json()).map_err(unusable)?;
        input.flush().and_then(|()| input.seek(SeekFrom::Start(0))).map_err(unusable)?;
        let mut said = memory()?;
        let mut command = Command::new(program()?);
        command.args(["-j", "-f", "-"]).stdin(input);
        command.stdout(Stdio::null()).stderr(said.try_clone().map_err(unusable)?);
        match self.run(command)? {
            ChildExit::Code(0) => Ok(()),
            _ => {
                let said = text(&mut said);
                Err(Error::new(ErrorKind::Failed, format!("nft refused rules: {}", said.replace('\n', " "))))
            }
        }
    }

    /// What it lists, as JSON.
    pub(crate) fn list(&self, arguments: &[&str]) -> Result<Value> {
        let mut said = memory()?;
        let mut command = Command::new(program()?);
        command.arg("-j").args(arguments).stdin(Stdio::null());
        command.stdout(said.try_clone().map_err(unusable)?).stderr(Stdio::null());
        let exit = self.run(command)?;
        if !exit.success() {
            return Err(Error::new(ErrorKind::Failed, format!("nft {} failed", arguments.join(" "))));
        }
        said.seek(SeekFrom::Start(0)).map_err(unusable)?;
        serde_json::from_reader(said.take(MAX_LIST)).map_err(unusable)
    }

    /// Runs a program whose exit code says all.
    pub(crate) fn run_quietly(&self, mut command: Command) -> Result<ChildExit> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.run(command)
    }

    fn run(&self, mut command: Command) -> Result<ChildExit> {
        // This thread waits for the child, so it outlives it.
        command.env_clear().current_dir("/").die_with_parent();
        let Some(reaper) = &self.reaper else {
            let status = command.status().map_err(unusable)?;
            return Ok(ChildExit::Code(
                status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX),
            ));
        };
        let (sender, exits) = sync_channel(1);
        let spawned = reaper.spawn(&mut command, move |exit| {
            // The receiver is gone when the deadline has passed.
            let _ = sender.send(exit);
        });
        let spawned = spawned.map_err(unusable)?;
        match exits.recv_timeout(DEADLINE) {
            Ok(exit) => Ok(exit),
            Err(RecvTimeoutError::Timeout) => {
                let _ = kill_process(spawned.pid, Signal::KILL);
                Err(Error::new(ErrorKind::Failed, format!("nft did not end within {} s", DEADLINE.as_secs())))
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(Error::new(ErrorKind::Failed, "the end of nft was lost"))
            }
        }
    }
}

/// Where the program is.
pub(crate) fn program() -> Result<PathBuf> {
    find("nft").ok_or_else(|| {
        let text = "the program nft was not found: install nftables (Debian: apt-get install nftables), or use --network none";
        Error::new(ErrorKind::Unavailable, text)
    })
}

/// A system's program, if it is installed.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut candidates = std::env::split_paths(&path).chain(SYSTEM.map(PathBuf::from));
    candidates.find_map(|directory| {
        let file = directory.join(name);
        let meta = file.metadata().ok()?;
        (file.is_absolute() && meta.is_file() && meta.permissions().mode() & 0o111 != 0).then_some(file)
    })
}

fn memory() -> Result<File> {
    let memory = rustix::fs::memfd_create("nft", MemfdFlags::CLOEXEC);
    memory.map(File::from).map_err(|e| unusable(std::io::Error::from(e)))
}

fn unusable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::caused(ErrorKind::Unavailable, "cannot run nft", error)
}

/// What was written to a file in memory, as far as it is shown.
fn text(file: &mut File) -> String {
    let mut bytes = Vec::new();
    let _ = file.seek(SeekFrom::Start(0)).and_then(|_| file.take(SHOWN).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

#[cfg(test)]
mod tests;
