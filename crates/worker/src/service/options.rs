//! The further options of a request: from the message to checked values.

use beta9_types::{
    ContainerOptions, DiskRate, FileOptions, LifeOptions, LimitOptions, MemoryBytes, MemorySwap, NameOptions,
    NetworkMode, NetworkOptions, NetworkPolicy, ParseError, ProcessOptions, RateLimits, RestartPolicy,
    SignalNumber, StorageOptions, Throttle, ThrottleKind,
};

use crate::api;
use crate::error::{Error, ErrorKind, Result};

/// The least that a connection can be made with, and what no interface reaches.
const RATES: std::ops::RangeInclusive<u64> = 10_000..=1_000_000_000_000;
/// The least bytes of a disk in a second: with less not even a shell starts.
const MIN_DISK_BYTES: u64 = 64 << 10;
/// More than any disk does, and what every engine can count.
const MAX_DISK_RATE: u64 = 1 << 50;
const MAX_DISK_OPERATIONS: u64 = 1_000_000_000;
/// Longest label, and longest seccomp profile.
const MAX_LABEL: usize = 64 << 10;
const MAX_PROFILE: usize = 1 << 20;
/// Most mounts of one container.
const MAX_MOUNTS: usize = 256;

/// Takes the options out of `message` and checks each by its own rule and by those that go with it.
pub(super) fn options(message: &mut api::CreateRequest) -> Result<ContainerOptions> {
    let options = ContainerOptions {
        process: process(message)?,
        limits: limits(message)?,
        files: files(message)?,
        names: names(message)?,
        life: life(message)?,
        network: network(message)?,
    };
    if message.auto_remove && options.life.restart != RestartPolicy::No {
        return Err(invalid("--rm and --restart cannot both be meant: leave one out"));
    }
    Ok(options)
}

fn process(message: &mut api::CreateRequest) -> Result<ProcessOptions> {
    if message.seccomp.len() > MAX_PROFILE {
        return Err(invalid("the seccomp profile is larger than 1 MiB: use a smaller one"));
    }
    Ok(ProcessOptions {
        entrypoint: message.entrypoint.take().map(|entrypoint| entrypoint.words),
        groups: std::mem::take(&mut message.groups),
        ulimits: parsed(&message.ulimits)?,
        cap_add: parsed(&message.cap_add)?,
        cap_drop: parsed(&message.cap_drop)?,
        no_new_privileges: message.no_new_privileges,
        seccomp: std::mem::take(&mut message.seccomp).into(),
        init: message.init,
        unmasked: message.unmasked,
    })
}

fn limits(message: &api::CreateRequest) -> Result<LimitOptions> {
    let within = |name: &str, value: u64, least: u64, most: u64| match value {
        0 => Ok(None),
        value if (least..=most).contains(&value) => Ok(Some(value)),
        value => Err(invalid(format!("invalid {name} {value}: use {least} to {most}"))),
    };
    // The kernel's shortest quota, a millisecond in a tenth of a second, and more CPUs than machines have.
    let nano_cpus =
        within("number of billionths of a CPU", message.nano_cpus, 10_000_000, 8192 * 1_000_000_000)?;
    let memory_swap = match message.memory_swap_bytes {
        0 => None,
        -1 => Some(MemorySwap::Unlimited),
        bytes => {
            let bytes = u64::try_from(bytes).map_err(|_| invalid("invalid memory swap: use a size or -1"))?;
            Some(MemorySwap::Limited(MemoryBytes::try_from(bytes)?))
        }
    };
    match memory_swap {
        Some(_) if message.memory_bytes == 0 => {
            return Err(invalid("--memory-swap needs --memory: give both, or neither"));
        }
        Some(MemorySwap::Limited(total)) if total.get() < message.memory_bytes => {
            return Err(invalid(
                "--memory-swap is memory and swap together: give at least what --memory says",
            ));
        }
        _ => {}
    }
    let memory_reservation = match message.memory_reservation_bytes {
        0 => None,
        bytes if message.memory_bytes > 0 && bytes > message.memory_bytes => {
            return Err(invalid("--memory-reservation is more than --memory: give at most that"));
        }
        bytes => Some(MemoryBytes::try_from(bytes)?),
    };
    Ok(LimitOptions {
        nano_cpus,
        cpu_shares: within("CPU shares", message.cpu_shares, 2, 262_144)?,
        cpuset_cpus: optional(&message.cpuset_cpus)?,
        cpuset_mems: optional(&message.cpuset_mems)?,
        memory_swap,
        memory_reservation,
        pids: u64::try_from(message.pids_limit).ok().filter(|limit| *limit > 0),
        // At most 1000.
        blkio_weight: within("disk weight", message.blkio_weight.into(), 10, 1000)?
            .map(|weight| weight as u16),
        throttles: message.throttles.iter().map(throttle).collect::<Result<_>>()?,
        disk: disk_rate(message.disk_rate, message.disk_operations)?,
    })
}

