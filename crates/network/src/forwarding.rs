//! Other programs' firewalls that drop what a host passes on: Docker's, ufw's and others.
//!
//! Every base chain is asked about a packet, and one that drops it has the last word, whatever our own tables accept. Both
//! Docker and ufw have a chain that is meant for rules of others. A tagged pair for the bridge is put there when the bridge
//! is made, and taken away with it. What may pass is still decided by our own tables; nothing else of theirs is touched.

use std::process::Command;

use beta9_types::BridgeName;
use serde_json::Value;

use crate::error::Result;
use crate::nft::Nft;

/// The programs for both families, and the chains that are meant for others' rules.
const PROGRAMS: [(&str, [&str; 2]); 2] =
    [("iptables", ["DOCKER-USER", "ufw-user-forward"]), ("ip6tables", ["DOCKER-USER", "ufw6-user-forward"])];

/// The way out and the way back.
const DIRECTIONS: [&str; 2] = ["-i", "-o"];

/// Puts the pair into every place that there is for it. What cannot be done is told in the log: containers reach each other
/// and their host all the same.
pub(crate) fn open(bridge: &BridgeName, nft: &Nft) {
    each_place(bridge, nft, |nft, program, chain, rule| {
        if succeeds(nft, program, &[&["-C", chain], rule].concat()) {
            return;
        }
        if !succeeds(nft, program, &[&["-I", chain], rule].concat()) {
            tracing::warn!(program, chain, %bridge, "a firewall could not be asked to let containers' packets pass");
        }
    });
}

/// Takes the pair away wherever it is.
pub(crate) fn close(bridge: &BridgeName, nft: &Nft) {
    each_place(bridge, nft, |nft, program, chain, rule| {
        // Somebody may have put it there twice.
        for _ in 0..4 {
            if !succeeds(nft, program, &[&["-D", chain], rule].concat()) {
                return;
            }
        }
    });
}

fn each_place(bridge: &BridgeName, nft: &Nft, work: impl Fn(&Nft, &str, &str, &[&str])) {
    for (program, chains) in PROGRAMS {
        for chain in chains {
            // Most hosts have neither, and a host without the program has no such chain that it could be in.
            if !succeeds(nft, program, &["-n", "-L", chain]) {
                continue;
            }
            for direction in DIRECTIONS {
                let rule = [
                    direction,
                    bridge.as_str(),
                    "-m",
                    "comment",
                    "--comment",
                    bridge.as_str(),
                    "-j",
                    "ACCEPT",
                ];
                work(nft, program, chain, &rule);
            }
        }
    }
}

fn succeeds(nft: &Nft, program: &str, arguments: &[&str]) -> bool {
    let Some(path) = crate::nft::find(program) else { return false };
    let mut command = Command::new(path);
    // It waits for whoever changes rules at the moment.
    command.args(["-w", "5"]).args(arguments);
    nft.run_quietly(command).is_ok_and(|exit| exit.success())
}

/// A base chain of somebody else's that drops what no rule of its own accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropping {
    /// Its table's family and name, and its own name.
    pub chain: String,
    /// Whether our pair is in the place that is made for it.
    pub has_pair: bool,
}

/// Which chains drop what is passed on.
pub fn dropping(bridge: &BridgeName, nft: &Nft) -> Result<Vec<Dropping>> {
    let chains = nft.list(&["list", "chains"])?;
    let has_pair = std::cell::Cell::new(false);
    each_place(bridge, nft, |nft, program, chain, rule| {
        // A pair is put in place as one.
        has_pair.set(has_pair.get() || succeeds(nft, program, &[&["-C", chain], rule].concat()));
    });
    let has_pair = has_pair.get();
    Ok(droppers(&chains, bridge).into_iter().map(|chain| Dropping { chain, has_pair }).collect())
}

fn droppers(list: &Value, bridge: &BridgeName) -> Vec<String> {
    let chains = list["nftables"].as_array().into_iter().flatten().filter_map(|item| item.get("chain"));
    let drops = |chain: &&Value| {
        chain["hook"] == "forward" && chain["policy"] == "drop" && chain["table"] != bridge.as_str()
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    chains
        .filter(drops)
        .map(|chain| format!("{} {} {}", text(&chain["family"]), text(&chain["table"]), text(&chain["name"])))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_that_drop_are_told_from_others() {
        let list = serde_json::json!({"nftables": [
            {"metainfo": {}},
            {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": "drop"}},
            {"chain": {"family": "ip", "table": "filter", "name": "INPUT", "hook": "input", "policy": "drop"}},
            {"chain": {"family": "ip6", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": "accept"}},
            {"chain": {"family": "inet", "table": "b9_br0", "name": "pass", "hook": "forward", "policy": "drop"}},
            {"chain": {"family": "ip", "table": "filter", "name": "DOCKER-USER"}}
        ]});
        assert_eq!(droppers(&list, &BridgeName::default()), ["ip filter FORWARD"]);
    }
}
