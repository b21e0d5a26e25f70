//! Running an OCI runtime program's subcommands, each with a deadline, and reading what it says when it fails.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use beta9_runtime::{ContainerStdio, Error, ErrorKind, Result};
use beta9_sys::command::CommandExtra;
use beta9_sys::reaper::{ChildExit, Reaper};
use beta9_types::ContainerId;
use rustix::process::{Pid, Signal};
use serde::Deserialize;
use tokio::sync::oneshot;

use crate::exec::ExecFiles;
use crate::terminal::{ConsoleSocket, Terminal};

/// No subcommand takes longer on a machine that works; gVisor's start under emulation is the slowest.
const DEADLINE: Duration = Duration::from_secs(60);

/// Longest answer taken over: a list of some ten thousand processes.
const MAX_ANSWER: u64 = 4 << 20;

/// Longest message taken over from a program.
const MAX_MESSAGE: usize = 2000;

/// An OCI runtime program with the flags that precede every subcommand.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(crate) bin: PathBuf,
    pub(crate) global: Vec<OsString>,
}

/// What an `exec` has beside a process and its streams.
pub(crate) struct ExecOptions {
    /// Where a terminal is sent, if the process has one.
    pub(crate) console: Option<ConsoleSocket>,
    /// Whether the program is to say which number the process has in the container.
    pub(crate) tells_inside_pid: bool,
}

/// Where one container's files for the program are.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    dir: PathBuf,
}

impl Files {
    pub(crate) fn in_dir(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("oci.log")
    }

    pub(crate) fn pid(&self) -> PathBuf {
        self.dir.join("oci.pid")
    }

    pub(crate) fn console(&self) -> PathBuf {
        self.dir.join("console.sock")
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn bundle(&self) -> PathBuf {
        self.dir.join("bundle")
    }
}

impl Program {
    /// `create`: the container's streams become the program's own, which the container inherits, or it makes a terminal.
    pub(crate) async fn create(
        &self,
        reaper: &Reaper,
        id: &ContainerId,
        files: &Files,
        stdio: ContainerStdio,
    ) -> Result<(Pid, Option<Terminal>)> {
        let console = match stdio.terminal {
            Some(_) => Some(ConsoleSocket::bind(&files.console())?),
            None => None,
        };
        let mut command = self.command(&files.log());
        command.arg("create").arg("--bundle").arg(files.bundle()).arg("--pid-file").arg(files.pid());
        if let Some(console) = &console {
            command.arg("--console-socket").arg(console.path());
        }
        command.arg(id.as_str());
        self.start(reaper, command, "create", &files.log(), &files.pid(), stdio, console).await
    }

    /// `exec`: the same for another process of a container that runs.
    pub(crate) async fn exec(
        &self,
        reaper: &Reaper,
        id: &ContainerId,
        files: &ExecFiles,
        stdio: ContainerStdio,
        options: ExecOptions,
    ) -> Result<(Pid, Option<Terminal>)> {
        let ExecOptions { console, tells_inside_pid } = options;
        let mut command = self.command(&files.log());
        command.args(["exec", "--detach", "--process"]).arg(files.process());
        command.arg("--pid-file").arg(files.pid());
        if tells_inside_pid {
            command.arg("--internal-pid-file").arg(files.inside_pid());
        }
        if let Some(console) = &console {
            command.arg("--console-socket").arg(console.path());
        }
        command.arg(id.as_str());
        self.start(reaper, command, "exec", &files.log(), &files.pid(), stdio, console).await
    }

