//! Where the project keeps what it makes.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The checkout that this program was built from.
#[derive(Debug, Clone)]
pub(crate) struct Project {
    root: PathBuf,
}

impl Project {
    pub(crate) fn here() -> Self {
        // The manifest is `<root>/xtask/Cargo.toml`.
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        Self { root: manifest.parent().unwrap_or(manifest).to_owned() }
    }

    /// The checkout itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Things that take long to make and are the same next time; `rm -rf` costs only that time.
    pub(crate) fn cache(&self) -> PathBuf {
        self.root.join("target/cache")
    }

    /// Where cargo builds.
    pub(crate) fn cargo_target(&self) -> PathBuf {
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| self.root.join("target"), PathBuf::from)
    }

    /// Where `cargo install` puts programs from crates.io.
    pub(crate) fn tools_root(&self) -> PathBuf {
        self.root.join("target/tools")
    }

    /// Programs from crates.io.
    pub(crate) fn tools(&self) -> PathBuf {
        self.tools_root().join("bin")
    }

    /// The caller's PATH with [`Self::tools`] in front.
    pub(crate) fn path(&self) -> Result<OsString> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let entries = std::iter::once(self.tools()).chain(std::env::split_paths(&path));
        std::env::join_paths(entries).context("the path of this checkout has a colon: move it")
    }
}
