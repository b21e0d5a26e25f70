//! What becomes of a question, by what is written down about the container at the moment.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use beta9_types::NetworkPolicy;

use super::message::Question;
use super::upstream;
use crate::connection::{Connection, Host};
use crate::names::Names;

/// The host's own configuration.
const HOST_CONFIGURATION: &str = "/etc/resolv.conf";
/// Addresses of names that are let through at a time.
const MAX_OPEN: usize = 512;
/// How long an address of a name is let through: at least, at most, and longer than the client believes it.
const LEAST: Duration = Duration::from_secs(60);
const MOST: Duration = Duration::from_secs(3600);
const LONGER: Duration = Duration::from_secs(60);

/// What to do about a question.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Say these.
    Own(Vec<IpAddr>),
    /// Ask these, and pass the answer on.
    Ask(Vec<SocketAddr>),
    /// Ask these, and let the addresses in the answer through first.
    Open(Vec<SocketAddr>, String),
    /// Say that there is no such name.
    Deny,
    /// Nothing is known of the container.
    Unknown,
}

/// What is known about a container.
pub(super) struct Judge {
    file: PathBuf,
    servers: Vec<SocketAddr>,
    host: Arc<Host>,
    /// The file's number and time, and what it said.
    known: Option<((u64, i64, i64), Arc<Connection>)>,
    /// Until when addresses are let through.
    open: HashMap<IpAddr, Instant>,
}

impl Judge {
    pub(super) fn new(file: PathBuf, servers: &[IpAddr], host: Arc<Host>) -> Self {
        let servers = servers.iter().copied().map(upstream::at_port).collect();
        Self { file, servers, host, known: None, open: HashMap::new() }
    }

    pub(super) fn judge(&mut self, question: &Question) -> Verdict {
        let Some(connection) = self.connection() else { return Verdict::Unknown };
        let servers = if self.servers.is_empty() {
            upstream::of_host(Path::new(HOST_CONFIGURATION))
        } else {
            self.servers.clone()
        };
        let name = question.name().filter(|_| question.is_of_the_internet());
        if let Some(name) = &name {
            let own = of_containers(&connection, name);
            if !own.is_empty() {
                return told(&connection.policy, own);
            }
        }
        verdict(&connection.policy, name, servers)
    }

    /// What is written down: read again whenever it was written anew.
    fn connection(&mut self) -> Option<Arc<Connection>> {
        let meta = fs::metadata(&self.file).ok()?;
        let stamp = (meta.ino(), meta.mtime(), meta.mtime_nsec());
        match &self.known {
            Some((known, connection)) if *known == stamp => return Some(Arc::clone(connection)),
            _ => {}
        }
        let connection = Arc::new(Connection::read(&self.file).ok().flatten()?);
        // With other rules nothing is let through any more.
        self.open.clear();
        self.known = Some((stamp, Arc::clone(&connection)));
        Some(connection)
    }

    /// What of an answer's addresses is to be let through still; `None` if all are.
    pub(super) fn closed(&mut self, addresses: &[(IpAddr, u32)]) -> Result<Option<Opening>, TooMany> {
        let now = Instant::now();
        self.open.retain(|_, until| *until > now);
        let lasts = |ttl: u32| (Duration::from_secs(ttl.into()) + LONGER).clamp(LEAST, MOST);
        let is_short = |(address, ttl): &&(IpAddr, u32)| {
            self.open.get(address).is_none_or(|until| *until - now < lasts(*ttl) / 2 + LONGER / 2)
        };
        let missing: Vec<_> = addresses.iter().filter(is_short).map(|(ip, ttl)| (*ip, lasts(*ttl))).collect();
        if missing.is_empty() {
            return Ok(None);
        }
        if self.open.len() + missing.len() > MAX_OPEN {
            return Err(TooMany);
        }
        Ok(Some(Opening { file: self.file.clone(), host: Arc::clone(&self.host), addresses: missing }))
    }