/// What a container may do on its own disks.
pub(super) fn disk_rate(bytes: Option<u64>, operations: Option<u64>) -> Result<DiskRate> {
    if bytes.is_some_and(|bytes| bytes != 0 && !(MIN_DISK_BYTES..=MAX_DISK_RATE).contains(&bytes)) {
        return Err(invalid("invalid disk rate: use 0, or at least 64 KiB per second"));
    }
    if operations.is_some_and(|operations| operations > MAX_DISK_OPERATIONS) {
        return Err(invalid(format!("invalid disk operations: use at most {MAX_DISK_OPERATIONS}")));
    }
    Ok(DiskRate { bytes, operations })
}

fn throttle(throttle: &api::Throttle) -> Result<Throttle> {
    use api::throttle::Kind;
    let kind = match throttle.kind() {
        Kind::ReadBytes => ThrottleKind::ReadBytes,
        Kind::WriteBytes => ThrottleKind::WriteBytes,
        Kind::ReadOperations => ThrottleKind::ReadOperations,
        Kind::WriteOperations => ThrottleKind::WriteOperations,
        Kind::Unspecified => return Err(invalid("a disk limit does not say what it limits: set its kind")),
    };
    Ok(Throttle::parse(kind, &throttle.limit)?)
}

fn files(message: &mut api::CreateRequest) -> Result<FileOptions> {
    let shm_bytes = match message.shm_bytes {
        0 => None,
        bytes if bytes <= i64::MAX as u64 => Some(bytes),
        bytes => return Err(invalid(format!("invalid size of /dev/shm {bytes}: use a smaller one"))),
    };
    let mut storage = StorageOptions::default();
    message.storage_options.iter().try_for_each(|option| storage.take(option))?;
    let mounts = std::mem::take(&mut message.mounts);
    if mounts.len() > MAX_MOUNTS {
        return Err(invalid(format!("more than {MAX_MOUNTS} mounts: use fewer")));
    }
    Ok(FileOptions {
        mounts: mounts.into_iter().map(crate::mounts::request).collect::<Result<_>>()?,
        volumes_from: parsed(&message.volumes_from)?,
        storage,
        read_only: message.read_only,
        tmpfs: parsed(&message.tmpfs)?,
        shm_bytes,
        devices: parsed(&message.devices)?,
        sysctls: parsed(&message.sysctls)?,
    })
}

fn names(message: &mut api::CreateRequest) -> Result<NameOptions> {
    let address = |text: &String| {
        text.parse()
            .map_err(|_| invalid(format!("invalid name server {text:?}: use an IPv4 or IPv6 address")))
    };
    for word in message.dns_search.iter().chain(&message.dns_options) {
        if word.is_empty() || word.len() > 253 || word.contains(|c: char| c.is_whitespace() || c.is_control())
        {
            return Err(invalid(format!("invalid DNS domain or option {word:?}: use one word")));
        }
    }
    Ok(NameOptions {
        hosts: parsed(&message.hosts)?,
        dns: message.dns.iter().map(address).collect::<Result<_>>()?,
        dns_search: std::mem::take(&mut message.dns_search),
        dns_options: std::mem::take(&mut message.dns_options),
    })
}

