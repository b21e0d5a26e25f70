//! What every container of a bridge has in common.

use beta9_types::{NetworkSettings, Subnet};
use serde_json::{Value, json};

use super::Script;
use super::expression::{
    accept, any_of, back, connection, drop, field, has, is, is_not, look_up, masquerade, meta, redirect_by,
    subnet, together,
};

/// The metadata services of the large clouds, which give the machine's credentials to whoever asks from it.
const METADATA_V4: [&str; 2] = ["169.254.169.254", "169.254.170.2"];
const METADATA_V6: [&str; 1] = ["fd00:ec2::254"];

/// Where names are asked for.
const DNS: u16 = 53;

/// Grows whenever what is made here becomes something else, so that a bridge of an earlier program gets it, too.
pub(crate) const REVISION: u32 = 1;

/// Both tables, with what is in them replaced.
pub(crate) fn create(settings: &NetworkSettings) -> Script {
    let mut script = remove(settings);
    for family in ["inet", "bridge"] {
        script.push("add", "table", json!({"family": family, "name": settings.bridge.as_str()}));
    }
    inet(settings, &mut script);
    bridge(settings, &mut script);
    script
}

/// Adds to the tables of an earlier program's bridge what they lack, and leaves the rules of its containers alone.
pub(crate) fn upgrade(settings: &NetworkSettings) -> Script {
    let mut script = Script::new();
    let name = settings.bridge.as_str();
    Table { family: "inet", name, script: &mut script }.ports("names");
    script.push(
        "insert",
        "rule",
        json!({"family": "inet", "table": name, "chain": "arrive", "expr": questions(settings)}),
    );
    script
}

/// Questions about names go to the container's own name server.
fn questions(settings: &NetworkSettings) -> Vec<Value> {
    vec![
        is(meta("iifname"), settings.bridge.as_str()),
        is(field("ip", "daddr"), settings.gateway4().to_string()),
        is(meta("l4proto"), any_of(["tcp", "udp"])),
        is(field("th", "dport"), DNS),
        redirect_by(field("ip", "saddr"), "names"),
    ]
}

/// Takes both tables away. A table that is not there is made first, because one cannot be removed without being there.
pub(crate) fn remove(settings: &NetworkSettings) -> Script {
    let mut script = Script::new();
    for family in ["inet", "bridge"] {
        let table = json!({"family": family, "name": settings.bridge.as_str()});
        script.push("add", "table", table.clone());
        script.push("delete", "table", table);
    }
    script
}

struct Table<'a> {
    family: &'static str,
    name: &'a str,
    script: &'a mut Script,
}

impl Table<'_> {
    fn map(&mut self, name: &str, key: Value) {
        let map =
            json!({"family": self.family, "table": self.name, "name": name, "type": key, "map": "verdict"});
        self.script.push("add", "map", map);
    }

    /// A map from addresses to ports.
    fn ports(&mut self, name: &str) {
        let map = json!({
            "family": self.family, "table": self.name, "name": name, "type": "ipv4_addr", "map": "inet_service",
        });
        self.script.push("add", "map", map);
    }

    fn hook(&mut self, name: &str, kind: &str, hook: &str, priority: i32) {
        self.script.push(
            "add",
            "chain",
            json!({
                "family": self.family, "table": self.name, "name": name,
                "type": kind, "hook": hook, "prio": priority, "policy": "accept",
            }),
        );
    }

    fn rule(&mut self, chain: &str, expressions: impl Into<Vec<Value>>) {
        let expressions: Vec<Value> = expressions.into();
        self.script.push(
            "add",
            "rule",
            json!({"family": self.family, "table": self.name, "chain": chain, "expr": expressions}),
        );
    }
}

