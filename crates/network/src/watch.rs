//! Somebody else may throw away all the rules of the machine (`nft flush ruleset`, a firewall that starts anew). The kernel
//! tells of it, and the rules of the containers that run are made again.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use beta9_sys::netlink::events::FilterEvents;
use beta9_types::BridgeName;
use serde_json::Value;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

use crate::connection::Connection;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::nft::Nft;

/// Whoever throws rules away often puts others in their place at once.
const SETTLED: Duration = Duration::from_millis(100);

/// Tells when the rules of a bridge are gone.
pub struct RulesWatch {
    events: AsyncFd<FilterEvents>,
    bridge: BridgeName,
}

impl RulesWatch {
    /// Watches the network namespace that this thread is in. Must be called in a tokio runtime.
    pub fn open(bridge: &BridgeName) -> Result<Self> {
        let doing = || "watch the rules of the bridge".to_owned();
        let events = FilterEvents::open().while_doing(doing)?;
        #[expect(
            deprecated,
            reason = "an owned descriptor is what it says; the successor is unsafe for types that are not"
        )]
        let events = AsyncFd::new(events).map_err(|e| Error::caused(ErrorKind::Failed, doing(), e))?;
        Ok(Self { events, bridge: bridge.clone() })
    }

    /// Returns when a table of the bridge has been removed, by whomever.
    pub async fn gone(&mut self) -> Result<()> {
        loop {
            let ready = self.events.readable().await;
            let mut ready = ready.map_err(|e| {
                Error::caused(ErrorKind::Failed, "wait for changes to the rules of the bridge", e)
            })?;
            match ready.get_inner().removed_tables() {
                Ok(names) if !names.iter().any(|name| name == self.bridge.as_str()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                // It is among them, or may be.
                Ok(_) | Err(_) => {
                    drop(ready);
                    sleep(SETTLED).await;
                    return Ok(());
                }
            }
        }
    }
}

/// Makes the rules again of those containers, written down in `files`, that have none. Returns how many they were.
pub fn restore_rules(nft: &Nft, files: &[PathBuf]) -> Result<usize> {
    let list = nft.list(&["list", "chains"])?;
    let mut restored = 0;
    for file in files {
        let Some(connection) = Connection::read(file)? else { continue };
        let chains = connection.chains();
        if !chains.iter().all(|chain| has(&list, connection.settings.bridge.as_str(), chain))
            && Connection::restore(file, nft)?
        {
            restored += 1;
        }
    }
    Ok(restored)
}

fn has(list: &Value, table: &str, chain: &str) -> bool {
    let items = list["nftables"].as_array().into_iter().flatten();
    let mut chains = items.filter_map(|item| item.get("chain"));
    chains.any(|item| item["table"] == table && item["name"] == chain)
}
