//! What containers reach and by what they are reached. Real packets, between containers, this host, and an "outside" that is
//! a network namespace of the story's own.

mod names;
mod outside;
mod policies;
mod traffic;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use beta9_types::RuntimeKind;
use serde_json::Value;

use super::stories;
use crate::World;
use crate::world::Container;
use names::{
    a_container_reaches_the_hosts_that_it_may_by_name, a_policy_counts_from_the_first_packet_after_it,
    containers_find_each_other_by_name,
};
use outside::{Outside, command};
use policies::{
    a_blocked_container_reaches_nobody, a_container_reaches_only_what_it_is_allowed_to,
    a_firewall_that_drops_is_opened_and_closed_again, a_policy_changes_while_it_runs,
    a_rate_of_sending_changes_while_it_runs, a_rate_of_sending_is_kept_to,
    an_address_that_is_not_its_own_is_of_no_use, the_clouds_metadata_is_out_of_reach,
};

use traffic::{
    a_container_that_floods_hurts_nobody, a_rate_of_receiving_is_kept_to,
    datagrams_arrive_by_a_published_port, ports_come_and_go_while_it_runs,
    rules_that_somebody_throws_away_are_made_again, traffic_is_counted_in_metrics,
};

stories![
    Core a_container_has_addresses_of_both_families,
    Core a_container_reaches_its_host_and_the_outside,
    Full containers_reach_each_other,
    Core a_published_port_is_reached_from_everywhere,
    Full a_port_that_is_taken_is_told,
    Full a_container_without_a_network_has_loopback_alone,
    Full a_container_in_the_hosts_network_has_the_hosts_interfaces,
    Full a_namespace_of_somebody_else_is_joined_and_left_as_it_was,
    Full the_network_of_another_container_is_shared,
    Full a_container_in_a_namespace_of_its_own_knows_its_name,
    Full a_blocked_container_reaches_nobody,
    Full a_container_reaches_only_what_it_is_allowed_to,
    Full a_policy_changes_while_it_runs,
    Full the_clouds_metadata_is_out_of_reach,
    Full an_address_that_is_not_its_own_is_of_no_use,
    Full a_restarted_container_keeps_its_address_and_its_network,
    Full a_rate_of_sending_is_kept_to,
    Full a_rate_of_sending_changes_while_it_runs,
    Full many_containers_start_at_once,
    Full a_firewall_that_drops_is_opened_and_closed_again,
    Core containers_find_each_other_by_name,
    Full a_container_reaches_the_hosts_that_it_may_by_name,
    Full a_policy_counts_from_the_first_packet_after_it,
    Full ports_come_and_go_while_it_runs,
    Full datagrams_arrive_by_a_published_port,
    Full a_rate_of_receiving_is_kept_to,
    Full a_container_that_floods_hurts_nobody,
    Full rules_that_somebody_throws_away_are_made_again,
    Full traffic_is_counted_in_metrics,
];

/// How long a packet may take that arrives.
const ARRIVES: Duration = Duration::from_secs(20);
/// How long somebody may take to ask whose machine boots first.
const BOOTS: Duration = Duration::from_secs(120);
/// How many seconds a story waits for a packet that must not arrive.
const LOST: &str = "2";

fn end_of(container: &Container<'_, '_>) -> Result<Value> {
    let known = container.inspect()?;
    ensure!(!known["network_end"].is_null(), "it has no network: {known:#}");
    Ok(known["network_end"].clone())
}

/// The container's address of either family.
fn addresses(container: &Container<'_, '_>) -> Result<(IpAddr, IpAddr)> {
    let end = end_of(container)?;
    let mut found = Vec::new();
    for address in end["addresses"].as_array().context("no addresses")? {
        let text = address.as_str().and_then(|text| text.split('/').next()).context("no address")?;
        found.push(text.parse::<IpAddr>()?);
    }
    match found[..] {
        [four, six] if four.is_ipv4() && six.is_ipv6() => Ok((four, six)),
        _ => anyhow::bail!("expected an address of each family: {end:#}"),
    }
}

/// Answers one connection with the address that it came from.
fn answer(listener: TcpListener) -> std::thread::JoinHandle<Result<SocketAddr>> {
    std::thread::spawn(move || {
        listener.set_nonblocking(true)?;
        let end = Instant::now() + BOOTS;
        let (mut stream, from) = loop {
            match listener.accept() {
                Ok(accepted) => break accepted,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                    ensure!(Instant::now() < end, "nobody connected");
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(e) => return Err(e.into()),
            }
        };
        stream.set_nonblocking(false)?;
        stream.write_all(format!("you are {}\n", from.ip()).as_bytes())?;
        Ok(from)
    })
}

