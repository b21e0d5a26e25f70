//! One container's rules: whose frames it may send, whom it may talk to, and which of its ports arrive.
//!
//! Replies to what it asked pass by the state of the connection; so a policy that is made narrower also has to forget the
//! connections that there are.
//!
//! The addresses of names are in two sets of the container's own, which the kernel takes them out of when their time is over.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use beta9_types::{MacAddress, NetworkPolicy, PublishedPort, Subnet};
use serde_json::{Value, json};

use super::Script;
use super::expression::{
    accept, any_of, connection, drop, field, has, is, is_not, jump, meta, subnet, together,
};
use super::skeleton::protocol_of;

/// What the rules are about.
#[derive(Debug, Clone)]
pub(crate) struct Subject<'a> {
    /// The bridge, whose name the tables have.
    pub(crate) bridge: &'a str,
    /// The host's end of the container's veth pair.
    pub(crate) interface: &'a str,
    /// Whose it is, for a reader.
    pub(crate) id: &'a str,
    pub(crate) mac: MacAddress,
    pub(crate) addresses: &'a [IpAddr],
    /// The bridge's networks, in which other containers are.
    pub(crate) neighbours: &'a [Subnet],
    pub(crate) policy: &'a NetworkPolicy,
    pub(crate) ports: &'a [PublishedPort],
    pub(crate) name_server: Option<NameServer>,
}

/// Where a container's questions about names go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NameServer {
    pub(crate) gateway: Ipv4Addr,
    pub(crate) port: u16,
}

/// Addresses in a set of names' addresses.
const MAX_NAMED: u32 = 1024;

