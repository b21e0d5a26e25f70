//! The bridge that containers of one host share: made with the first of them, left for the next.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use beta9_sys::netlink::Socket;
use beta9_sys::netlink::link::Link;
use beta9_types::{Ipv4Subnet, MacAddress, NetworkSettings};
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, ErrorKind, Result};
use crate::lease::{Leases, Locked};
use crate::nft::{self, Nft};
use crate::{files, forwarding, names};

/// What an interface takes that says nothing.
const DEFAULT_MTU: u32 = 1500;

const IPV4_FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
const IPV6: &str = "/proc/sys/net/ipv6/conf";

/// What a bridge was made with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Made {
    settings: NetworkSettings,
    /// The number of the interface: another one of the same name is another bridge.
    index: u32,
    /// Which rules it has.
    #[serde(default)]
    revision: u32,
}

impl Made {
    fn of(settings: &NetworkSettings, index: u32) -> Self {
        Self { settings: settings.clone(), index, revision: nft::skeleton::REVISION }
    }
}

/// Finds the bridge, or makes it with its rules. The thread must be in the host's network and mount namespaces.
pub(crate) fn ensure(
    locked: &Locked,
    leases: &Leases,
    settings: &NetworkSettings,
    nft: &Nft,
) -> Result<Link> {
    let settings = &effective(settings);
    let name = settings.bridge.as_str();
    let doing = || format!("set up the bridge {name}");
    let mut socket = Socket::open().while_doing(doing)?;
    let made: Option<Made> = files::read_json(&leases.settings_file())?;
    if let Some(link) = socket.link(name).while_doing(doing)? {
        match made {
            Some(made) if made.index == link.index && made.settings == *settings => {
                if made.revision != nft::skeleton::REVISION {
                    nft.apply(&nft::skeleton::upgrade(settings))?;
                    files::write_json(&leases.settings_file(), &Made::of(settings, link.index))?;
                }
                return Ok(link);
            }
            Some(made) if made.index == link.index && !leases.taken()?.is_empty() => {
                let text = format!(
                    "the bridge {name} is in use with other settings (IPv4 network {}): stop its containers first, or set \
                     another worker.network.bridge and other networks",
                    made.settings.ipv4
                );
                return Err(Error::new(ErrorKind::Taken, text));
            }
            Some(made) if made.index == link.index => dismantle(&mut socket, &made.settings, nft)?,
            _ => {
                let text = format!(
                    "there is an interface {name} that this worker did not make: remove it, or set another \
                     worker.network.bridge"
                );
                return Err(Error::new(ErrorKind::Taken, text));
            }
        }
    }
    refuse_overlap(&mut socket, settings)?;
    let link = make(&mut socket, settings, nft)?;
    let written = files::write_json(&leases.settings_file(), &Made::of(settings, link.index));
    if let Err(error) = written {
        dismantle(&mut socket, settings, nft)?;
        return Err(error);
    }
    let _ = locked;
    Ok(link)
}

/// The settings as far as this kernel can have them.
fn effective(settings: &NetworkSettings) -> NetworkSettings {
    let has_ipv6 = Path::new(IPV6).exists();
    NetworkSettings { ipv6: settings.ipv6.filter(|_| has_ipv6), ..settings.clone() }
}

fn make(socket: &mut Socket, settings: &NetworkSettings, nft: &Nft) -> Result<Link> {
    let name = settings.bridge.as_str();
    let doing = || format!("make the bridge {name}");
    let mtu = match settings.mtu {
        Some(mtu) => mtu,
        None => uplink_mtu(socket).unwrap_or(DEFAULT_MTU),
    };
    // Rules first: no packet passes a bridge without them.
    nft.apply(&nft::skeleton::create(settings))?;
    let built =
        socket.add_bridge(name, mac_of(settings.gateway4()).0, mtu).while_doing(doing).and_then(|()| {
            let link = socket.link(name).while_doing(doing)?;
            let link =
                link.ok_or_else(|| Error::new(ErrorKind::Failed, format!("the bridge {name} is gone")))?;
            // Said once more it stays so, whatever ports come and go.
            socket.set_mtu(link.index, mtu).while_doing(doing)?;
            forward(settings)?;
            socket
                .add_address(link.index, settings.gateway4().into(), settings.ipv4.prefix())
                .while_doing(doing)?;
            if let (Some(gateway), Some(subnet)) = (settings.gateway6(), settings.ipv6) {
                socket.add_address(link.index, gateway.into(), subnet.prefix()).while_doing(doing)?;
            }
            Ok(link)
        });
    if built.is_ok() {
        forwarding::open(&settings.bridge, nft);
    } else {
        // What failed is told; what cannot be undone shows at the next try.
        let _ = dismantle(socket, settings, nft);
    }
    built
}

fn dismantle(socket: &mut Socket, settings: &NetworkSettings, nft: &Nft) -> Result<()> {
    let name = settings.bridge.as_str();
    socket.remove_link(name).while_doing(|| format!("remove the bridge {name}"))?;
    forwarding::close(&settings.bridge, nft);
    nft.apply(&nft::skeleton::remove(settings))
}