/// What a container says on a port of its own.
fn ask(to: SocketAddr) -> Result<String> {
    let mut stream =
        TcpStream::connect_timeout(&to, ARRIVES).with_context(|| format!("cannot connect to {to}"))?;
    stream.set_read_timeout(Some(ARRIVES))?;
    let mut text = String::new();
    stream.read_to_string(&mut text).with_context(|| format!("no answer from {to}"))?;
    Ok(text.trim_end().to_owned())
}

/// A script that answers each connection to a port with a word, and says `ready` when it does.
fn server(port: u16, word: &str) -> String {
    // Its own loopback tells whether it listens.
    format!(
        "echo 'echo {word}' > /tmp/answer; chmod +x /tmp/answer; nc -ll -p {port} -e sh /tmp/answer & \
         until nc -w 1 127.0.0.1 {port} </dev/null >/dev/null 2>&1; do sleep 0.1; done; echo ready; wait"
    )
}

/// `nc` in a container to an address: prints what it is sent.
fn nc(container: &Container<'_, '_>, to: IpAddr, port: u16) -> Result<crate::program::Finished> {
    let script = format!("nc -w {} {to} {port} </dev/null", ARRIVES.as_secs());
    container.exec(&[], &["sh", "-c", &script]).finish()
}

/// The same where nothing may come back.
fn nc_is_lost(container: &Container<'_, '_>, to: IpAddr, port: u16) -> Result<()> {
    let script = format!("nc -w {LOST} {to} {port} </dev/null");
    let finished = container.exec(&[], &["sh", "-c", &script]).finish()?;
    ensure!(finished.code() != 0 && finished.out().is_empty(), "{to}:{port} was reached\n{finished}");
    Ok(())
}

fn a_container_has_addresses_of_both_families(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&[], "echo ready; sleep 1000")?;
    let (four, six) = addresses(&container)?;
    let end = end_of(&container)?;
    let shown = container.exec(&[], &["ip", "addr", "show", "dev", "eth0"]).finish()?.ends_with(0)?;
    for word in [four.to_string(), six.to_string(), end["mac"].as_str().unwrap_or("-").to_owned()] {
        ensure!(shown.out().contains(&word), "{word} is missing\n{shown}");
    }
    let id = container.id.as_str();
    let namespace = format!("/run/netns/{id}");
    ensure!(end["namespace"] == namespace.as_str() && end["policy"] == "open", "{end:#}");
    let links = command("ip", &["-oneline", "link", "show"])?;
    let tap = format!("b9fc_{}", &id[id.len() - 8..]);
    let line =
        links.lines().find(|line| line.contains(&tap)).with_context(|| format!("no {tap} among {links}"))?;
    ensure!(line.contains("b9h") && line.contains("master b9_br0"), "not a port of the bridge: {line}");
    // A second one has others.
    let other = world.detach_ready(&[], "echo ready; sleep 1000")?;
    let (other_four, other_six) = addresses(&other)?;
    ensure!(four != other_four && six != other_six, "two containers have {four} or {six}");
    container.run(&["rm", "-f"])?.ends_with(0)?;
    let left = command("ip", &["-oneline", "link", "show"])?;
    ensure!(!left.contains(&tap), "{tap} is still there: {left}");
    ensure!(!std::path::Path::new(&namespace).exists(), "{namespace} is still there");
    Ok(())
}

fn a_container_reaches_its_host_and_the_outside(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&[], "echo ready; sleep 1000")?;
    let (four, six) = addresses(&container)?;
    let end = end_of(&container)?;
    for (own, gateway) in [four, six].into_iter().zip(end["gateways"].as_array().context("no gateways")?) {
        let gateway: IpAddr = gateway.as_str().context("no gateway")?.parse()?;
        let listener = TcpListener::bind((gateway, 0))?;
        let port = listener.local_addr()?.port();
        let answering = answer(listener);
        nc(&container, gateway, port)?.prints(&format!("you are {own}"))?;
        answering.join().expect("the thread ends")?;
    }
    let outside = Outside::make()?;
    for (address, host) in [(outside.four, outside.host_four), (outside.six, outside.host_six)] {
        let listener = outside.inside(move || Ok(TcpListener::bind((address, 0))?))?;
        let port = listener.local_addr()?.port();
        let answering = answer(listener);
        // Whoever is outside sees the host.
        nc(&container, address, port)?.prints(&format!("you are {host}"))?;
        answering.join().expect("the thread ends")?;
    }
    // UDP: a file of one block by TFTP.
    for address in [outside.four, outside.six] {
        let socket = outside.inside(move || Ok(UdpSocket::bind((address, 0))?))?;
        let port = socket.local_addr()?.port().to_string();
        let serving = std::thread::spawn(move || -> Result<()> {
            socket.set_read_timeout(Some(ARRIVES))?;
            let mut request = [0; 512];
            let (_, from) = socket.recv_from(&mut request)?;
            socket.send_to(b"\x00\x03\x00\x01by datagram", from)?;
            Ok(())
        });
        let host = address.to_string();
        let fetch = ["tftp", "-g", "-r", "file", "-l", "/tmp/file", host.as_str(), port.as_str()];
        container.exec(&[], &fetch).finish()?.ends_with(0)?;
        serving.join().expect("the thread ends")?;
        container.exec(&[], &["cat", "/tmp/file"]).finish()?.prints("by datagram")?;
    }
    Ok(())
}