fn network(message: &api::CreateRequest) -> Result<NetworkOptions> {
    /// More networks than anybody has reason to name.
    const MAX_ALLOWED: usize = 256;
    /// The same for names.
    const MAX_ALIASES: usize = 64;
    let policy = match (message.block_network, message.allow_networks.len()) {
        (false, 0) => NetworkPolicy::Open,
        (true, 0) => NetworkPolicy::Blocked,
        (false, count) if count <= MAX_ALLOWED => NetworkPolicy::Only(parsed(&message.allow_networks)?),
        (false, _) => {
            return Err(invalid(format!(
                "more than {MAX_ALLOWED} networks or names to talk to: use larger networks"
            )));
        }
        (true, _) => {
            return Err(invalid("--block-network and --allow-network cannot both be meant: leave one out"));
        }
    };
    Ok(NetworkOptions {
        mode: optional::<NetworkMode>(&message.network)?,
        ports: parsed(&message.publish)?,
        policy,
        rates: RateLimits {
            egress: rate("egress rate", message.egress_rate)?,
            ingress: rate("ingress rate", message.ingress_rate)?,
        },
        aliases: match message.network_aliases.len() {
            count if count <= MAX_ALIASES => parsed(&message.network_aliases)?,
            _ => return Err(invalid(format!("more than {MAX_ALIASES} names in the network: use fewer"))),
        },
    })
}

/// A rate of a network; 0 is none.
pub(super) fn rate(name: &str, rate: u64) -> Result<Option<u64>> {
    match rate {
        0 => Ok(None),
        rate if RATES.contains(&rate) => Ok(Some(rate)),
        rate => Err(invalid(format!(
            "invalid {name} {rate}: use {} to {} bytes per second",
            RATES.start(),
            RATES.end()
        ))),
    }
}

fn life(message: &mut api::CreateRequest) -> Result<LifeOptions> {
    let labels: std::collections::BTreeMap<_, _> = std::mem::take(&mut message.labels).into_iter().collect();
    if labels.contains_key("") {
        return Err(invalid("a label has no name: use NAME=VALUE"));
    }
    if labels.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > MAX_LABEL {
        return Err(invalid("the labels are larger than 64 KiB: use fewer or shorter ones"));
    }
    Ok(LifeOptions {
        labels,
        stop_signal: optional::<SignalNumber>(&message.stop_signal)?,
        stop_timeout: message.stop_timeout,
        restart: message.restart.parse()?,
    })
}

fn parsed<T: std::str::FromStr<Err = ParseError>>(texts: &[String]) -> Result<Vec<T>> {
    texts.iter().map(|text| Ok(text.parse()?)).collect()
}

fn optional<T: std::str::FromStr<Err = ParseError>>(text: &str) -> Result<Option<T>> {
    if text.is_empty() { Ok(None) } else { Ok(Some(text.parse()?)) }
}

fn invalid(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_contradict_each_other_are_refused() {
        let refused = |change: fn(&mut api::CreateRequest)| {
            let mut message = api::CreateRequest::default();
            change(&mut message);
            options(&mut message).is_err()
        };
        assert!(!refused(|_| {}));
        assert!(refused(|m| {
            m.auto_remove = true;
            m.restart = "always".to_owned();
        }));
        assert!(refused(|m| m.memory_swap_bytes = 64 << 20));
        assert!(refused(|m| {
            m.memory_bytes = 64 << 20;
            m.memory_swap_bytes = 32 << 20;
        }));
        assert!(refused(|m| {
            m.memory_bytes = 64 << 20;
            m.memory_reservation_bytes = 65 << 20;
        }));
        assert!(refused(|m| {
            m.block_network = true;
            m.allow_networks = vec!["10.0.0.0/8".to_owned()];
        }));
        assert!(refused(|m| m.egress_rate = 1));
        assert!(refused(|m| m.nano_cpus = 1));
        assert!(refused(|m| m.blkio_weight = 5));
        assert!(refused(|m| m.dns = vec!["x".to_owned()]));
        assert!(refused(|m| m.labels = [(String::new(), String::new())].into()));
    }
}