/// Removes the bridge and its rules if no container needs them. Returns whether they are gone.
pub fn remove_unused(settings: &NetworkSettings, nft: &Nft) -> Result<bool> {
    let leases = Leases::of(&settings.bridge);
    if !leases.directory().exists() {
        return Ok(true);
    }
    let _locked = leases.lock()?;
    if !leases.taken()?.is_empty() {
        return Ok(false);
    }
    let Some(made) = files::read_json::<Made>(&leases.settings_file())? else { return Ok(true) };
    let mut socket = Socket::open().while_doing(|| "look for the bridge".to_owned())?;
    let link = socket.link(made.settings.bridge.as_str()).while_doing(|| "look for the bridge".to_owned())?;
    if link.is_some_and(|link| link.index == made.index) {
        dismantle(&mut socket, &made.settings, nft)?;
    }
    names::forget_all(&leases)?;
    // Last, so that a crash before it is no reason to leave anything.
    files::remove(&leases.settings_file())?;
    Ok(true)
}

/// Makes the tables of a bridge again if they are gone, without the rules of single containers. Returns whether they were.
pub(crate) fn restore_tables(settings: &NetworkSettings, nft: &Nft) -> Result<bool> {
    let list = nft.list(&["list", "tables"])?;
    let tables = list["nftables"].as_array().into_iter().flatten().filter_map(|item| item.get("table"));
    if tables.filter(|table| table["name"] == settings.bridge.as_str()).count() == 2 {
        return Ok(false);
    }
    tracing::warn!(
        bridge = %settings.bridge,
        "the rules of the bridge were gone and are made again; a worker that serves makes those of its containers again"
    );
    nft.apply(&nft::skeleton::create(&effective(settings)))?;
    Ok(true)
}

/// Whether containers can be given a bridge here; else what is missing.
pub fn is_usable() -> Result<()> {
    nft::program()?;
    Socket::open().while_doing(|| "talk to the kernel about interfaces".to_owned())?;
    let rights = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = rights.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0);
    /// `CAP_NET_ADMIN` of linux/capability.h.
    const NET_ADMIN: u64 = 1 << 12;
    /// `CAP_SYS_ADMIN`, for namespaces.
    const SYS_ADMIN: u64 = 1 << 21;
    if effective & NET_ADMIN == 0 || effective & SYS_ADMIN == 0 {
        let text = "the worker may not set up networks: run it as root with CAP_NET_ADMIN and CAP_SYS_ADMIN";
        return Err(Error::new(ErrorKind::Unavailable, text));
    }
    Ok(())
}

/// The Ethernet address that belongs to an IPv4 address: it is as unique as that is.
pub(crate) fn mac_of(address: std::net::Ipv4Addr) -> MacAddress {
    let [a, b, c, d] = address.octets();
    MacAddress([0x02, 0xb9, a, b, c, d])
}

/// The MTU of the interface that most of the world is behind.
fn uplink_mtu(socket: &mut Socket) -> Option<u32> {
    let routes = socket.routes().ok()?;
    let uplink = routes.iter().find(|route| route.prefix == 0 && route.gateway.is_some())?.link;
    let links = socket.links().ok()?;
    links.iter().find(|link| link.index == uplink).map(|link| link.mtu).filter(|mtu| *mtu >= 1280)
}

/// A network that the host uses already would take its packets away from it.
fn refuse_overlap(socket: &mut Socket, settings: &NetworkSettings) -> Result<()> {
    let routes = socket.routes().while_doing(|| "look at the host's routes".to_owned())?;
    let taken = routes.iter().find_map(|route| match route.destination {
        IpAddr::V4(address) if route.prefix > 0 => {
            Ipv4Subnet::new(address, route.prefix).filter(|other| other.overlaps(settings.ipv4))
        }
        _ => None,
    });
    match taken {
        Some(other) => {
            let text = format!(
                "the IPv4 network {} of the bridge {} overlaps {other}, which the host uses: set another worker.network.ipv4",
                settings.ipv4, settings.bridge
            );
            Err(Error::new(ErrorKind::Taken, text))
        }
        None => Ok(()),
    }
}

/// Makes the host pass packets on. It does for both families, or the container's other family leads nowhere.
fn forward(settings: &NetworkSettings) -> Result<()> {
    switch_on(Path::new(IPV4_FORWARDING))?;
    if settings.ipv6.is_none() {
        return Ok(());
    }
    // A host may have turned IPv6 off for interfaces to come.
    set(&Path::new(IPV6).join(settings.bridge.as_str()).join("disable_ipv6"), "0")?;
    let all = Path::new(IPV6).join("all/forwarding");
    if read(&all)? == "1" {
        return Ok(());
    }
    // A host that forwards stops believing its routers, unless an interface says that it does all the same.
    for interface in fs::read_dir(IPV6).map_err(|e| Error::file("list", Path::new(IPV6), e))?.flatten() {
        let believes: PathBuf = interface.path().join("accept_ra");
        let is_real = !matches!(interface.file_name().to_str(), Some("all" | "default" | "lo"));
        if is_real && read(&believes).is_ok_and(|value| value == "1") {
            set(&believes, "2")?;
        }
    }
    switch_on(&all)
}

fn switch_on(path: &Path) -> Result<()> {
    set(path, "1")
}

fn set(path: &Path, value: &str) -> Result<()> {
    if read(path)? == value {
        return Ok(());
    }
    fs::write(path, value).map_err(|e| match e.kind() {
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            let text = format!(
                "{} is not {value} and cannot be changed from here: set it on the host",
                path.display()
            );
            Error::caused(ErrorKind::Unavailable, text, e)
        }
        _ => Error::file("write", path, e),
    })
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map(|text| text.trim_end().to_owned()).map_err(|e| Error::file("read", path, e))
}
