//! Names: each is a file that says whose it is, so that two workers cannot give one away twice.

use std::fs;
use std::io::{self, Write};

use beta9_types::{ContainerId, ContainerName};

use crate::error::{Error, ErrorKind, Result};
use crate::service::Worker;

impl Worker {
    /// Takes a name for a container, if it is to have one.
    pub(super) fn claim_name(&self, name: &Option<ContainerName>, id: &ContainerId) -> Result<()> {
        let Some(name) = name else { return Ok(()) };
        let path = self.name_file(name);
        let claimed = fs::OpenOptions::new().create_new(true).write(true).open(&path);
        match claimed.and_then(|mut file| file.write_all(id.as_str().as_bytes())) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let text =
                    format!("container name {name} is taken: remove that container, or choose another name");
                Err(Error::new(ErrorKind::Taken, text))
            }
            Err(e) => Err(Error::internal(format!("claim {}", path.display()), e)),
        }
    }

    /// Gives a container another name, whether it runs or not.
    pub(super) async fn rename(&self, container: &str, name: ContainerName) -> Result<()> {
        let (directory, mut record) = self.find(container)?;
        let new = Some(name);
        if record.request.name == new {
            return Ok(());
        }
        self.claim_name(&new, &record.id)?;
        let old = std::mem::replace(&mut record.request.name, new.clone());
        if let Err(error) = record.write(&directory) {
            if let Some(name) = &new {
                let _ = fs::remove_file(self.name_file(name));
            }
            return Err(error.into());
        }
        if let Some(name) = &old {
            let _ = fs::remove_file(self.name_file(name));
        }
        self.rename_in_network(&directory, old.as_ref(), new.as_ref()).await?;
        let old_name = old.map(String::from).unwrap_or_default();
        self.tell(&record, "rename", &[("old_name", old_name)]);
        Ok(())
    }
}
