//! Names of containers, by which those of the same worker and bridge find each other.
//!
//! ```text
//! /run/beta9/network/<bridge>/names/<worker>/<name>/<place>   one empty file for each container that has the name
//! ```
//!
//! Every container's own name server looks here (`resolver`), whatever has become of the worker. Names are those that
//! clients of the worker gave; a container cannot take one. Several may have the same: then all of them are the answer.

use std::fs::{self, File};
use std::io::ErrorKind as IoErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use beta9_types::{BridgeName, NetworkName};

use crate::error::{Error, Result};
use crate::files;
use crate::lease::{Leases, Locked};

/// Addresses in one answer. More containers than that with one name are not all told.
const MAX_PLACES: usize = 16;

/// The names of one worker's containers on one bridge.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    directory: PathBuf,
}

impl Names {
    /// `worker` is what [`worker_of`] said.
    pub(crate) fn of(bridge: &BridgeName, worker: &str) -> Self {
        Self { directory: directory(&Leases::of(bridge)).join(worker) }
    }

    pub(crate) fn add(&self, _locked: &Locked, names: &[NetworkName], place: u32) -> Result<()> {
        for name in names.iter().filter_map(|name| file_name(name.as_ref())) {
            let path = self.directory.join(name);
            files::make_directory(&path)?;
            let path = path.join(place.to_string());
            File::create(&path).map_err(|e| Error::file("create", &path, e))?;
        }
        Ok(())
    }

    /// What is not there is fine.
    pub(crate) fn remove(&self, _locked: &Locked, names: &[NetworkName], place: u32) -> Result<()> {
        for name in names.iter().filter_map(|name| file_name(name.as_ref())) {
            let path = self.directory.join(name);
            files::remove(&path.join(place.to_string()))?;
            // Somebody else may have the same name.
            let _ = fs::remove_dir(&path);
        }
        let _ = fs::remove_dir(&self.directory);
        Ok(())
    }

    /// The places of those who have a name, which may be anything.
    pub(crate) fn find(&self, name: &str) -> Vec<u32> {
        let Some(name) = file_name(name) else { return Vec::new() };
        let Ok(entries) = fs::read_dir(self.directory.join(name)) else { return Vec::new() };
        let places = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        places.take(MAX_PLACES).collect()
    }
}

/// Forgets every name of a bridge.
pub(crate) fn forget_all(leases: &Leases) -> Result<()> {
    let path = directory(leases);
    match fs::remove_dir_all(&path) {
        Err(e) if e.kind() != IoErrorKind::NotFound => Err(Error::file("remove", &path, e)),
        _ => Ok(()),
    }
}

/// What tells one worker's names from another's: the directory in which it keeps its containers.
pub(crate) fn worker_of(containers: &Path) -> Result<String> {
    let meta = fs::metadata(containers).map_err(|e| Error::file("look at", containers, e))?;
    Ok(format!("{:x}-{:x}", meta.dev(), meta.ino()))
}

fn directory(leases: &Leases) -> PathBuf {
    leases.directory().join("names")
}

/// The name as that of a file: in small letters, and leading nowhere else.
fn file_name(name: &str) -> Option<String> {
    let name = name.to_ascii_lowercase();
    let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let fine = !name.is_empty() && name.len() <= 253 && !name.starts_with('.') && name.bytes().all(known);
    fine.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> NetworkName {
        NetworkName::parse(text).unwrap()
    }

    #[test]
    fn a_name_is_found_while_somebody_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let leases = Leases::below(directory.path(), &BridgeName::default());
        let locked = leases.lock().unwrap();
        let names = Names { directory: super::directory(&leases).join("1") };
        names.add(&locked, &[name("Web"), name("x")], 2).unwrap();
        names.add(&locked, &[name("web")], 3).unwrap();
        let mut found = names.find("WEB");
        found.sort_unstable();
        assert_eq!(found, [2, 3]);
        names.remove(&locked, &[name("web"), name("x"), name("never")], 2).unwrap();
        assert_eq!((names.find("web"), names.find("x")), (vec![3], vec![]));
        names.remove(&locked, &[name("web")], 3).unwrap();
        assert!(!names.directory.exists());
        forget_all(&leases).unwrap();
        forget_all(&leases).unwrap();
    }

    #[test]
    fn a_question_leads_nowhere_else() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("other/web")).unwrap();
        File::create(directory.path().join("other/web/7")).unwrap();
        let names = Names { directory: directory.path().join("own") };
        for bad in ["", ".", "..", "../other/web", "web/", "\0", "a b", "*"] {
            assert!(names.find(bad).is_empty(), "{bad:?}");
        }
        assert_eq!(Names { directory: directory.path().join("other") }.find("web"), [7]);
    }
}
