use beta9_sys::namespaces::{enter_new_network, on_own_thread};
use beta9_types::{NetworkPolicy, NetworkSettings, PublishedPort, Subnet};
use serde_json::Value;

use super::container::{NameServer, Subject};
use super::{Nft, Script, skeleton};

fn privileged() -> bool {
    let root = rustix::process::geteuid().is_root() && super::program().is_ok();
    if !root {
        eprintln!("skipped: needs root and nft");
    }
    root
}

const INTERFACE: &str = "b9h0123456789ab";

/// Does something with the rules of a new namespace that has those of a bridge.
fn with_rules(work: impl FnOnce(&Nft, &dyn Fn() -> String) + Send) {
    let settings = NetworkSettings::default();
    on_own_thread(None, || {
        enter_new_network()?;
        let nft = Nft::new(None);
        nft.apply(&skeleton::create(&settings)).unwrap();
        let listed = || {
            let list = nft.list(&["list", "ruleset"]).unwrap();
            let mut items = list["nftables"].as_array().unwrap().clone();
            // Numbers grow with every change.
            items.iter_mut().flat_map(|item| item.as_object_mut().unwrap().values_mut()).for_each(|item| {
                item.as_object_mut().unwrap().remove("handle");
            });
            items.iter().map(Value::to_string).collect::<Vec<_>>().join("\n")
        };
        work(&nft, &listed);
        Ok(())
    })
    .unwrap();
}

fn subject<'a>(
    addresses: &'a [std::net::IpAddr],
    neighbours: &'a [Subnet],
    policy: &'a NetworkPolicy,
    ports: &'a [PublishedPort],
) -> Subject<'a> {
    Subject {
        bridge: "b9_br0",
        interface: INTERFACE,
        id: "c1",
        mac: "02:b9:c0:a8:00:02".parse().unwrap(),
        addresses,
        neighbours,
        policy,
        ports,
        name_server: Some(NameServer { gateway: [192, 168, 0, 1].into(), port: 40053 }),
    }
}

fn text(script: &Script) -> String {
    script.0.iter().map(Value::to_string).collect::<Vec<_>>().join("\n")
}

fn ports() -> Vec<PublishedPort> {
    ["0.0.0.0", "::", "127.0.0.1", "192.0.2.1"]
        .map(|host| PublishedPort {
            host_ip: host.parse().unwrap(),
            host_port: 8080,
            container_port: 80,
            protocol: beta9_types::PortProtocol::Tcp,
        })
        .to_vec()
}

#[test]
fn every_policy_is_put_in_place_replaced_and_taken_away() {
    if !privileged() {
        return;
    }
    let addresses = ["192.168.0.2".parse().unwrap(), "fd00:abcd::2".parse().unwrap()];
    let neighbours = ["192.168.0.0/20".parse().unwrap(), "fd00:abcd::/64".parse().unwrap()];
    let allowed = ["10.0.0.0/8", "192.0.2.1", "fd00:1::/64", "::1"].map(|subnet| subnet.parse().unwrap());
    let networks = NetworkPolicy::Only(allowed.to_vec());
    let names = "10.0.0.0/8,example.com".parse().unwrap();
    let policies = [NetworkPolicy::Open, NetworkPolicy::Blocked, networks, names];
    with_rules(|nft, listed| {
        let before = listed();
        let ports = ports();
        for policy in &policies {
            let subject = subject(&addresses, &neighbours, policy, &ports);
            nft.apply(&subject.replace()).unwrap();
            let once = listed();
            nft.apply(&subject.replace()).unwrap();
            assert_eq!(listed(), once, "a second time changed the rules of {policy}");
            assert_ne!(once, before);
        }
        // Addresses of names come and go by themselves; those that an earlier policy let through are gone with it.
        let by_name = subject(&addresses, &neighbours, &policies[3], &ports);
        let through = [("192.0.2.7", 60), ("2001:db8::7", 3600)]
            .map(|(address, lasts)| (address.parse().unwrap(), std::time::Duration::from_secs(lasts)));
        for _ in 0..2 {
            nft.apply(&by_name.let_through(&through)).unwrap();
            assert!(listed().contains("192.0.2.7") && listed().contains("2001:db8::7"));
        }
        nft.apply(&by_name.replace()).unwrap();
        assert!(!listed().contains("192.0.2.7"));
        // Ports go and come while it runs.
        let (all, whole) = (subject(&addresses, &neighbours, &policies[3], &ports), listed());
        let none = subject(&addresses, &neighbours, &policies[3], &[]);
        nft.apply(&none.change_ports(&ports)).unwrap();
        assert!(!listed().contains("dnat\":{"), "{}", listed());
        nft.apply(&all.change_ports(&[])).unwrap();
        let sorted = |text: String| {
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(sorted(listed()), sorted(whole));
        // With what is there, and once more without.
        for _ in 0..2 {
            let subject = subject(&addresses, &neighbours, &policies[0], &ports);
            for script in subject.remove_ports() {
                nft.apply(&script).unwrap();
            }
            nft.apply(&subject.remove()).unwrap();
            assert_eq!(listed(), before);
        }
        nft.apply(&skeleton::remove(&NetworkSettings::default())).unwrap();
        assert!(!listed().contains("b9_br0"));
    });
}

#[test]
fn an_earlier_programs_bridge_gets_what_it_lacks() {
    if !privileged() {
        return;
    }
    let settings = NetworkSettings::default();
    with_rules(|nft, listed| {
        let whole = listed();
        // The rule for questions is the first of its chain.
        let list = nft.list(&["-a", "list", "chain", "inet", "b9_br0", "arrive"]).unwrap();
        let rules = list["nftables"].as_array().unwrap().iter().filter_map(|item| item.get("rule"));
        let handle = rules.map(|rule| rule["handle"].clone()).next().unwrap();
        let mut earlier = Script::new();
        let rule =
            serde_json::json!({"family": "inet", "table": "b9_br0", "chain": "arrive", "handle": handle});
        earlier.push("delete", "rule", rule);
        let map = serde_json::json!({"family": "inet", "table": "b9_br0", "name": "names"});
        earlier.push("delete", "map", map);
        nft.apply(&earlier).unwrap();
        assert_ne!(listed(), whole);
        nft.apply(&skeleton::upgrade(&settings)).unwrap();
        let sorted = |text: String| {
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(sorted(listed()), sorted(whole));
    });
}

#[test]
fn the_rules_of_a_container_are_these() {
    let addresses = ["192.168.0.2".parse().unwrap(), "fd00:abcd::2".parse().unwrap()];
    let neighbours = ["192.168.0.0/20".parse().unwrap(), "fd00:abcd::/64".parse().unwrap()];
    let policy = "10.0.0.0/8,*.example.com".parse().unwrap();
    insta::assert_snapshot!(text(&subject(&addresses, &neighbours, &policy, &ports()).replace()));
}

#[test]
fn what_nft_refuses_is_told_in_its_words() {
    if !privileged() {
        return;
    }
    let mut script = Script::new();
    script.push("add", "chain", serde_json::json!({"family": "inet", "table": "no_such_table", "name": "x"}));
    let error = on_own_thread(None, || {
        enter_new_network()?;
        Ok(Nft::new(None).apply(&script).unwrap_err().to_string())
    });
    let error = error.unwrap();
    assert!(error.starts_with("nft refused rules: ") && error.contains("No such file"), "{error}");
}
