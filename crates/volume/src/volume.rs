//! The volumes of one worker's root.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use beta9_types::{ContainerId, VolumeLife, VolumeName};
use rustix::fs::{CWD, Mode, OFlags, RenameFlags, ResolveFlags, openat2, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::lock::Hold;
use crate::{Error, ErrorKind, Result, copy};

const LOCK: &str = ".lock";
const COMING: &str = ".new-";
const GOING: &str = ".gone-";
const FACTS: &str = "volume.json";
const PENDING: &str = "pending";
const DATA: &str = "_data";
/// How long a container that has no record yet may be in the making.
const UNDER_WAY: Duration = Duration::from_secs(60);

/// Which volumes containers on record have. That it cannot be told is an error: what they hold must not be lost.
pub type InUse<'a> = &'a dyn Fn() -> Result<HashSet<VolumeName>, Box<dyn std::error::Error + Send + Sync>>;

/// What is known of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its name.
    pub name: VolumeName,
    /// What is mounted.
    #[serde(skip)]
    pub path: PathBuf,
    /// When it was made, microseconds since the Unix epoch.
    pub created_us: u64,
    /// The caller's notes.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Whether it was made for a container that did not name it.
    pub life: VolumeLife,
}

/// What a volume is to be where there is none of its name.
#[derive(Debug, Clone)]
pub struct NewVolume<'a> {
    /// Its name.
    pub name: VolumeName,
    /// The caller's notes.
    pub labels: BTreeMap<String, String>,
    /// The container that it is made for, if it goes with that. Until [`Volumes::settle`] it is the container's alone.
    pub container: Option<&'a ContainerId>,
}

/// What an image has at a path.
#[derive(Debug, Clone, Copy)]
pub struct ImageContent<'a> {
    /// The image's files.
    pub tree: &'a Path,
    /// The path in it, absolute.
    pub path: &'a Path,
}

/// Which volumes are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unused {
    /// Those that were made for a container.
    Anonymous,
    /// Named ones, too.
    All,
}

/// The volumes below one root.
#[derive(Debug, Clone)]
pub struct Volumes {
    directory: PathBuf,
}

impl Volumes {
    /// The volumes of a worker's root.
    pub fn of(root: &Path) -> Self {
        Self { directory: root.join("volumes") }
    }

    /// Keeps every volume from being removed, for as long as the result is kept: a container that mounts one takes its
    /// time until it is on record.
    pub fn hold(&self) -> Result<Hold> {
        private(&self.directory)?;
        Hold::shared(&self.directory.join(LOCK))
    }

    /// The volume of that name, which is made where there is none.
    pub fn create(&self, new: NewVolume<'_>) -> Result<Volume> {
        private(&self.directory)?;
        if let Some(volume) = self.find(&new.name)? {
            return Ok(volume);
        }
        let NewVolume { name, labels, container } = new;
        let life = if container.is_some() { VolumeLife::Anonymous } else { VolumeLife::Named };
        let facts = Volume { name, path: PathBuf::new(), created_us: now_us(), labels, life };
        let staged = self.stage()?;
        let write = |name: &str, content: &[u8]| {
            let path = staged.path.join(name);
            File::create_new(&path)
                .and_then(|mut file| file.write_all(content))
                .map_err(|e| Error::file("write", &path, e))
        };
        let text = serde_json::to_vec_pretty(&facts)
            .map_err(|e| Error::file("write", &staged.path, io::Error::from(e)))?;
        write(FACTS, &text)?;
        if let Some(container) = container {
            write(PENDING, container.as_str().as_bytes())?;
        }
        data_directory(&staged.path.join(DATA))?;
        let place = self.place(&facts.name);
        match renameat_with(CWD, &staged.path, CWD, &place, RenameFlags::NOREPLACE) {
            // Somebody else may have been quicker.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(Error::file("create", &place, error)),
        }
        self.get(&facts.name)
    }

    /// The volume of that name.
    pub fn get(&self, name: &VolumeName) -> Result<Volume> {
        self.find(name)?.ok_or_else(|| {
            let text =
                format!("no such volume: {name:?}; see `beta9-worker volume ls`", name = name.as_str());
            Error::new(ErrorKind::NotFound, text)
        })
    }

