//! Whom containers may talk to, how fast, and what they cannot pretend.

use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::outside::{Outside, WorkerOutside};
use super::{ARRIVES, LOST, addresses, answer, ask, end_of, nc, nc_is_lost, published, server};
use crate::World;

pub(super) fn a_blocked_container_reaches_nobody(world: &World<'_>) -> Result<()> {
    let other = world.detach_ready(&[], &server(80, "other"))?;
    let container = world.detach_ready(&["--block-network", "-p", "8080"], &server(8080, "blocked"))?;
    let outside = Outside::make()?;
    let listener = outside.inside({
        let address = outside.four;
        move || Ok(TcpListener::bind((address, 0))?)
    })?;
    let end = end_of(&container)?;
    ensure!(end["policy"] == "blocked", "{end:#}");
    let gateway: IpAddr = end["gateways"][0].as_str().context("no gateway")?.parse()?;
    let of_host = TcpListener::bind((gateway, 0))?;
    nc_is_lost(&container, outside.four, listener.local_addr()?.port())?;
    nc_is_lost(&container, gateway, of_host.local_addr()?.port())?;
    nc_is_lost(&container, addresses(&other)?.0, 80)?;
    nc_is_lost(&container, addresses(&other)?.1, 80)?;
    // In neither direction.
    nc_is_lost(&other, addresses(&container)?.0, 8080)?;
    let port = published(&container, 8080)?;
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    ensure!(text.is_empty(), "a blocked container answers {text:?}");
    Ok(())
}

pub(super) fn a_container_reaches_only_what_it_is_allowed_to(world: &World<'_>) -> Result<()> {
    let (allowed, other) = (Outside::make()?, Outside::make()?);
    let neighbour = world.detach_ready(&[], &server(80, "neighbour"))?;
    let flags = [allowed.four.to_string(), format!("{}/128", allowed.six)];
    let flags = ["--allow-network", &flags[0], "--allow-network", &flags[1], "-p", "8080"];
    let container = world.detach_ready(&flags, &server(8080, "served"))?;
    for address in [allowed.four, allowed.six] {
        let listener = allowed.inside(move || Ok(TcpListener::bind((address, 0))?))?;
        let port = listener.local_addr()?.port();
        let answering = answer(listener);
        let heard = nc(&container, address, port)?.ends_with(0)?;
        ensure!(heard.out().starts_with("you are"), "{heard}");
        answering.join().expect("the thread ends")?;
    }
    for address in [other.four, other.six] {
        let listener = other.inside(move || Ok(TcpListener::bind((address, 0))?))?;
        nc_is_lost(&container, address, listener.local_addr()?.port())?;
    }
    let gateway: IpAddr = end_of(&container)?["gateways"][0].as_str().context("no gateway")?.parse()?;
    let of_host = TcpListener::bind((gateway, 0))?;
    nc_is_lost(&container, gateway, of_host.local_addr()?.port())?;
    let (four, six) = addresses(&neighbour)?;
    nc_is_lost(&container, four, 80)?;
    nc_is_lost(&container, six, 80)?;
    // Whoever asks it is answered: on the host, and from outside.
    let port = published(&container, 8080)?;
    ensure!(
        ask(SocketAddr::new("127.0.0.1".parse()?, port))? == "served",
        "its published port is not reached"
    );
    let host = other.host_four;
    let heard = other.inside(move || ask(SocketAddr::new(host, port)))?;
    ensure!(heard == "served", "from outside it answers {heard:?}");
    Ok(())
}

pub(super) fn a_policy_changes_while_it_runs(world: &World<'_>) -> Result<()> {
    let outside = Outside::make()?;
    let container = world.detach_ready(&[], "echo ready; sleep 1000")?;
    let reaches = |address: IpAddr| -> Result<()> {
        let listener = outside.inside(move || Ok(TcpListener::bind((address, 0))?))?;
        let port = listener.local_addr()?.port();
        let answering = answer(listener);
        let end = Instant::now() + ARRIVES;
        // A search for a neighbour that went wrong while nothing passed ends first.
        while let Err(error) = nc(&container, address, port)?.ends_with(0) {
            ensure!(Instant::now() < end, "{error:#}");
        }
        answering.join().expect("the thread ends").map(drop)
    };
    let is_lost = |address: IpAddr| -> Result<()> {
        let listener = outside.inside(move || Ok(TcpListener::bind((address, 0))?))?;
        nc_is_lost(&container, address, listener.local_addr()?.port())
    };
    let change = |policy: &str| container.run(&["update", "--network-policy", policy])?.ends_with(0);
    reaches(outside.four)?;
    change("blocked")?;
    is_lost(outside.four)?;
    is_lost(outside.six)?;
    change(&format!("{}/128,10.0.0.0/8", outside.six))?;
    ensure!(end_of(&container)?["policy"].as_str().is_some_and(|policy| policy.ends_with(",10.0.0.0/8")));
    reaches(outside.six)?;
    is_lost(outside.four)?;
    change("open")?;
    reaches(outside.four)?;
    Ok(())
}

