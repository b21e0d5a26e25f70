//! This program, as it starts itself again for a hidden subcommand.

use std::path::PathBuf;
use std::process::Command;

/// Where this program is.
#[derive(Debug, Clone)]
pub(crate) struct OwnProgram(PathBuf);

impl OwnProgram {
    pub(crate) fn at(program: PathBuf) -> Self {
        Self(program)
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.clone()
    }

    /// A command that runs `subcommand`.
    pub(crate) fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(&self.0);
        command.arg(subcommand);
        command
    }
}

impl Default for OwnProgram {
    fn default() -> Self {
        // The link leads to the running file, even when another has taken its name.
        Self("/proc/self/exe".into())
    }
}