impl Subject<'_> {
    /// Frames from it, frames to it, packets that are routed, ports.
    fn chain(&self, purpose: char) -> String {
        format!("{purpose}_{}", self.interface)
    }

    /// The chains of each table that it always has.
    pub(crate) fn chains(&self) -> [String; 2] {
        [self.chain('f'), self.chain('p')]
    }

    /// Puts the rules in place, instead of those that there are.
    pub(crate) fn replace(&self) -> Script {
        let mut script = Script::new();
        let mut bridge = Part { family: "bridge", table: self.bridge, script: &mut script };
        let (from, to) = (self.chain('f'), self.chain('t'));
        bridge.chain(&from);
        self.own_addresses(&mut bridge, &from);
        self.element(&mut bridge, "from", json!(self.interface), &from);
        bridge.chain(&to);
        if *self.policy == NetworkPolicy::Blocked {
            bridge.rule(&to, [drop()]);
        }
        self.element(&mut bridge, "to", json!(self.interface), &to);

        let mut inet = Part { family: "inet", table: self.bridge, script: &mut script };
        let policy = self.chain('p');
        inet.chain(&policy);
        // What an earlier policy let through it does not let through any more.
        self.forget_named(&mut inet);
        if self.policy.names().next().is_some() {
            for (set, kind) in self.named() {
                inet.set(&set, kind);
            }
        }
        self.routed(&mut inet, &policy);
        for address in self.addresses {
            let map = if address.is_ipv4() { "policy4" } else { "policy6" };
            self.element(&mut inet, map, json!(address.to_string()), &policy);
        }
        if let Some(server) = self.name_server {
            for address in self.asking() {
                inet.port(&address, server.port);
            }
        }
        self.publish(&mut inet);
        script
    }

    /// Lets packets through to addresses, each for a while.
    pub(crate) fn let_through(&self, addresses: &[(IpAddr, Duration)]) -> Script {
        let mut script = Script::new();
        let mut inet = Part { family: "inet", table: self.bridge, script: &mut script };
        let [(four, _), (six, _)] = self.named();
        for (address, lasts) in addresses {
            let set = if address.is_ipv4() { &four } else { &six };
            let element = json!({"elem": {"val": address.to_string(), "timeout": lasts.as_secs()}});
            // One that is there keeps its time, so it is put there anew.
            inet.elements("add", set, &json!([element.clone()]));
            inet.elements("delete", set, &json!([address.to_string()]));
            inet.elements("add", set, &json!([element]));
        }
        script
    }

    /// The sets of names' addresses and the kinds of addresses in them.
    fn named(&self) -> [(String, &'static str); 2] {
        [(self.chain('4'), "ipv4_addr"), (self.chain('6'), "ipv6_addr")]
    }

    fn forget_named(&self, part: &mut Part<'_>) {
        for (set, kind) in self.named() {
            part.set(&set, kind);
            part.remove_set(&set);
        }
    }

    /// The addresses that questions come from.
    fn asking(&self) -> impl Iterator<Item = String> + '_ {
        self.addresses.iter().filter(|address| address.is_ipv4()).map(ToString::to_string)
    }

    /// Takes the rules away, those for ports excepted. What is not there is made first, so that it is no error.
    pub(crate) fn remove(&self) -> Script {
        let mut script = Script::new();
        let (from, to, policy) = (self.chain('f'), self.chain('t'), self.chain('p'));
        let mut bridge = Part { family: "bridge", table: self.bridge, script: &mut script };
        for (map, chain) in [("from", &from), ("to", &to)] {
            bridge.chain(chain);
            self.element(&mut bridge, map, json!(self.interface), chain);
            bridge.forget(map, json!(self.interface));
            bridge.remove_chain(chain);
        }
        let mut inet = Part { family: "inet", table: self.bridge, script: &mut script };
        inet.chain(&policy);
        for address in self.addresses {
            let map = if address.is_ipv4() { "policy4" } else { "policy6" };
            self.element(&mut inet, map, json!(address.to_string()), &policy);
            inet.forget(map, json!(address.to_string()));
        }
        if let Some(server) = self.name_server {
            for address in self.asking() {
                inet.port(&address, server.port);
                inet.forget("names", json!(address));
            }
        }
        self.forget_named(&mut inet);
        inet.remove_chain(&policy);
        script
    }

    /// Takes the rules for ports away, each by a script of its own: a port may be somebody else's by now, and then only its
    /// script fails.
    pub(crate) fn remove_ports(&self) -> Vec<Script> {
        let chain = self.chain('d');
        let whole = |work: &dyn Fn(&mut Part<'_>)| {
            let mut script = Script::new();
            work(&mut Part { family: "inet", table: self.bridge, script: &mut script });
            script
        };
        let mut scripts: Vec<Script> = self
            .published_keys()
            .into_iter()
            .map(|(map, key)| {
                whole(&|part| {
                    part.chain(&chain);
                    self.element(part, map, key.clone(), &chain);
                    part.forget(map, key.clone());
                })
            })
            .collect();
        if !scripts.is_empty() {
            scripts.push(whole(&|part| {
                part.chain(&chain);
                part.remove_chain(&chain);
            }));
        }
        scripts
    }

    /// A frame is accepted if it carries the container's own addresses, and whatever it claims about neighbours is about
    /// itself.
    fn own_addresses(&self, part: &mut Part<'_>, chain: &str) {
        let mac = self.mac.to_string();
        if *self.policy == NetworkPolicy::Blocked {
            part.rule(chain, [drop()]);
            return;
        }
        part.rule(chain, [is_not(field("ether", "saddr"), mac.as_str()), drop()]);
        for address in self.addresses.iter().filter(|address| address.is_ipv4()) {
            let address = address.to_string();
            part.rule(
                chain,
                [
                    is(field("arp", "htype"), 1),
                    is(field("arp", "ptype"), "ip"),
                    is(field("arp", "saddr ether"), mac.as_str()),
                    is(field("arp", "saddr ip"), address.as_str()),
                    accept(),
                ],
            );
            self.neighbours(part, chain, &address);
            part.rule(chain, [is(field("ip", "saddr"), address), accept()]);
        }
        // It is no router, and answers for nobody else.
        let claims = any_of(["nd-router-advert", "nd-redirect"]);
        part.rule(chain, [is(field("icmpv6", "type"), claims), drop()]);
        let own: Vec<IpAddr> = self
            .addresses
            .iter()
            .filter(|address| address.is_ipv6())
            .copied()
            .chain([IpAddr::V6(self.mac.link_local())])
            .collect();
        for address in &own {
            let IpAddr::V6(address) = address else { continue };
            // The target of an advertisement follows eight bytes of ICMPv6.
            let target = json!({"payload": {"base": "th", "offset": 64, "len": 128}});
            let bits = format!("0x{:032x}", address.to_bits());
            part.rule(chain, [is(field("icmpv6", "type"), "nd-neighbor-advert"), is(target, bits), accept()]);
        }
        part.rule(chain, [is(field("icmpv6", "type"), "nd-neighbor-advert"), drop()]);
        // Questions about neighbours are no traffic: they pass whatever the policy says.
        let asks = any_of(["nd-neighbor-solicit", "nd-router-solicit"]);
        let unspecified = IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED);
        let senders: Vec<String> = own.iter().chain([&unspecified]).map(ToString::to_string).collect();
        part.rule(
            chain,
            [is(field("icmpv6", "type"), asks), is(field("ip6", "saddr"), any_of(senders)), accept()],
        );
        for address in own {
            let address = address.to_string();
            self.neighbours6(part, chain, &address);
            part.rule(chain, [is(field("ip6", "saddr"), address), accept()]);
        }
        part.rule(chain, [drop()]);
    }

    /// Other containers are reached without being routed, so what a policy says of them is said here.
    fn neighbours(&self, part: &mut Part<'_>, chain: &str, own: &str) {
        self.unless_allowed(part, chain, own, "ip");
    }

    fn neighbours6(&self, part: &mut Part<'_>, chain: &str, own: &str) {
        self.unless_allowed(part, chain, own, "ip6");
    }

    fn unless_allowed(&self, part: &mut Part<'_>, chain: &str, own: &str, protocol: &str) {
        let NetworkPolicy::Only(_) = self.policy else { return };
        for neighbours in self.neighbours.iter().filter(|subnet| protocol_of(**subnet) == protocol) {
            let gateway = gateway_of(*neighbours).to_string();
            // The host's own address is routed, and judged there.
            let to = || field(protocol, "daddr");
            part.rule(chain, [is(field(protocol, "saddr"), own), is(to(), gateway), accept()]);
            for allowed in self.policy.networks().filter(|allowed| protocol_of(*allowed) == protocol) {
                part.rule(chain, [is(field(protocol, "saddr"), own), is(to(), subnet(allowed)), accept()]);
            }
            part.rule(chain, [is(to(), subnet(*neighbours)), drop()]);
        }
        // Whoever listens on the link, and neighbours by the addresses that they have on every link.
        let everybody = is(meta("pkttype"), any_of(["broadcast", "multicast"]));
        part.rule(chain, [is(field(protocol, "saddr"), own), everybody, drop()]);
        if protocol == "ip6" {
            part.rule(
                chain,
                [is(field("ip6", "daddr"), json!({"prefix": {"addr": "fe80::", "len": 10}})), drop()],
            );
        }
    }

    /// What is routed: to the host and beyond.
    fn routed(&self, part: &mut Part<'_>, chain: &str) {
        match self.policy {
            NetworkPolicy::Open => {}
            NetworkPolicy::Blocked => part.rule(chain, [drop()]),
            NetworkPolicy::Only(_) => {
                let replies = has(connection("state"), json!(["established", "related"]));
                part.rule(chain, [replies, is(json!({"ct": {"key": "direction"}}), "reply"), accept()]);
                // Questions about neighbours are answered by the host itself.
                let asks = any_of(["nd-neighbor-solicit", "nd-neighbor-advert", "nd-router-solicit"]);
                part.rule(chain, [is(field("icmpv6", "type"), asks), accept()]);
                if let Some(NameServer { gateway, port }) = self.name_server {
                    let to = is(field("ip", "daddr"), gateway.to_string());
                    let by = is(meta("l4proto"), any_of(["tcp", "udp"]));
                    part.rule(chain, [to, by, is(field("th", "dport"), port), accept()]);
                }
                for protocol in ["ip", "ip6"] {
                    for allowed in self.policy.networks().filter(|allowed| protocol_of(*allowed) == protocol)
                    {
                        part.rule(chain, [is(field(protocol, "daddr"), subnet(allowed)), accept()]);
                    }
                }
                if self.policy.names().next().is_some() {
                    self.routed_by_name(part, chain);
                }
                part.rule(chain, [drop()]);
            }
        }
    }

    /// What names lead to, and never the host itself, whatever they say.
    fn routed_by_name(&self, part: &mut Part<'_>, chain: &str) {
        let elsewhere = || is_not(json!({"fib": {"result": "type", "flags": ["daddr"]}}), "local");
        // A connection outlives the time for which its name was good.
        part.rule(chain, [has(connection("state"), json!(["established"])), elsewhere(), accept()]);
        for (protocol, (set, _)) in ["ip", "ip6"].into_iter().zip(self.named()) {
            part.rule(chain, [is(field(protocol, "daddr"), format!("@{set}")), elsewhere(), accept()]);
        }
    }

    /// Packets for published ports that arrive from outside go to the container without passing a process.
    fn publish(&self, part: &mut Part<'_>) {
        let keys = self.published_keys();
        if keys.is_empty() {
            return;
        }
        let chain = self.chain('d');
        part.chain(&chain);
        for port in self.ports.iter().filter(|port| !port.host_ip.is_loopback()) {
            let Some(to) = self.addresses.iter().find(|address| address.is_ipv4() == port.host_ip.is_ipv4())
            else {
                continue;
            };
            let (family, protocol) = (if to.is_ipv4() { "ip" } else { "ip6" }, port.protocol.as_str());
            let version = if to.is_ipv4() { "ipv4" } else { "ipv6" };
            let mut rule = vec![is(meta("nfproto"), version), is(field(protocol, "dport"), port.host_port)];
            if !port.host_ip.is_unspecified() {
                rule.push(is(field(family, "daddr"), port.host_ip.to_string()));
            }
            rule.push(
                json!({"dnat": {"family": family, "addr": to.to_string(), "port": port.container_port}}),
            );
            part.rule(&chain, rule);
        }
        for (map, key) in keys {
            self.element(part, map, key, &chain);
        }
    }

    /// Puts the rules for its ports in the place of those for the ports that it had.
    pub(crate) fn change_ports(&self, before: &[PublishedPort]) -> Script {
        let mut script = Script::new();
        let mut inet = Part { family: "inet", table: self.bridge, script: &mut script };
        let (chain, now) = (self.chain('d'), self.published_keys());
        inet.chain(&chain);
        self.publish(&mut inet);
        for (map, key) in keys_of(before).into_iter().filter(|key| !now.contains(key)) {
            self.element(&mut inet, map, key.clone(), &chain);
            inet.forget(map, key);
        }
        if now.is_empty() {
            inet.remove_chain(&chain);
        }
        script
    }

    /// The keys of the maps that lead to this container's ports.
    fn published_keys(&self) -> Vec<(&'static str, Value)> {
        keys_of(self.ports)
    }

    fn element(&self, part: &mut Part<'_>, map: &str, key: Value, chain: &str) {
        let key = json!({"elem": {"val": key, "comment": self.id}});
        let element = json!([[key, jump(chain)]]);
        let element = json!({"family": part.family, "table": part.table, "name": map, "elem": element});
        part.script.push("add", "element", element);
    }
}

