//! From what a user typed to a container.

use std::fs;

use beta9_supervisor::{ContainerDirectory, Record};
use beta9_types::{ContainerId, ContainerName};

use crate::error::{Error, ErrorKind, Result};
use crate::service::Worker;

impl Worker {
    /// The container with this id, name, or unique beginning of an id.
    pub(super) fn find(&self, text: &str) -> Result<(ContainerDirectory, Record)> {
        if let Ok(id) = ContainerId::parse(text)
            && let Some(found) = self.by_id(&id)?
        {
            return Ok(found);
        }
        if let Ok(name) = ContainerName::parse(text)
            && let Ok(id) = fs::read_to_string(self.name_file(&name))
            && let Ok(id) = ContainerId::parse(id.trim())
            && let Some(found) = self.by_id(&id)?
        {
            return Ok(found);
        }
        let mut matches =
            self.ids()?.into_iter().filter(|id| !text.is_empty() && id.as_str().starts_with(text));
        match (matches.next(), matches.next()) {
            (Some(_), Some(_)) => {
                let text = format!("{text:?} begins the ids of several containers: give more of it");
                Err(Error::new(ErrorKind::Invalid, text))
            }
            (Some(id), None) => self.by_id(&id)?.ok_or_else(|| not_found(text)),
            _ => Err(not_found(text)),
        }
    }

    /// Every container's id, whether or not its record can be read.
    pub(super) fn ids(&self) -> Result<Vec<ContainerId>> {
        let directory = ContainerDirectory::all(&self.root);
        let entries = fs::read_dir(&directory)
            .map_err(|e| Error::internal(format!("list {}", directory.display()), e))?;
        let name =
            |entry: fs::DirEntry| entry.file_name().to_str().and_then(|name| ContainerId::parse(name).ok());
        Ok(entries.flatten().filter_map(name).collect())
    }

    /// The container with exactly this id.
    pub(super) fn by_id(&self, id: &ContainerId) -> Result<Option<(ContainerDirectory, Record)>> {
        let directory = ContainerDirectory::of(&self.root, id);
        Ok(Record::read(&directory)?.map(|record| (directory, record)))
    }

    pub(super) fn name_file(&self, name: &ContainerName) -> std::path::PathBuf {
        self.root.join("names").join(name.as_ref())
    }
}

fn not_found(text: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("no such container: {text:?}; see `beta9-worker ps -a`"))
}