fn containers_reach_each_other(world: &World<'_>) -> Result<()> {
    let first = world.detach_ready(&[], &server(80, "first"))?;
    let second = world.detach_ready(&[], "echo ready; sleep 1000")?;
    let (four, six) = addresses(&first)?;
    for to in [four, six] {
        nc(&second, to, 80)?.prints("first")?;
    }
    let stats = second.run(&["stats", "--no-stream", "--output", "json"])?.ends_with(0)?;
    let stats: Value = serde_json::from_slice(&stats.stdout)?;
    let stats = stats.get(0).unwrap_or(&stats);
    for count in ["network_received_bytes", "network_sent_bytes"] {
        ensure!(stats[count].as_u64().is_some_and(|bytes| bytes > 100), "{count} is too few in {stats:#}");
    }
    Ok(())
}

/// The host's port for a container's, of IPv4.
fn published(container: &Container<'_, '_>, port: u16) -> Result<u16> {
    let end = end_of(container)?;
    let ports = end["ports"].as_array().context("no ports")?;
    let found =
        ports.iter().find(|one| one["container_port"] == port).and_then(|one| one["host_port"].as_u64());
    Ok(u16::try_from(found.with_context(|| format!("port {port} is not published: {end:#}"))?)?)
}

fn a_published_port_is_reached_from_everywhere(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&["-p", "8080", "-p", "127.0.0.1::8080"], &server(8080, "served"))?;
    let port = published(&container, 8080)?;
    let outside = Outside::make()?;
    // The host's own processes, by any of its addresses.
    for host in ["127.0.0.1".parse()?, "::1".parse()?, outside.host_four, outside.host_six] {
        let heard = ask(SocketAddr::new(host, port))?;
        ensure!(heard == "served", "{host} answers {heard:?}");
    }
    // Others.
    for host in [outside.host_four, outside.host_six] {
        let heard = outside.inside(move || ask(SocketAddr::new(host, port)))?;
        ensure!(heard == "served", "from outside {host} answers {heard:?}");
    }
    // Another container, by the host's address.
    let other = world.detach_ready(&[], "echo ready; sleep 1000")?;
    nc(&other, outside.host_four, port)?.prints("served")?;
    // From outside nothing is reached that is not published.
    let (four, _) = addresses(&container)?;
    outside.route(four)?;
    let direct = outside.inside(move || {
        Ok(TcpStream::connect_timeout(&SocketAddr::new(four, 8080), Duration::from_secs(2)).is_ok())
    })?;
    ensure!(!direct, "an unpublished port of {four} was reached from outside");
    let shown = container.run(&["port"])?.ends_with(0)?.out();
    ensure!(shown.contains(&format!("8080/tcp -> 0.0.0.0:{port}")), "{shown}");
    container.run(&["rm", "-f"])?.ends_with(0)?;
    ensure!(ask(SocketAddr::new("127.0.0.1".parse()?, port)).is_err(), "port {port} is still served");
    Ok(())
}

fn a_port_that_is_taken_is_told(world: &World<'_>) -> Result<()> {
    let holder = TcpListener::bind("127.0.0.1:0")?;
    let port = holder.local_addr()?.port();
    let flag = format!("127.0.0.1:{port}:80");
    let refused = world.run(&["-p", &flag], &["true"])?.ends_with(125)?;
    refused.complains_of(&[&port.to_string(), "in use"])?;
    drop(holder);
    world.run(&["-p", &flag], &["true"])?.ends_with(0)?;
    world
        .run(&["--network", "none", "-p", "80"], &["true"])?
        .ends_with(125)?
        .complains_of(&["--network bridge"])?;
    Ok(())
}

fn a_container_without_a_network_has_loopback_alone(world: &World<'_>) -> Result<()> {
    let finished = world.run(
        &["--network", "none"],
        &["sh", "-c", "ls /sys/class/net 2>/dev/null || ip -o link | cut -d' ' -f2"],
    )?;
    let seen = finished.ends_with(0)?.out();
    let others: Vec<_> =
        seen.split_whitespace().map(|name| name.trim_end_matches(':')).filter(|name| *name != "lo").collect();
    // A kernel may have devices of its own making that are connected to nothing.
    ensure!(!others.contains(&"eth0"), "it has {others:?}");
    Ok(())
}

