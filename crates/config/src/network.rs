//! `worker.network`: the bridge of this worker's containers.

use beta9_types::{BridgeName, Ipv4Subnet, Ipv6Subnet, NetworkDefault, NetworkSettings, Subnet};
use serde_json::{Value as Json, json};

use crate::error::Result;
use crate::pool::Source;
use crate::reader::{Entry, Reader};

pub(crate) const KEYS: [&str; 6] = ["default", "bridge", "ipv4", "ipv6", "mtu", "allow_metadata"];
/// The word for no IPv6.
const NONE: &str = "none";

/// What the file says about the network, over the defaults.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct FileNetwork {
    pub(crate) settings: NetworkSettings,
    /// The keys that the file gives, with their lines.
    given: Vec<(&'static str, u32)>,
}

pub(crate) fn read(reader: &Reader<'_>, entry: &Entry<'_>) -> Result<FileNetwork> {
    let mut keys = reader.keys(entry.node, &entry.path, &KEYS)?;
    let mut network = FileNetwork::default();
    let settings = &mut network.settings;
    for name in KEYS {
        let Some(entry) = keys.take(name) else { continue };
        let is_given = match name {
            "default" => word(reader, &entry)?.map(|word| settings.default = word).is_some(),
            "bridge" => bridge(reader, &entry)?.map(|name| settings.bridge = name).is_some(),
            "ipv4" => ipv4(reader, &entry)?.map(|subnet| settings.ipv4 = subnet).is_some(),
            "ipv6" => ipv6(reader, &entry)?.map(|subnet| settings.ipv6 = subnet).is_some(),
            "mtu" => {
                let range = NetworkSettings::MTUS;
                let mtu = reader.number(&entry, *range.start(), *range.end())?;
                settings.mtu = mtu;
                mtu.is_some()
            }
            _ => {
                settings.allow_metadata = reader.flag(&entry)?;
                true
            }
        };
        if is_given {
            network.given.push((name, entry.key.at.line));
        }
    }
    Ok(network)
}

fn word(reader: &Reader<'_>, entry: &Entry<'_>) -> Result<Option<NetworkDefault>> {
    let Some(text) = reader.text(entry)? else { return Ok(None) };
    match NetworkDefault::ALL.into_iter().find(|word| word.as_str() == text) {
        Some(word) => Ok(Some(word)),
        None => Err(reader.unknown_word(entry, text, &NetworkDefault::ALL.map(NetworkDefault::as_str))),
    }
}

fn bridge(reader: &Reader<'_>, entry: &Entry<'_>) -> Result<Option<BridgeName>> {
    let Some(text) = reader.text(entry)? else { return Ok(None) };
    let rule = "use 1 to 15 letters, digits and _, starting with a letter and not with b9h or b9fc_";
    BridgeName::parse(text).map(Some).map_err(|_| reader.invalid(entry, text, rule))
}

fn ipv4(reader: &Reader<'_>, entry: &Entry<'_>) -> Result<Option<Ipv4Subnet>> {
    let Some(text) = reader.text(entry)? else { return Ok(None) };
    match Subnet::parse(text) {
        Ok(Subnet::V4(subnet)) if NetworkSettings::IPV4_PREFIXES.contains(&subnet.prefix()) => {
            Ok(Some(subnet))
        }
        _ => {
            let rule = "use an IPv4 network from /8 to /29 by its lowest address, as in 192.168.0.0/20";
            Err(reader.invalid(entry, text, rule))
        }
    }
}

/// `none` is a value of its own: nothing means the default, as everywhere.
fn ipv6(reader: &Reader<'_>, entry: &Entry<'_>) -> Result<Option<Option<Ipv6Subnet>>> {
    let Some(text) = reader.text(entry)? else { return Ok(None) };
    if text == NONE {
        return Ok(Some(None));
    }
    match Subnet::parse(text) {
        Ok(Subnet::V6(subnet)) if NetworkSettings::IPV6_PREFIXES.contains(&subnet.prefix()) => {
            Ok(Some(Some(subnet)))
        }
        _ => {
            let rule =
                "use an IPv6 network from /48 to /96 by its lowest address, as in fd00:abcd::/64, or none";
            Err(reader.invalid(entry, text, rule))
        }
    }
}

impl FileNetwork {
    /// Every value, with its source.
    pub(crate) fn shown(&self) -> Vec<(&'static str, Json, Source)> {
        let settings = &self.settings;
        let source = |key: &str| match self.given.iter().find(|(name, _)| *name == key) {
            Some((_, line)) => Source::WorkerKey { line: *line },
            None => Source::Default,
        };
        let ipv6 = settings.ipv6.map_or_else(|| NONE.to_owned(), |subnet| subnet.to_string());
        let mut shown = vec![
            ("default", json!(settings.default.as_str()), source("default")),
            ("bridge", json!(settings.bridge.as_str()), source("bridge")),
            ("ipv4", json!(settings.ipv4.to_string()), source("ipv4")),
            ("ipv6", json!(ipv6), source("ipv6")),
        ];
        shown.extend(settings.mtu.map(|mtu| ("mtu", json!(mtu), source("mtu"))));
        shown.push(("allow_metadata", json!(settings.allow_metadata), source("allow_metadata")));
        shown
    }
}