    /// They were let through.
    pub(super) fn opened(&mut self, opening: &Opening) {
        let now = Instant::now();
        self.open.extend(opening.addresses.iter().map(|(address, lasts)| (*address, now + *lasts)));
    }
}

/// More names' addresses than are kept.
#[derive(Debug)]
pub(super) struct TooMany;

/// Addresses that are to be let through, each for how long.
pub(super) struct Opening {
    file: PathBuf,
    host: Arc<Host>,
    addresses: Vec<(IpAddr, Duration)>,
}

impl Opening {
    /// Returns whether the name is allowed still. Runs a program.
    pub(super) fn run(&self, name: &str) -> crate::Result<bool> {
        self.host.outside(|nft| Connection::let_through(&self.file, nft, name, &self.addresses))
    }
}

/// The addresses of the containers that have a name.
fn of_containers(connection: &Connection, name: &str) -> Vec<IpAddr> {
    let settings = &connection.settings;
    let has_ipv6 = connection.attachment.addresses.iter().any(|(address, _)| address.is_ipv6());
    let ipv6 = settings.ipv6.filter(|_| has_ipv6);
    let places = Names::of(&settings.bridge, &connection.worker).find(name);
    let addresses = places.into_iter().flat_map(|place| {
        let own = [Some(IpAddr::from(settings.ipv4.nth(place))), ipv6.map(|subnet| subnet.nth(place).into())];
        own.into_iter().flatten()
    });
    addresses.collect()
}

/// A container learns of others if it may talk to them.
fn told(policy: &NetworkPolicy, mut addresses: Vec<IpAddr>) -> Verdict {
    match policy {
        NetworkPolicy::Open => Verdict::Own(addresses),
        NetworkPolicy::Blocked => Verdict::Deny,
        NetworkPolicy::Only(_) => {
            addresses.retain(|address| policy.networks().any(|network| network.contains(*address)));
            if addresses.is_empty() { Verdict::Deny } else { Verdict::Own(addresses) }
        }
    }
}

fn verdict(policy: &NetworkPolicy, name: Option<String>, mut servers: Vec<SocketAddr>) -> Verdict {
    match policy {
        NetworkPolicy::Open => Verdict::Ask(servers),
        NetworkPolicy::Blocked => Verdict::Deny,
        NetworkPolicy::Only(_) => {
            if let Some(name) = name.filter(|name| policy.names().any(|pattern| pattern.matches(name))) {
                return Verdict::Open(servers, name);
            }
            servers.retain(|server| policy.networks().any(|network| network.contains(server.ip())));
            if servers.is_empty() { Verdict::Deny } else { Verdict::Ask(servers) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_narrow_policy_is_no_way_out_by_names() {
        let server: SocketAddr = "192.0.2.53:53".parse().unwrap();
        let judged =
            |policy: &str, name: &str| verdict(&policy.parse().unwrap(), Some(name.to_owned()), vec![server]);
        assert_eq!(judged("open", "a.example"), Verdict::Ask(vec![server]));
        assert_eq!(judged("blocked", "a.example"), Verdict::Deny);
        assert_eq!(judged("10.0.0.0/8", "a.example"), Verdict::Deny);
        assert_eq!(judged("192.0.2.0/24", "a.example"), Verdict::Ask(vec![server]));
        assert_eq!(judged("*.example", "b.test"), Verdict::Deny);
        assert_eq!(judged("*.example", "a.example"), Verdict::Open(vec![server], "a.example".to_owned()));
    }

    #[test]
    fn containers_out_of_reach_have_no_names() {
        let addresses: Vec<IpAddr> = vec!["192.168.0.3".parse().unwrap(), "fd00:abcd::3".parse().unwrap()];
        let told = |policy: &str| told(&policy.parse().unwrap(), addresses.clone());
        assert_eq!(told("open"), Verdict::Own(addresses.clone()));
        assert_eq!(told("10.0.0.0/8"), Verdict::Deny);
        assert_eq!(told("192.168.0.3"), Verdict::Own(addresses[..1].to_vec()));
        assert_eq!(told("blocked"), Verdict::Deny);
    }
}
