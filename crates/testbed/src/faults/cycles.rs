//! Networks that come and go many times: nothing of them may be left, however many there are at once.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::at;
use crate::Site;
use crate::program::Invocation;
use crate::site::images;

/// Starts and stops one after the other.
const CYCLES: usize = 200;
/// Starts at once.
const AT_ONCE: usize = 50;

/// A bridge of the fault's own, so that what is counted is its alone.
struct Bridge {
    name: String,
}

/// What there is of a bridge's containers.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    links: usize,
    rules: usize,
    namespaces: usize,
    leases: usize,
    names: usize,
}

fn output(program: &str, args: &[&str]) -> Result<String> {
    let output =
        Command::new(program).args(args).output().with_context(|| format!("cannot run {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn entries(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

impl Bridge {
    fn state(&self) -> PathBuf {
        Path::new("/run/beta9/network").join(&self.name)
    }

    /// Chains, sets, rules and elements of its tables.
    fn rules(&self) -> Result<usize> {
        let mut count = 0;
        for family in ["inet", "bridge"] {
            count += output("nft", &["list", "table", family, &self.name])?.lines().count();
        }
        Ok(count)
    }

    /// `known` are the containers of the fault.
    fn count(&self, known: &BTreeSet<String>) -> Result<Counts> {
        let names = self.state().join("names");
        let named = |worker: &String| entries(&names.join(worker)).len();
        Ok(Counts {
            links: output("ip", &["-oneline", "link", "show", "master", &self.name])?.lines().count(),
            rules: self.rules()?,
            namespaces: entries(Path::new("/run/netns")).intersection(known).count(),
            leases: entries(&self.state().join("leases")).len(),
            names: entries(&names).iter().map(named).sum(),
        })
    }
}

/// Every command does its own work, without a worker: so each is somebody else. On runc, which starts most of them in a time.
pub(super) fn leave_nothing() -> Result<()> {
    at(Site::prepare()?, |site| {
        let process = std::process::id();
        let bridge = Bridge { name: format!("b9y{process}") };
        let (high, low) = (process / 256 % 64, process % 256);
        let config = site.files().join("cycles.yaml");
        let network = format!(
            "  network:\n    bridge: {}\n    ipv4: 10.{}.{low}.0/24\n    ipv6: fd00:b9:{process:x}::/64\n",
            bridge.name,
            128 + high
        );
        std::fs::write(&config, std::fs::read_to_string(site.config())? + &network)?;
        let root = site.files().join("root");
        let worker = |words: &[&str]| {
            let (root, config) = (root.to_string_lossy(), config.to_string_lossy());
            let fixed = ["--root", &root, "--config", &config];
            Invocation::new(site.program(), [&fixed, words].concat()).env("PATH", site.path())
        };
        let image = images().join("busybox");
        worker(&["image", "import", "-t", "busybox", &image.to_string_lossy()]).finish()?.ends_with(0)?;
        let script = "ip -o -4 addr show dev eth0 | tr -s ' ' | cut -d' ' -f4";
        let run = ["run", "--rm", "--runtime", "runc", "-p", "80", "busybox", "sh", "-c"];
        // The first makes the bridge, which stays.
        worker(&[&run[..], &["true"]].concat()).finish()?.ends_with(0)?;
        let empty = bridge.count(&BTreeSet::new())?;
        ensure!(empty == Counts { rules: empty.rules, ..Counts::default() }, "one leaves {empty:?}");

        let mut known = BTreeSet::new();
        let began = Instant::now();
        for _ in 0..CYCLES {
            let id =
                worker(&["create", "--runtime", "runc", "-p", "80", "busybox", "sh", "-c", "sleep 1000"]);
            let id = id.finish()?.ends_with(0)?.out();
            for words in [&["start", &id][..], &["rm", "-f", &id]] {
                worker(words).finish()?.ends_with(0)?;
            }
            known.insert(id);
        }
        let left = bridge.count(&known)?;
        println!("{CYCLES} starts and stops in {} s leave {left:?}", began.elapsed().as_secs());
        ensure!(left == empty, "{CYCLES} starts and stops leave {left:?} instead of {empty:?}");

        let began = Instant::now();
        let running: Vec<_> = (0..AT_ONCE)
            .map(|_| worker(&[&run[..], &[&format!("{script}; sleep 1")]].concat()).spawn())
            .collect::<Result<_>>()?;
        let mut addresses = BTreeSet::new();
        for one in running {
            addresses.insert(one.finish()?.ends_with(0)?.out());
        }
        // Those that overlapped had different ones, and one that is given back rests.
        ensure!(addresses.len() == AT_ONCE, "{AT_ONCE} containers had {addresses:?}");
        let left = bridge.count(&known)?;
        println!("{AT_ONCE} at once in {} ms leave {left:?}", began.elapsed().as_millis());
        ensure!(left == empty, "{AT_ONCE} starts at once leave {left:?} instead of {empty:?}");
        // A worker that ends takes the bridge away.
        let serving = worker(&["serve"]).spawn()?;
        serving.stderr_shows("worker is serving")?;
        serving.signal(rustix::process::Signal::TERM)?;
        serving.finish()?.ends_with(0)?;
        let links = output("ip", &["-oneline", "link", "show"])?;
        ensure!(!links.contains(&bridge.name), "the bridge is left: {links}");
        let _ = std::fs::remove_dir_all(bridge.state());
        Ok(())
    })
}