fn inet(settings: &NetworkSettings, script: &mut Script) {
    let name = settings.bridge.as_str();
    let mut table = Table { family: "inet", name, script };
    let (l4, port) = (meta("l4proto"), field("th", "dport"));
    table.map("policy4", json!("ipv4_addr"));
    table.map("policy6", json!("ipv6_addr"));
    table.map("publish", json!(["inet_proto", "inet_service"]));
    table.map("publish4", json!(["ipv4_addr", "inet_proto", "inet_service"]));
    table.map("publish6", json!(["ipv6_addr", "inet_proto", "inet_service"]));

    table.ports("names");

    table.hook("arrive", "nat", "prerouting", -100);
    table.rule("arrive", questions(settings));
    // Containers reach published ports by the host's own listener, as its processes do.
    table.rule("arrive", [is(meta("iifname"), name), back()]);
    let kind = json!({"fib": {"result": "type", "flags": ["daddr"]}});
    table.rule("arrive", [is_not(kind, "local"), back()]);
    for (protocol, map) in [("ip", "publish4"), ("ip6", "publish6")] {
        let key = together(&[field(protocol, "daddr"), l4.clone(), port.clone()]);
        table.rule("arrive", [look_up(key, map)]);
    }
    table.rule("arrive", [look_up(together(&[l4, port]), "publish")]);

    table.hook("leave", "nat", "postrouting", 100);
    let outside = || is_not(meta("oifname"), name);
    let own = [Some(Subnet::V4(settings.ipv4)), settings.ipv6.map(Subnet::V6)];
    for own in own.into_iter().flatten() {
        let protocol = protocol_of(own);
        table.rule("leave", [is(field(protocol, "saddr"), subnet(own)), outside(), masquerade()]);
    }

    // To the host itself.
    table.hook("enter", "filter", "input", 0);
    table.rule("enter", [is_not(meta("iifname"), name), accept()]);
    restrict(settings, &mut table, "enter");
    // Through the host.
    table.hook("pass", "filter", "forward", 0);
    let (inward, outward) = (|| is(meta("oifname"), name), || is(meta("iifname"), name));
    table.rule("pass", [inward(), has(connection("state"), json!(["established", "related"])), accept()]);
    table.rule("pass", [is_not(meta("oifname"), name), is_not(meta("iifname"), name), accept()]);
    // From outside only what is published.
    table.rule("pass", [is_not(meta("iifname"), name), has(connection("status"), "dnat"), accept()]);
    table.rule("pass", [is_not(meta("iifname"), name), drop()]);
    restrict(settings, &mut table, "pass");
    table.rule("pass", [outward(), accept()]);
}

/// What no container may reach, and what single ones may not.
fn restrict(settings: &NetworkSettings, table: &mut Table<'_>, chain: &str) {
    if !settings.allow_metadata {
        table.rule(chain, [is(field("ip", "daddr"), any_of(METADATA_V4)), drop()]);
        table.rule(chain, [is(field("ip6", "daddr"), any_of(METADATA_V6)), drop()]);
    }
    table.rule(chain, [look_up(field("ip", "saddr"), "policy4")]);
    table.rule(chain, [look_up(field("ip6", "saddr"), "policy6")]);
}

fn bridge(settings: &NetworkSettings, script: &mut Script) {
    let mut table = Table { family: "bridge", name: settings.bridge.as_str(), script };
    table.map("from", json!("ifname"));
    table.map("to", json!("ifname"));
    // Before everything else that looks at frames.
    table.hook("prerouting", "filter", "prerouting", -300);
    table.rule("prerouting", [look_up(meta("iifname"), "from")]);
    table.hook("postrouting", "filter", "postrouting", -300);
    table.rule("postrouting", [look_up(meta("oifname"), "to")]);
}

/// The word for a network's protocol.
pub(crate) fn protocol_of(subnet: Subnet) -> &'static str {
    match subnet {
        Subnet::V4(_) => "ip",
        Subnet::V6(_) => "ip6",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_of_a_bridge_are_these() {
        let text: Vec<String> = create(&NetworkSettings::default()).0.iter().map(Value::to_string).collect();
        insta::assert_snapshot!(text.join("\n"));
    }
}
