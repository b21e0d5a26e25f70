//! Who has which address of a bridge.
//!
//! ```text
//! /run/beta9/network/<bridge>/
//!   lock            held while an address is looked for and while the bridge is made or removed
//!   settings.json   what the bridge was made with
//!   last            the place that was given last: the search goes on behind it, so that an address rests before it is
//!                   somebody else's
//!   leases/<place>  one file for each address that is taken, with the container's id
//! ```
//!
//! It is the machine's and not a worker's: all workers that share a bridge take their addresses from here. It ends with the
//! machine's boot, as the bridge does. A lease is one file that is made only if it is not there, so two containers cannot
//! have the same.

use std::fs::{self, File};
use std::io::{ErrorKind as IoErrorKind, Write};
use std::path::{Path, PathBuf};

use beta9_types::{BridgeName, ContainerId, NetworkSettings};

use crate::error::{Error, ErrorKind, Result};
use crate::files;

/// Where the machine's networks are written down.
pub(crate) const STATE: &str = "/run/beta9/network";

/// Longest search for a free place, so that a full network is told and not waited for.
const MAX_TRIES: u64 = 1 << 20;

/// The addresses of one bridge.
#[derive(Debug, Clone)]
pub(crate) struct Leases {
    directory: PathBuf,
}

/// The right to change a bridge and its addresses.
#[derive(Debug)]
pub(crate) struct Locked {
    leases: Leases,
    _lock: File,
}

impl Leases {
    pub(crate) fn of(bridge: &BridgeName) -> Self {
        Self::below(Path::new(STATE), bridge)
    }

    pub(crate) fn below(state: &Path, bridge: &BridgeName) -> Self {
        Self { directory: state.join(bridge.as_str()) }
    }

    pub(crate) fn settings_file(&self) -> PathBuf {
        self.directory.join("settings.json")
    }

    pub(crate) fn rules_lock(&self) -> PathBuf {
        self.directory.join("rules.lock")
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    fn places(&self) -> PathBuf {
        self.directory.join("leases")
    }

    fn place(&self, offset: u32) -> PathBuf {
        self.places().join(offset.to_string())
    }

    pub(crate) fn lock(&self) -> Result<Locked> {
        files::make_directory(&self.places())?;
        let lock = files::lock(&self.directory.join("lock"))?;
        Ok(Locked { leases: self.clone(), _lock: lock })
    }

    /// Gives back what container `id` has at `offset`. Somebody else's, and missing, is fine.
    pub(crate) fn release(&self, id: &ContainerId, offset: u32) -> Result<()> {
        let path = self.place(offset);
        match fs::read_to_string(&path) {
            Ok(owner) if owner.trim_end() == id.as_str() => files::remove(&path),
            Ok(_) => Ok(()),
            Err(e) if e.kind() == IoErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::file("read", &path, e)),
        }
    }

    /// Gives back everything that container `id` has, wherever it is.
    pub(crate) fn release_all(&self, id: &ContainerId) -> Result<()> {
        for offset in self.taken()? {
            self.release(id, offset)?;
        }
        Ok(())
    }

    /// Every place that is taken.
    pub(crate) fn taken(&self) -> Result<Vec<u32>> {
        let places = self.places();
        let entries = match fs::read_dir(&places) {
            Ok(entries) => entries,
            Err(e) if e.kind() == IoErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::file("list", &places, e)),
        };
        Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
    }
}

impl Locked {
    /// Takes a place for container `id`: `wished` if it is free, else the next one behind the last that was given.
    pub(crate) fn take(
        &self,
        id: &ContainerId,
        settings: &NetworkSettings,
        wished: Option<u32>,
    ) -> Result<u32> {
        // Neither the network itself, nor the gateway, nor the broadcast address.
        let first = NetworkSettings::GATEWAY + 1;
        let end = u32::try_from(settings.ipv4.size() - 1).unwrap_or(u32::MAX);
        if let Some(wished) = wished.filter(|wished| (first..end).contains(wished))
            && self.claim(id, wished)?
        {
            return Ok(wished);
        }
        let last_file = self.leases.directory.join("last");
        let last = fs::read_to_string(&last_file).ok().and_then(|text| text.trim().parse::<u32>().ok());
        let start = last.filter(|last| (first..end).contains(last)).unwrap_or(first - 1);
        let count = u64::from(end - first);
        for step in 1..=count.min(MAX_TRIES) {
            let offset = first + ((u64::from(start - (first - 1)) + step - 1) % count) as u32;
            if self.claim(id, offset)? {
                // Losing it costs the rest of an address, not its uniqueness.
                let _ = fs::write(&last_file, offset.to_string());
                return Ok(offset);
            }
        }
        let text = format!(
            "all {count} addresses of {} are taken: stop containers, or set a larger worker.network.ipv4",
            settings.ipv4
        );
        Err(Error::new(ErrorKind::Exhausted, text))
    }

    fn claim(&self, id: &ContainerId, offset: u32) -> Result<bool> {
        let path = self.leases.place(offset);
        match File::options().write(true).create_new(true).open(&path) {
            Ok(mut file) => {
                let written = file.write_all(id.as_str().as_bytes());
                written.map(|()| true).map_err(|e| Error::file("write", &path, e))
            }
            Err(e) if e.kind() == IoErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(Error::file("create", &path, e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> ContainerId {
        ContainerId::parse(name).unwrap()
    }

    #[test]
    fn no_address_is_given_twice_and_one_that_was_given_back_rests() {
        let directory = tempfile::tempdir().unwrap();
        let leases = Leases::below(directory.path(), &BridgeName::default());
        let settings = NetworkSettings { ipv4: "10.0.0.0/29".parse().unwrap(), ..NetworkSettings::default() };
        let take = |name: &str| leases.lock().unwrap().take(&id(name), &settings, None);
        assert_eq!([take("a").unwrap(), take("b").unwrap()], [2, 3]);
        leases.release(&id("b"), 2).unwrap();
        leases.release(&id("a"), 2).unwrap();
        assert_eq!(
            [take("c").unwrap(), take("d").unwrap(), take("e").unwrap(), take("f").unwrap()],
            [4, 5, 6, 2]
        );
        let error = take("g").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exhausted);
        leases.release_all(&id("e")).unwrap();
        assert_eq!(take("g").unwrap(), 6);
    }

    #[test]
    fn a_container_gets_the_address_it_had() {
        let directory = tempfile::tempdir().unwrap();
        let leases = Leases::below(directory.path(), &BridgeName::default());
        let settings = NetworkSettings::default();
        let take = |name: &str, wished| leases.lock().unwrap().take(&id(name), &settings, wished).unwrap();
        assert_eq!(take("a", Some(9)), 9);
        assert_eq!(take("b", Some(9)), 2);
        assert_eq!(take("c", Some(1)), 3);
        assert_eq!(take("d", Some(4095)), 4);
    }

    #[test]
    fn many_at_once_get_different_addresses() {
        let directory = tempfile::tempdir().unwrap();
        let leases = Leases::below(directory.path(), &BridgeName::default());
        let settings = NetworkSettings::default();
        let mut places: Vec<u32> = std::thread::scope(|scope| {
            let takers: Vec<_> = (0..50)
                .map(|number| {
                    let (leases, settings) = (&leases, &settings);
                    scope.spawn(move || {
                        leases.lock().unwrap().take(&id(&format!("c{number}")), settings, None).unwrap()
                    })
                })
                .collect();
            takers.into_iter().map(|taker| taker.join().unwrap()).collect()
        });
        places.sort_unstable();
        assert_eq!(places, (2..52).collect::<Vec<_>>());
    }
}
