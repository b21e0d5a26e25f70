//! The layout of a container's directory and how its files are replaced.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use beta9_types::ContainerId;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixListener;

use crate::error::{Error, ErrorKind, Result};

/// Longest file of a container's directory that is read whole.
const MAX_FILE: u64 = 4 << 20;

/// `<root>/containers/<id>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerDirectory {
    path: PathBuf,
}

impl ContainerDirectory {
    /// The directory of container `id` below the worker's `root`.
    pub fn of(root: &Path, id: &ContainerId) -> Self {
        Self { path: Self::all(root).join(id.as_str()) }
    }

    /// The directory that holds every container's.
    pub fn all(root: &Path) -> PathBuf {
        root.join("containers")
    }

    /// A directory by its path, as a supervisor gets it.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// The worker's root that it is below.
    pub(crate) fn root(&self) -> Option<&Path> {
        self.path().parent().and_then(Path::parent)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The OCI runtime spec.
    pub fn spec(&self) -> PathBuf {
        self.path.join("config.json")
    }

    /// The container's output.
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// What the supervisor itself has to say.
    pub fn supervisor_log(&self) -> PathBuf {
        self.path.join("supervisor.log")
    }

    pub(crate) fn record(&self) -> PathBuf {
        self.path.join("record.json")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.path.join("state.json")
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.path.join("supervisor.lock")
    }

    /// There while somebody lends out the files of the container, which does not run.
    pub(crate) fn lending(&self) -> PathBuf {
        self.path.join("lending")
    }

    /// A socket by a path that is short whatever the root: a socket address holds 107 bytes.
    pub(crate) fn short_path(directory: &File, socket: Socket) -> PathBuf {
        use std::os::fd::AsRawFd;
        PathBuf::from(format!("/proc/self/fd/{}/{}", directory.as_raw_fd(), socket.name()))
    }

    /// Makes a socket. The directory is 0700, so nobody else reaches it whatever its own mode.
    pub(crate) fn listen(&self, socket: Socket) -> Result<UnixListener> {
        let handle = self.open()?;
        let path = Self::short_path(&handle, socket);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::file("remove", &path, e)),
            _ => {}
        }
        UnixListener::bind(&path).map_err(|e| Error::file("listen on", self.path.join(socket.name()), e))
    }

    /// Takes a socket away.
    pub(crate) fn unlisten(&self, socket: Socket) {
        let _ = fs::remove_file(self.path.join(socket.name()));
    }

    pub(crate) fn open(&self) -> Result<File> {
        File::open(&self.path).map_err(|e| Error::file("open", &self.path, e))
    }
}

/// Who answers in a container's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Socket {
    /// The supervisor of a container that runs.
    Supervisor,
    /// Whoever lends out the files of one that does not.
    Lender,
}

impl Socket {
    fn name(self) -> &'static str {
        match self {
            Self::Supervisor => "supervisor.sock",
            Self::Lender => "lender.sock",
        }
    }
}

/// Replaces a JSON file so that a reader, or a crash, sees either the old or the new one whole.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let temporary = path.with_extension("json.new");
    let write = || -> io::Result<()> {
        let mut file = File::create(&temporary)?;
        serde_json::to_writer(&mut file, value)?;
        file.write_all(b"\n")?;
        file.sync_data()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|e| Error::file("write", path, e))
}

/// Reads a JSON file; absent is `None`.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match fs::metadata(path) {
        Ok(meta) if meta.len() > MAX_FILE => {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("{} is over {MAX_FILE} bytes", path.display()),
            ));
        }
        Ok(_) => fs::read(path).map_err(|e| Error::file("read", path, e))?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::file("read", path, e)),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|e| Error::caused(ErrorKind::Corrupt, format!("{} is damaged", path.display()), e))
}