fn keys_of(ports: &[PublishedPort]) -> Vec<(&'static str, Value)> {
    let mut keys = Vec::new();
    for port in ports.iter().filter(|port| !port.host_ip.is_loopback()) {
        let (protocol, number) = (json!(port.protocol.as_str()), json!(port.host_port));
        let entry = if port.host_ip.is_unspecified() {
            ("publish", together(&[protocol, number]))
        } else {
            let map = if port.host_ip.is_ipv4() { "publish4" } else { "publish6" };
            (map, together(&[json!(port.host_ip.to_string()), protocol, number]))
        };
        // One for every address is published for both families.
        if !keys.contains(&entry) {
            keys.push(entry);
        }
    }
    keys
}

/// The host's own address in a network of the bridge.
fn gateway_of(subnet: Subnet) -> IpAddr {
    use beta9_types::NetworkSettings;
    match subnet {
        Subnet::V4(subnet) => subnet.nth(NetworkSettings::GATEWAY).into(),
        Subnet::V6(subnet) => subnet.nth(NetworkSettings::GATEWAY).into(),
    }
}

struct Part<'a> {
    family: &'static str,
    table: &'a str,
    script: &'a mut Script,
}

impl Part<'_> {
    /// An empty chain of that name, whatever was in it.
    fn chain(&mut self, name: &str) {
        let chain = json!({"family": self.family, "table": self.table, "name": name});
        self.script.push("add", "chain", chain.clone());
        self.script.push("flush", "chain", chain);
    }

    fn remove_chain(&mut self, name: &str) {
        self.script.push(
            "delete",
            "chain",
            json!({"family": self.family, "table": self.table, "name": name}),
        );
    }

    fn forget(&mut self, map: &str, key: Value) {
        self.elements("delete", map, &json!([key]));
    }

    fn elements(&mut self, verb: &str, name: &str, elements: &Value) {
        let elements = json!({"family": self.family, "table": self.table, "name": name, "elem": elements});
        self.script.push(verb, "element", elements);
    }

    /// Says at which port questions from an address are answered.
    fn port(&mut self, from: &str, port: u16) {
        self.elements("add", "names", &json!([[from, port]]));
    }

    fn set(&mut self, name: &str, kind: &str) {
        let set = json!({
            "family": self.family, "table": self.table, "name": name, "type": kind,
            "flags": ["timeout"], "size": MAX_NAMED,
        });
        self.script.push("add", "set", set);
    }

    fn remove_set(&mut self, name: &str) {
        let set = json!({"family": self.family, "table": self.table, "name": name});
        self.script.push("delete", "set", set);
    }

    fn rule(&mut self, chain: &str, expressions: impl Into<Vec<Value>>) {
        let expressions: Vec<Value> = expressions.into();
        let rule = json!({"family": self.family, "table": self.table, "chain": chain, "expr": expressions});
        self.script.push("add", "rule", rule);
    }
}