    /// Every volume, by name.
    pub fn list(&self) -> Result<Vec<Volume>> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::file("list", &self.directory, e)),
        };
        let name = |entry: fs::DirEntry| VolumeName::parse(entry.file_name().to_str()?).ok();
        let mut names: Vec<_> = entries.flatten().filter_map(name).collect();
        names.sort();
        names.iter().filter_map(|name| self.find(name).transpose()).collect()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self, volume: &Volume) -> Result<bool> {
        is_empty(&volume.path)
    }

    /// Gives an empty volume what an image has at a path, with its directory's owner and mode. One that holds something
    /// stays as it is; so it does where the image has no directory there. What arrives arrives at once, unless a container
    /// has the volume already: then it arrives one entry after the other.
    pub fn fill(&self, volume: &Volume, content: ImageContent<'_>, in_use: InUse<'_>) -> Result<()> {
        if !is_empty(&volume.path)? {
            return Ok(());
        }
        let Some(source) = directory_in(content)? else { return Ok(()) };
        let place = self.place(&volume.name);
        let _filling = Hold::exclusive(&place.join(FACTS))?;
        if !is_empty(&volume.path)? {
            return Ok(());
        }
        let staged = self.stage()?;
        let data = staged.path.join(DATA);
        data_directory(&data)?;
        copy::contents(Path::new(&format!("/proc/self/fd/{}", source.as_raw_fd())), &data)?;
        if in_use().map_err(Error::count)?.contains(&volume.name) {
            // Somebody may have this very directory mounted.
            return move_in(&data, &volume.path);
        }
        renameat_with(CWD, &data, CWD, &volume.path, RenameFlags::EXCHANGE)
            .map_err(|e| Error::file("fill", &volume.path, e))
    }

    /// Ends the making of a container: what was made for it is its own, as its record says.
    pub fn settle(&self, name: &VolumeName) -> Result<()> {
        let path = self.place(name).join(PENDING);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", &path, e)),
            _ => Ok(()),
        }
    }

    /// Removes volumes that no container has. Returns those that are in use or do not exist, with the reason.
    pub fn remove(&self, names: &[VolumeName], in_use: InUse<'_>) -> Result<Vec<(VolumeName, Error)>> {
        private(&self.directory)?;
        let _lock = Hold::exclusive(&self.directory.join(LOCK))?;
        let used = in_use().map_err(Error::count)?;
        let mut kept = Vec::new();
        for name in names {
            let removed = match used.contains(name) {
                true => {
                    let text = format!(
                        "volume {name} is in use: remove the containers that have it first, see `beta9-worker ps -a`"
                    );
                    Err(Error::new(ErrorKind::InUse, text))
                }
                false => self.get(name).and_then(|volume| self.take_away(&volume.name)),
            };
            if let Err(error) = removed {
                kept.push((name.clone(), error));
            }
        }
        self.sweep();
        Ok(kept)
    }

    /// Removes every volume that no container has and whose labels fit. Returns them with the bytes that they held.
    pub fn prune(
        &self,
        unused: Unused,
        fits: &dyn Fn(&Volume) -> bool,
        in_use: InUse<'_>,
    ) -> Result<(Vec<VolumeName>, u64)> {
        private(&self.directory)?;
        let _lock = Hold::exclusive(&self.directory.join(LOCK))?;
        let used = in_use().map_err(Error::count)?;
        let (mut removed, mut bytes) = (Vec::new(), 0);
        for volume in self.list()? {
            let is_meant = unused == Unused::All || volume.life == VolumeLife::Anonymous;
            if is_meant && fits(&volume) && !used.contains(&volume.name) && !self.is_under_way(&volume.name) {
                bytes += bytes_below(&volume.path);
                self.take_away(&volume.name)?;
                removed.push(volume.name);
            }
        }
        self.sweep();
        Ok((removed, bytes))
    }

    /// Removes what was made for containers that never came to be, and what a crash left of removals.
    pub fn tidy(&self, in_use: InUse<'_>) -> Result<()> {
        if !self.directory.exists() {
            return Ok(());
        }
        let _lock = Hold::exclusive(&self.directory.join(LOCK))?;
        let used = in_use().map_err(Error::count)?;
        for volume in self.list()? {
            if !self.place(&volume.name).join(PENDING).exists() || self.is_under_way(&volume.name) {
                continue;
            }
            if used.contains(&volume.name) {
                self.settle(&volume.name)?;
            } else {
                self.take_away(&volume.name)?;
            }
        }
        self.sweep();
        Ok(())
    }

    fn place(&self, name: &VolumeName) -> PathBuf {
        self.directory.join(name.as_str())
    }

    fn find(&self, name: &VolumeName) -> Result<Option<Volume>> {
        let place = self.place(name);
        let path = place.join(FACTS);
        match fs::read(&path) {
            Ok(text) => {
                let facts: Volume = serde_json::from_slice(&text)
                    .map_err(|e| Error::file("understand", &path, io::Error::from(e)))?;
                Ok(Some(Volume { path: place.join(DATA), name: name.clone(), ..facts }))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::file("read", &path, e)),
        }
    }

    /// Whether it is being made for a container right now.
    fn is_under_way(&self, name: &VolumeName) -> bool {
        is_young(&self.place(name).join(PENDING))
    }

    /// A directory whose name no volume can have; it goes when the result is dropped, unless it has become one.
    fn stage(&self) -> Result<Staged> {
        let path = self.directory.join(format!("{COMING}{}", VolumeName::random()));
        private(&path)?;
        Ok(Staged { path })
    }

    /// The name is free at once; the content may take its time.
    fn take_away(&self, name: &VolumeName) -> Result<()> {
        let (place, going) =
            (self.place(name), self.directory.join(format!("{GOING}{}", VolumeName::random())));
        fs::rename(&place, &going).map_err(|e| Error::file("remove", &place, e))?;
        fs::remove_dir_all(&going).map_err(|e| Error::file("remove", &going, e))
    }

    /// What is left of removals goes, and what was never finished, unless it is so young that it may be under way.
    fn sweep(&self) {
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(GOING) || (name.starts_with(COMING) && !is_young(&entry.path())) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// A volume in the making.
struct Staged {
    path: PathBuf,
}

impl Drop for Staged {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn private(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| Error::file("create", path, e))
}

/// What containers see: anybody may enter, as with docker's.
fn data_directory(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::create_dir(path)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
        .map_err(|e| Error::file("create", path, e))
}

fn is_empty(path: &Path) -> Result<bool> {
    let mut entries = fs::read_dir(path).map_err(|e| Error::file("list", path, e))?;
    Ok(entries.next().is_none())
}

fn is_young(path: &Path) -> bool {
    let age = fs::symlink_metadata(path).and_then(|meta| meta.modified()).map(|time| time.elapsed());
    matches!(age, Ok(Ok(age)) if age < UNDER_WAY) || matches!(age, Ok(Err(_)))
}

/// The image's directory, found by the kernel below the image's root whatever its links say (CVE-2022-23648).
fn directory_in(content: ImageContent<'_>) -> Result<Option<std::os::fd::OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let tree = rustix::fs::open(content.tree, flags, Mode::empty())
        .map_err(|e| Error::file("open", content.tree, e))?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match openat2(&tree, content.path, flags, Mode::empty(), resolve) {
        Ok(directory) => Ok(Some(directory)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(Error::file("open in the image", content.path, error)),
    }
}

/// Gives a directory that may be mounted somewhere the content, owner and mode of another.
fn move_in(from: &Path, to: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let failed = |e| Error::file("fill", to, e);
    for entry in fs::read_dir(from).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        fs::rename(entry.path(), to.join(entry.file_name())).map_err(failed)?;
    }
    let meta = fs::metadata(from).map_err(failed)?;
    std::os::unix::fs::chown(to, Some(meta.uid()), Some(meta.gid()))
        .and_then(|()| fs::set_permissions(to, meta.permissions()))
        .map_err(failed)
}

/// Bytes of all files below a directory; what cannot be looked at counts nothing.
fn bytes_below(path: &Path) -> u64 {
    let (mut waiting, mut bytes) = (vec![path.to_owned()], 0);
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => waiting.push(entry.path()),
                Ok(meta) => bytes += meta.len(),
                Err(_) => {}
            }
        }
    }
    bytes
}

fn now_us() -> u64 {
    // Fits for another half a million years.
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64
}