pub(super) fn the_clouds_metadata_is_out_of_reach(world: &World<'_>) -> Result<()> {
    let outside = Outside::make()?;
    outside.add_address("169.254.169.254/32")?;
    let metadata: IpAddr = "169.254.169.254".parse()?;
    let container = world.detach_ready(&[], "echo ready; sleep 1000")?;
    let listener = outside.inside(move || Ok(TcpListener::bind((metadata, 0))?))?;
    let port = listener.local_addr()?.port();
    let _answering = answer(listener);
    nc_is_lost(&container, metadata, port)?;
    // It is there, for the host.
    ensure!(
        ask(SocketAddr::new(metadata, port))?.starts_with("you are"),
        "the host does not reach it either"
    );
    Ok(())
}

pub(super) fn an_address_that_is_not_its_own_is_of_no_use(world: &World<'_>) -> Result<()> {
    let victim = world.detach_ready(&[], &server(80, "victim"))?;
    let (victim_four, victim_six) = addresses(&victim)?;
    let container = world.detach_ready(&["--cap-add", "NET_ADMIN"], "echo ready; sleep 1000")?;
    let gateway: IpAddr = end_of(&container)?["gateways"][0].as_str().context("no gateway")?.parse()?;
    let listener = TcpListener::bind((gateway, 0))?;
    let port = listener.local_addr()?.port();
    let (four, six) = addresses(&container)?;
    // With the victim's addresses it is nobody, and the victim stays who it is.
    let steal = format!(
        "ip addr del {four}/20 dev eth0; ip addr add {victim_four}/20 dev eth0; ip addr del {six}/64 dev eth0; \
         ip -6 addr add {victim_six}/64 dev eth0; ip route add default via {gateway}; \
         arping -c 2 -U -I eth0 {victim_four} >/dev/null 2>&1; nc -w {LOST} {gateway} {port} </dev/null"
    );
    let stolen = container.exec(&[], &["sh", "-c", &steal]).finish()?;
    ensure!(stolen.code() != 0 && stolen.out().is_empty(), "it is reached by another's address\n{stolen}");
    for to in [victim_four, victim_six] {
        let heard = ask(SocketAddr::new(to, 80))?;
        ensure!(heard == "victim", "{to} answers {heard:?}");
    }
    drop(listener);
    Ok(())
}

pub(super) fn a_rate_of_sending_is_kept_to(world: &World<'_>) -> Result<()> {
    const RATE: u64 = 400_000;
    const BYTES: usize = 1_600_000;
    let rate = RATE.to_string();
    let script = "dd if=/dev/zero of=/tmp/data bs=100k count=16 2>/dev/null; nc -l -p 80 < /tmp/data & echo ready; sleep 1000";
    let container = world.detach_ready(&["--egress-rate", &rate], script)?;
    let (four, _) = addresses(&container)?;
    let began = Instant::now();
    let mut stream = connect_soon(SocketAddr::new(four, 80))?;
    stream.set_read_timeout(Some(ARRIVES))?;
    stream.read_exact(&mut vec![0; BYTES])?;
    // From before the first byte, so that a busy machine makes it slower and never faster. The burst is 2 % of it.
    let measured = BYTES as f64 / began.elapsed().as_secs_f64();
    let ratio = measured / RATE as f64;
    ensure!((0.5..1.10).contains(&ratio), "{measured:.0} bytes per second instead of {RATE}");
    Ok(())
}

