//! The volumes that containers have: which are whose, and those that go with one.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use beta9_types::{ContainerId, VolumeLife, VolumeName};
use beta9_volume::Volumes;

use crate::directory::ContainerDirectory;
use crate::error::{Error, Result, chain};
use crate::record::{Record, StateFile};

/// What happens to the volumes that were made for a container when its record goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnVolumes {
    /// They stay.
    Keep,
    /// They go, unless another container has them, too.
    Remove,
}

/// Which containers have which volume. A record that cannot be read is an error.
pub fn volumes_in_use(root: &Path) -> Result<HashMap<VolumeName, Vec<ContainerId>>> {
    let all = ContainerDirectory::all(root);
    let entries = match fs::read_dir(&all) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(HashMap::new()),
        Err(e) => return Err(Error::file("list", &all, e)),
    };
    let mut used: HashMap<VolumeName, Vec<ContainerId>> = HashMap::new();
    for entry in entries {
        let name = entry.map_err(|e| Error::file("list", &all, e))?.file_name();
        let Some(id) = name.to_str().and_then(|name| ContainerId::parse(name).ok()) else { continue };
        let directory = ContainerDirectory::of(root, &id);
        let Some(record) = Record::read(&directory)? else { continue };
        if record.request.auto_remove && is_over(&directory)? {
            // It is on its way out, and nothing starts it again.
            continue;
        }
        for volume in record.request.mounts.into_iter().filter_map(|mount| mount.volume) {
            used.entry(volume.name).or_default().push(id.clone());
        }
    }
    Ok(used)
}

fn is_over(directory: &ContainerDirectory) -> Result<bool> {
    let state = StateFile::read(directory)?;
    Ok(state.cleaned && state.state.exit().is_some())
}

/// Removes the volumes that were made for a container and that no other has.
pub(crate) fn remove_own(root: &Path, record: &Record) {
    let of_mounts = record.request.mounts.iter().filter_map(|mount| mount.volume.as_ref());
    let own: Vec<_> = of_mounts
        .filter(|volume| volume.life == VolumeLife::Anonymous)
        .map(|volume| volume.name.clone())
        .collect();
    if own.is_empty() {
        return;
    }
    let others = || -> std::result::Result<_, Box<dyn std::error::Error + Send + Sync>> {
        let used = volumes_in_use(root)?;
        let by_others = used.into_iter().filter(|(_, holders)| holders.iter().any(|id| *id != record.id));
        Ok(by_others.map(|(name, _)| name).collect())
    };
    // That one is in use elsewhere, or gone, is no failure.
    if let Err(error) = Volumes::of(root).remove(&own, &others) {
        tracing::error!(container = %record.id, error = chain(&error), "volumes could not be removed");
    }
}