    /// Runs a subcommand that leaves a process behind, and returns that process.
    #[expect(clippy::too_many_arguments, reason = "what its two callers have in common")]
    async fn start(
        &self,
        reaper: &Reaper,
        mut command: Command,
        subcommand: &str,
        log: &Path,
        pid: &Path,
        stdio: ContainerStdio,
        console: Option<ConsoleSocket>,
    ) -> Result<(Pid, Option<Terminal>)> {
        let stdio = if console.is_some() {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            Some(stdio)
        } else {
            command.stdin(stdio.stdin.map_or_else(Stdio::null, |fd: OwnedFd| fd.into()));
            command.stdout(stdio.stdout).stderr(stdio.stderr);
            None
        };
        let exit = self.run(reaper, command, subcommand).await?;
        if !exit.success() {
            return Err(self.failure(subcommand, log));
        }
        // It waits in the socket.
        let terminal = match (stdio, console) {
            (Some(stdio), Some(console)) => Some(Terminal::start(console.receive().await?, stdio)?),
            _ => None,
        };
        let text = std::fs::read_to_string(pid).unwrap_or_default();
        let pid = text.trim().parse().ok().and_then(Pid::from_raw).ok_or_else(|| {
            let text = format!("{} wrote no process id after {subcommand}", self.bin.display());
            Error::new(ErrorKind::Failed, text)
        })?;
        Ok((pid, terminal))
    }

    /// Any subcommand that says what went wrong on its stderr.
    pub(crate) async fn call(
        &self,
        reaper: &Reaper,
        files: &Files,
        subcommand: &str,
        args: &[&str],
    ) -> Result<()> {
        let mut command = self.command(&files.log());
        command.arg(subcommand).args(args).stdin(Stdio::null()).stdout(Stdio::null());
        let said = files.dir.join("oci.stderr");
        let output = File::create(&said)
            .map_err(|e| Error::caused(ErrorKind::Failed, format!("create {}", said.display()), e))?;
        command.stderr(output);
        let exit = self.run(reaper, command, subcommand).await?;
        if exit.success() { Ok(()) } else { Err(self.failure(subcommand, &said)) }
    }

    /// Any subcommand that answers on its stdout.
    pub(crate) async fn output(
        &self,
        reaper: &Reaper,
        files: &Files,
        subcommand: &str,
        args: &[&str],
    ) -> Result<Vec<u8>> {
        let mut command = self.command(&files.log());
        command.arg(subcommand).args(args).stdin(Stdio::null());
        // Without names, because several may be under way at once.
        let nameless = || tempfile(&files.dir);
        let (answer, said) = (nameless()?, nameless()?);
        let copy = |file: &File| {
            file.try_clone().map_err(|e| Error::caused(ErrorKind::Failed, "keep an answer's file", e))
        };
        command.stdout(copy(&answer)?).stderr(copy(&said)?);
        let exit = self.run(reaper, command, subcommand).await?;
        if exit.success() { read_all(answer) } else { Err(self.complaint(subcommand, &read_all(said)?)) }
    }

    fn command(&self, log: &Path) -> Command {
        let mut command = Command::new(&self.bin);
        command.args(&self.global).arg("--log").arg(log).args(["--log-format", "json"]);
        command
    }

    async fn run(&self, reaper: &Reaper, mut command: Command, subcommand: &str) -> Result<ChildExit> {
        // A supervisor that dies takes it along: nothing appears after whoever cleans up has looked. What it has started
        // by then is in the container's cgroup.
        command.die_with_parent();
        let (sender, exited) = oneshot::channel();
        let child = reaper
            .spawn(&mut command, move |exit| {
                let _ = sender.send(exit);
            })
            .map_err(|e| Error::caused(ErrorKind::Unavailable, format!("run {}", self.bin.display()), e))?;
        // The container's streams must not stay open in this process.
        drop(command);
        match tokio::time::timeout(DEADLINE, exited).await {
            Ok(Ok(exit)) => Ok(exit),
            Ok(Err(_)) => {
                Err(Error::new(ErrorKind::Failed, format!("lost the exit of {}", self.bin.display())))
            }
            Err(_) => {
                let _ = rustix::process::kill_process(child.pid, Signal::KILL);
                let seconds = DEADLINE.as_secs();
                let text = format!("{} {subcommand} did not end within {seconds} s", self.bin.display());
                Err(Error::new(ErrorKind::Timeout, text))
            }
        }
    }