/// On the host's side, so that it is the same for every runtime.
pub(super) fn a_rate_of_sending_changes_while_it_runs(world: &World<'_>) -> Result<()> {
    const BYTES: usize = 1_600_000;
    let script = "dd if=/dev/zero of=/tmp/data bs=100k count=16 2>/dev/null
                  while true; do nc -l -p 80 < /tmp/data; done & echo ready; sleep 1000";
    let container = world.detach_ready(&["--egress-rate", "400000"], script)?;
    let (four, _) = addresses(&container)?;
    let rate = || -> Result<f64> {
        let began = Instant::now();
        let mut stream = connect_soon(SocketAddr::new(four, 80))?;
        stream.set_read_timeout(Some(ARRIVES))?;
        stream.read_exact(&mut vec![0; BYTES])?;
        Ok(BYTES as f64 / began.elapsed().as_secs_f64())
    };
    container.run(&["update", "--egress-rate", "200000"])?.prints(&container.name)?;
    let slower = rate()?;
    ensure!(slower < 220_000.0, "{slower:.0} bytes per second instead of 200000");
    container.run(&["update", "--egress-rate", "0"])?.prints(&container.name)?;
    let free = rate()?;
    ensure!(free > 2.0 * slower, "without a limit it sends {free:.0} bytes per second");
    container.run(&["update", "--egress-rate", "1"])?.ends_with(1)?.complains_of(&["egress rate"])?;
    Ok(())
}

pub(super) fn connect_soon(to: SocketAddr) -> Result<TcpStream> {
    let end = Instant::now() + ARRIVES;
    loop {
        match TcpStream::connect_timeout(&to, ARRIVES) {
            Ok(stream) => return Ok(stream),
            Err(error) => ensure!(Instant::now() < end, "{to} is not reached: {error}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A worker whose host is a namespace of the story's, with Docker's and ufw's chains in it. This machine is the outside.
pub(super) fn a_firewall_that_drops_is_opened_and_closed_again(world: &World<'_>) -> Result<()> {
    let host = Outside::make()?;
    let there = WorkerOutside::of(&host, world, "t", ["10.213.0.0/24", "fd00:b9:ffff::/64"])?;
    let worker = |words: &[&str]| there.command(words);
    let inside = |words: &[&str]| there.inside(words);
    let bridge = there.bridge.as_str();
    for (program, chain) in [("iptables", "DOCKER-USER"), ("ip6tables", "ufw6-user-forward")] {
        if std::process::Command::new(program).arg("--version").output().is_err() {
            println!("skipped: a_firewall_that_drops_is_opened_and_closed_again: it needs {program}");
            return Ok(());
        }
        inside(&[program, "-N", chain])?;
        inside(&[program, "-A", "FORWARD", "-j", chain])?;
        inside(&[program, "-P", "FORWARD", "DROP"])?;
    }
    let rules = || {
        Ok::<_, anyhow::Error>(inside(&["iptables", "-S", "DOCKER-USER"])? + &inside(&["ip6tables", "-S"])?)
    };
    let before = rules()?;
    let reaches = |address: IpAddr, own: IpAddr| -> Result<()> {
        let listener = TcpListener::bind((address, 0))?;
        let script = format!("nc -w 20 {address} {} </dev/null", listener.local_addr()?.port());
        let answering = answer(listener);
        let flags = ["run", "--rm", "--runtime", world.runtime().as_str(), "busybox", "sh", "-c", &script];
        worker(&flags).finish()?.prints(&format!("you are {own}"))?;
        answering.join().expect("the thread ends").map(drop)
    };
    reaches(host.host_four, host.four)?;
    reaches(host.host_six, host.six)?;
    let opened = rules()?;
    ensure!(opened.matches(&format!("--comment {bridge}")).count() == 4, "expected two pairs in\n{opened}");
    let ends = || -> Result<()> {
        let serving = worker(&["serve"]).spawn()?;
        serving.stderr_shows("worker is serving")?;
        serving.signal(rustix::process::Signal::TERM)?;
        serving.finish()?.ends_with(0).map(drop)
    };
    // A worker that ends leaves nothing where no container is left.
    ends()?;
    ensure!(rules()? == before, "the rules were\n{before}and are\n{}", rules()?);
    let left = inside(&["nft", "list", "tables"])? + &inside(&["ip", "-oneline", "link"])?;
    ensure!(!left.contains(bridge), "something of the bridge is left: {left}");
    // Somebody throws away all the rules that there are: the next container has its own all the same.
    reaches(host.host_four, host.four)?;
    inside(&["nft", "flush", "ruleset"])?;
    reaches(host.host_four, host.four)?;
    ends()?;
    let _ = std::fs::remove_dir_all(format!("/run/beta9/network/{bridge}"));
    Ok(())
}
