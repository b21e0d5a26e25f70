//! Somewhere else: a network namespace with a cable to this host, of one story's own.

use std::fs;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, anyhow, ensure};
use beta9_sys::namespaces::{enter_network, on_own_thread};

use crate::World;
use crate::program::Invocation;
use crate::site::Site;

/// Those of this process so far.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A namespace in `/run/netns` and a veth pair to this one. Gone when it is dropped.
pub(super) struct Outside {
    name: String,
    link: String,
    /// Its own addresses.
    pub(super) four: IpAddr,
    pub(super) six: IpAddr,
    /// This host's on the cable.
    pub(super) host_four: IpAddr,
    pub(super) host_six: IpAddr,
}

/// Runs a program of the system; its stdout.
pub(super) fn command(program: &str, args: &[&str]) -> Result<String> {
    let output =
        Command::new(program).args(args).output().with_context(|| format!("cannot run {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {said}", args.join(" "));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

impl Outside {
    pub(super) fn make() -> Result<Self> {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        let name = format!("b9-out-{process}-{number}");
        let link = format!("o{process}x{number}");
        // 198.18.0.0/15 is for tests of networks (RFC 2544). Processes at the same time have other numbers.
        let place = (process.wrapping_mul(61).wrapping_add(number)) % 16_384;
        let (high, low) = (place / 64, place % 64 * 4);
        let four = |last: u32| format!("198.18.{high}.{}", low + last);
        let six = |last: u32| format!("fd00:b9:{place:x}::{last}");
        let outside = Self {
            four: four(2).parse()?,
            six: six(2).parse()?,
            host_four: four(1).parse()?,
            host_six: six(1).parse()?,
            name,
            link,
        };
        let (name, link) = (outside.name.as_str(), outside.link.as_str());
        command("ip", &["netns", "add", name])?;
        command("ip", &["link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name])?;
        command("ip", &["link", "set", link, "up"])?;
        command("ip", &["addr", "add", &format!("{}/30", four(1)), "dev", link])?;
        command("ip", &["addr", "add", &format!("{}/64", six(1)), "dev", link, "nodad"])?;
        let within = |args: &[&str]| command("ip", &[&["-n", name], args].concat());
        within(&["link", "set", "lo", "up"])?;
        within(&["link", "set", "eth0", "up"])?;
        within(&["addr", "add", &format!("{}/30", four(2)), "dev", "eth0"])?;
        within(&["addr", "add", &format!("{}/64", six(2)), "dev", "eth0", "nodad"])?;
        within(&["route", "add", "default", "via", &four(1)])?;
        within(&["route", "add", "default", "via", &six(1)])?;
        Ok(outside)
    }

    /// The name of this host's end of the cable.
    pub(super) fn link(&self) -> &str {
        &self.link
    }

    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Does something there.
    pub(super) fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let namespace = std::fs::File::open(self.path())?;
        let done = on_own_thread(None, || {
            enter_network(namespace.as_fd())?;
            Ok(work())
        });
        done.map_err(|e| anyhow!(e))?
    }

    /// An address more, which this host reaches.
    pub(super) fn add_address(&self, address: &str) -> Result<()> {
        command("ip", &["-n", &self.name, "addr", "add", address, "dev", "eth0"])?;
        command("ip", &["route", "add", address, "dev", &self.link]).map(drop)
    }

    /// The way to an address by this host, though nobody told of it.
    pub(super) fn route(&self, to: IpAddr) -> Result<()> {
        let host = self.host_four.to_string();
        command("ip", &["-n", &self.name, "route", "add", &to.to_string(), "via", &host]).map(drop)
    }

    /// What there is: interfaces with their addresses, routes, queueing disciplines.
    pub(super) fn state(&self) -> Result<String> {
        let links = command("ip", &["-n", &self.name, "-oneline", "address", "show"])?;
        // What follows the scope changes by itself.
        let plain = |line: &str| -> String {
            let words = line.split_ascii_whitespace();
            let words = words.take_while(|word| !matches!(*word, "tentative" | "nodad" | "\\"));
            words.collect::<Vec<_>>().join(" ")
        };
        let links: Vec<_> = links.lines().map(plain).collect();
        let mut routes = command("ip", &["-n", &self.name, "route", "show"])?;
        routes.push_str(&command("ip", &["-n", &self.name, "-6", "route", "show"])?);
        let disciplines =
            command("nsenter", &[&format!("--net={}", self.path().display()), "tc", "qdisc", "show"])?;
        Ok(format!("{}\n{routes}{disciplines}", links.join("\n")))
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // The other end, and what is routed to it, goes with it.
        let _ = command("ip", &["link", "del", &self.link]);
        let _ = command("ip", &["netns", "del", &self.name]);
    }
}

/// A worker whose host is such a namespace, with a bridge and an image of its own there.
pub(super) struct WorkerOutside<'a> {
    world: &'a World<'a>,
    net: String,
    /// The name of its bridge.
    pub(super) bridge: String,
    directory: PathBuf,
}

impl<'a> WorkerOutside<'a> {
    /// `letter` tells its bridge from those of other stories, as the networks do.
    pub(super) fn of(
        host: &Outside,
        world: &'a World<'a>,
        letter: &str,
        [ipv4, ipv6]: [&str; 2],
    ) -> Result<Self> {
        let (net, bridge) = (format!("--net={}", host.path().display()), host.link().replace('o', letter));
        let worker = Self { world, net, bridge, directory: world.directory()? };
        let text = fs::read_to_string(world.site().config())?;
        let bridge = &worker.bridge;
        let network = format!("  network:\n    bridge: {bridge}\n    ipv4: {ipv4}\n    ipv6: {ipv6}\n");
        fs::write(worker.directory.join("worker.yaml"), text + &network)?;
        let image = Site::requirements()?;
        let import = ["image", "import", "-t", "busybox", &image.to_string_lossy()];
        worker.command(&import).finish()?.ends_with(0)?;
        Ok(worker)
    }

    /// A command of the worker's.
    pub(super) fn command(&self, words: &[&str]) -> Invocation {
        let (root, config) = (self.directory.join("root"), self.directory.join("worker.yaml"));
        let (root, config) = (root.to_string_lossy(), config.to_string_lossy());
        let program = self.world.site().program().to_string_lossy();
        let all = [&[self.net.as_str(), &program, "--root", &root, "--config", &config], words].concat();
        Invocation::new("nsenter", all).env("PATH", self.world.site().path())
    }

    /// A program of the system, there; its stdout.
    pub(super) fn inside(&self, words: &[&str]) -> Result<String> {
        command("nsenter", &[&[self.net.as_str()], words].concat())
    }
}
