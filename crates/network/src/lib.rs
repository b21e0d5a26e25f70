//! How containers reach each other, their host and the rest of the world, whatever isolates them.
//!
//! ```text
//!        host                                      the container's namespace, /run/netns/<id>
//!   b9_br0 (gateway) ──┬── b9h<hash> ═══════════════ eth0 ──────────▶ the processes of runc, gVisor's stack
//!      │               └── b9h… (altname b9fc_…)       └─ redirected ─ b9fc_<last 8> (TAP) ──▶ a VM's guest
//!      ▼ forwarded, masqueraded
//!   uplink
//! ```
//!
//! A container's end is set up in steps. Before the first one a [`Connection`] is written down that says what is going to
//! be there, so that whoever finds it can take everything away, whichever step was the last:
//!
//! ```text
//! ports reserved ─▶ address leased ─▶ written down ─▶ bridge ─▶ namespace ─▶ veth pair ─▶ addresses ─▶ rules ─▶ TAP
//!      └────────────── any failure, the container's end, or the next worker ──────▶ take_away: the same backwards
//! ```
//!
//! What this crate touches on the host: interfaces whose names start with `b9`, its own bridge, nft tables of the bridge's
//! name, files below `/run/beta9/network` and names in `/run/netns`, and the two switches that make a host forward packets.
//!
//! It trusts no container: on the host's end of each veth pair only frames pass that carry the container's own Ethernet and
//! IP addresses (`nft/container.rs`).

mod bridge;
mod connection;
mod error;
mod files;
mod forwarding;
mod joined;
mod lease;
mod names;
mod namespace;
mod nft;
mod ports;
mod proxy;
mod rates;
mod resolver;
mod tap;
mod watch;

pub use bridge::{is_usable, remove_unused};
pub use connection::{Connected, Connection, Endpoint, Host, Wanted};
pub use error::{Error, ErrorKind, Result};
pub use forwarding::{Dropping, dropping};
pub use joined::Joined;
pub use namespace::shows_host_settings;
pub use nft::Nft;
pub use ports::Reserved;
pub use proxy::Proxies;
pub use resolver::{Answering, Bound, Source};
pub use watch::{RulesWatch, restore_rules};