fn a_container_in_the_hosts_network_has_the_hosts_interfaces(world: &World<'_>) -> Result<()> {
    let host = ["--network", "host"];
    if world.runtime().is_microvm() {
        world
            .run(&host, &["true"])?
            .ends_with(125)?
            .complains_of(&["--network host", world.runtime().as_str()])?;
        return Ok(());
    }
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let answering = answer(listener);
    world
        .run(&host, &["sh", "-c", &format!("nc -w 20 127.0.0.1 {port} </dev/null")])?
        .prints("you are 127.0.0.1")?;
    answering.join().expect("the thread ends")?;
    Ok(())
}

fn a_namespace_of_somebody_else_is_joined_and_left_as_it_was(world: &World<'_>) -> Result<()> {
    let outside = Outside::make()?;
    let before = outside.state()?;
    let flag = format!("netns:{}", outside.path().display());
    let container = world.detach_ready(&["--network", &flag], &server(80, "inside"))?;
    for address in [outside.four, outside.six] {
        let heard = ask(SocketAddr::new(address, 80))?;
        ensure!(heard == "inside", "{address} answers {heard:?}");
    }
    container.run(&["rm", "-f"])?.ends_with(0)?;
    let after = outside.state()?;
    ensure!(before == after, "the namespace was\n{before}\nand is\n{after}");
    world
        .run(&["--network", "netns:/etc/passwd"], &["true"])?
        .ends_with(125)?
        .complains_of(&["not a network namespace"])?;
    Ok(())
}

fn the_network_of_another_container_is_shared(world: &World<'_>) -> Result<()> {
    let first = world.detach_ready(&[], &server(80, "first"))?;
    let flag = format!("container:{}", first.name);
    let joining = ["--network", flag.as_str()];
    let script = "nc -w 20 127.0.0.1 80 </dev/null";
    let finished = world.run(&joining, &["sh", "-c", script])?;
    if world.runtime() == RuntimeKind::Runc {
        finished.prints("first")?;
    } else {
        finished.ends_with(125)?.complains_of(&["--network container:", world.runtime().as_str()])?;
    }
    Ok(())
}

fn a_container_in_a_namespace_of_its_own_knows_its_name(world: &World<'_>) -> Result<()> {
    let flags = ["-h", "thishost", "--add-host", "db:192.0.2.7", "--dns", "192.0.2.53"];
    let container = world.detach_ready(&flags, "echo ready; sleep 1000")?;
    let (four, six) = addresses(&container)?;
    let hosts = container.exec(&[], &["cat", "/etc/hosts"]).finish()?.ends_with(0)?.out();
    for line in [format!("{four}\tthishost"), format!("{six}\tthishost"), "192.0.2.7\tdb".to_owned()] {
        ensure!(hosts.lines().any(|own| own == line), "{line:?} is not in\n{hosts}");
    }
    ensure!(!hosts.contains("127.0.0.1\tthishost"), "{hosts}");
    // Its name server is its gateway, which asks the one that was named.
    let gateway = end_of(&container)?["gateways"][0].as_str().context("no gateway")?.to_owned();
    container.exec(&[], &["cat", "/etc/resolv.conf"]).finish()?.prints(&format!("nameserver {gateway}"))?;
    Ok(())
}

fn a_restarted_container_keeps_its_address_and_its_network(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&["-p", "8080"], &server(8080, "served"))?;
    let (four, six) = addresses(&container)?;
    container.run(&["restart", "-t", "0"])?.ends_with(0)?;
    ensure!(addresses(&container)? == (four, six), "it has other addresses than {four} and {six}");
    let port = published(&container, 8080)?;
    let end = Instant::now() + ARRIVES;
    loop {
        match ask(SocketAddr::new("127.0.0.1".parse()?, port)) {
            Ok(heard) if heard == "served" => return Ok(()),
            other => ensure!(Instant::now() < end, "it is not reached any more: {other:?}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn many_containers_start_at_once(world: &World<'_>) -> Result<()> {
    let count = if world.runtime().is_microvm() { 3 } else { 8 };
    let script = "ip -o -4 addr show dev eth0 | tr -s ' ' | cut -d' ' -f4";
    let running: Vec<_> =
        (0..count).map(|_| world.invocation(&[], &["sh", "-c", script]).spawn()).collect::<Result<_>>()?;
    let mut seen = Vec::new();
    for one in running {
        let finished = one.finish()?.ends_with(0)?;
        ensure!(finished.out().contains("/20"), "no address\n{finished}");
        seen.push(finished.out());
    }
    Ok(())
}