    /// Turns what the program said last into an error.
    fn failure(&self, subcommand: &str, said: &Path) -> Error {
        self.complaint(subcommand, &std::fs::read(said).unwrap_or_default())
    }

    fn complaint(&self, subcommand: &str, text: &[u8]) -> Error {
        let text = String::from_utf8_lossy(text);
        let message = last_message(&text).unwrap_or_else(|| "it did not say why".to_owned());
        let name = self.bin.file_name().unwrap_or(self.bin.as_os_str()).to_string_lossy();
        Error::new(classify(&message), format!("{name} {subcommand}: {message}"))
    }
}

/// A file without a name.
fn tempfile(dir: &Path) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(rustix::fs::OFlags::TMPFILE.bits() as i32);
    options
        .open(dir)
        .map_err(|e| Error::caused(ErrorKind::Failed, format!("create a file in {}", dir.display()), e))
}

fn read_all(mut file: File) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = file.rewind().and_then(|()| file.take(MAX_ANSWER).read_to_end(&mut bytes));
    read.map_err(|e| Error::caused(ErrorKind::Failed, "read an answer", e))?;
    Ok(bytes)
}

#[derive(Deserialize)]
struct LogLine {
    level: String,
    msg: String,
}

/// The last complaint in a JSON log, or the last line of plain text.
fn last_message(text: &str) -> Option<String> {
    let lines = text.lines().rev().filter(|line| !line.trim().is_empty());
    let message = lines
        .filter_map(|line| match serde_json::from_str::<LogLine>(line) {
            Ok(line) if matches!(line.level.as_str(), "error" | "fatal") => Some(line.msg),
            Ok(line) => line.msg.split_once("FATAL ERROR: ").map(|(_, msg)| msg.to_owned()),
            Err(_) => Some(line.to_owned()),
        })
        .next()?;
    Some(message.trim().chars().take(MAX_MESSAGE).collect())
}

/// docker's exit codes depend on whether the program was missing or could not be executed. Neither runtime has a code
/// for it, so their wording decides; it comes from Go's `exec` and `os` packages and gVisor's loader.
fn classify(message: &str) -> ErrorKind {
    let about_the_program = ["exec: ", "failed to load ", "error finding executable "]
        .iter()
        .any(|words| message.contains(words));
    if !about_the_program {
        ErrorKind::Failed
    } else if message.contains("no such file or directory") || message.contains("executable file not found") {
        ErrorKind::NotFound
    } else if message.contains("permission denied") || message.contains("is a directory") {
        ErrorKind::CannotExecute
    } else {
        ErrorKind::Failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_complaint_is_found_in_either_form() {
        let json = "{\"level\":\"error\",\"msg\":\"first\"}\n{\"level\":\"error\",\"msg\":\"second\"}\n{\"level\":\"info\",\"msg\":\"x\"}\n";
        assert_eq!(last_message(json).unwrap(), "second");
        assert_eq!(last_message("a\nb\n\n").unwrap(), "b");
        assert_eq!(last_message(""), None);
    }

    #[test]
    fn missing_and_unusable_programs_are_told_apart() {
        let cases = [
            (r#"exec: "x": executable file not found in $PATH"#, ErrorKind::NotFound),
            (r#"exec: "/x": stat /x: no such file or directory"#, ErrorKind::NotFound),
            (r#"exec: "/etc": permission denied"#, ErrorKind::CannotExecute),
            ("creating process: failed to load /x: no such file or directory", ErrorKind::NotFound),
            (
                r#"error finding executable "x" in PATH [/bin]: no such file or directory"#,
                ErrorKind::NotFound,
            ),
            ("mounting \"/a\": no such file or directory", ErrorKind::Failed),
        ];
        for (message, kind) in cases {
            assert_eq!(classify(message), kind, "{message}");
        }
    }
}
