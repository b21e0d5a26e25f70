//! Names: of containers, and of hosts that a container may talk to.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::outside::Outside;
use super::{ARRIVES, addresses, answer, end_of, nc, nc_is_lost, server};
use crate::World;
use crate::world::Container;

/// A name server outside, at port 53 of both addresses of [`Outside`]; it ends when it is dropped.
struct NameServer {
    is_over: Arc<AtomicBool>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl NameServer {
    fn start(outside: &Outside, known: &[(&str, IpAddr)]) -> Result<Self> {
        let mut names: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        for (name, address) in known {
            names.entry((*name).to_owned()).or_default().push(*address);
        }
        let address = outside.four;
        let socket = outside.inside(move || Ok(UdpSocket::bind((address, 53))?))?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let started = Self { is_over: Arc::default(), asked: Arc::default() };
        let (is_over, asked) = (Arc::clone(&started.is_over), Arc::clone(&started.asked));
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !is_over.load(Ordering::Relaxed) {
                let Ok((count, client)) = socket.recv_from(&mut buffer) else { continue };
                let Some((name, reply)) = reply(&buffer[..count], &names) else { continue };
                asked.lock().unwrap_or_else(PoisonError::into_inner).push(name);
                let _ = socket.send_to(&reply, client);
            }
        });
        Ok(started)
    }

    fn was_asked(&self, name: &str) -> bool {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|asked| asked == name)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// The name that a question asks for, and where the question ends.
fn question(bytes: &[u8]) -> Option<(String, u8, usize)> {
    let (mut at, mut labels) = (12, Vec::new());
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(bytes.get(at..at + length)?).to_lowercase());
        at += length;
    }
    Some((labels.join("."), *bytes.get(at + 1)?, at + 4))
}

/// The answer of a server that knows these names: addresses of the family that was asked for, for 30 s.
fn reply(bytes: &[u8], names: &BTreeMap<String, Vec<IpAddr>>) -> Option<(String, Vec<u8>)> {
    const AAAA: u8 = 28;
    let (name, kind, end) = question(bytes)?;
    let known = names.get(&name);
    let found: Vec<IpAddr> =
        known.into_iter().flatten().copied().filter(|address| address.is_ipv6() == (kind == AAAA)).collect();
    let mut reply = bytes.get(..end)?.to_vec();
    // A response, recursion available; no such name where there is none.
    reply[2..4].copy_from_slice(&[0x81, if known.is_some() { 0x80 } else { 0x83 }]);
    reply[4..12].copy_from_slice(&[0, 1, 0, u8::try_from(found.len()).ok()?, 0, 0, 0, 0]);
    for address in found {
        reply.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 30]);
        match address {
            IpAddr::V4(address) => reply.extend([&[0, 4][..], &address.octets()].concat()),
            IpAddr::V6(address) => reply.extend([&[0, 16][..], &address.octets()].concat()),
        }
    }
    Some((name, reply))
}

/// What a container's programs find under a name; empty where nothing.
fn look_up(container: &Container<'_, '_>, name: &str) -> Result<Vec<IpAddr>> {
    let finished = container.exec(&[], &["nslookup", name]).finish()?;
    let out = finished.out();
    // The first address is the server's own.
    let lines = out.lines().skip_while(|line| !line.starts_with("Name:"));
    let found = lines.filter_map(|line| line.strip_prefix("Address:")?.trim().parse().ok());
    Ok(found.collect())
}

pub(super) fn finds(container: &Container<'_, '_>, name: &str, wanted: &[IpAddr]) -> Result<()> {
    let mut found = look_up(container, name)?;
    found.sort();
    let mut wanted = wanted.to_vec();
    wanted.sort();
    ensure!(found == wanted, "{name} is {found:?} instead of {wanted:?}");
    Ok(())
}

/// A question for the IPv4 address of a name, with its length before it, in the form of `printf`.
fn written(name: &str) -> String {
    let mut bytes = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    let all = [&[0, bytes.len() as u8][..], &bytes].concat();
    all.iter().map(|byte| format!("\\{byte:03o}")).collect()
}

pub(super) fn containers_find_each_other_by_name(world: &World<'_>) -> Result<()> {
    let outside = Outside::make()?;
    let names = NameServer::start(&outside, &[("far.example", outside.four), ("far.example", outside.six)])?;
    let alias = format!("db-{}", world.name().to_lowercase());
    let first = world.detach_ready(&["--network-alias", &alias], &server(80, "first"))?;
    let server = outside.four.to_string();
    let second = world.detach_ready(&["--dns", &server], "echo ready; sleep 1000")?;
    let gateway = end_of(&second)?["gateways"][0].as_str().context("no gateway")?.to_owned();
    let shown = second.exec(&[], &["cat", "/etc/resolv.conf"]).finish()?.ends_with(0)?.out();
    ensure!(shown.lines().next() == Some(format!("nameserver {gateway}").as_str()), "{shown}");

    let (four, six) = addresses(&first)?;
    for name in [&first.name, &alias, &first.name.to_uppercase(), &first.id[..12].to_owned()] {
        finds(&second, name, &[four, six])?;
    }
    ensure!(!names.was_asked(&first.name.to_lowercase()), "the name of a container was asked for elsewhere");
    finds(&second, "far.example", &[outside.four, outside.six])?;
    finds(&second, "nobody.example", &[])?;
    ensure!(names.was_asked("nobody.example"), "the name server that was named was not asked");
    // By TCP: the answer ends with the address.
    let octal = written(&alias);
    let script = format!("printf '{octal}' | nc -w 5 {gateway} 53 | tail -c 4 | od -An -tu1");
    let heard = second.exec(&[], &["sh", "-c", &script]).finish()?.ends_with(0)?.out();
    let heard: Vec<&str> = heard.split_whitespace().collect();
    ensure!(heard.join(".") == four.to_string(), "by TCP it is told {heard:?} instead of {four}");

    let renamed = format!("{}-new", first.name);
    world.worker(&["rename", first.id.as_str(), &renamed])?.ends_with(0)?;
    finds(&second, &renamed, &[four, six])?;
    finds(&second, &first.name, &[])?;
    world.worker(&["rm", "-f", first.id.as_str()])?.ends_with(0)?;
    finds(&second, &renamed, &[])?;
    finds(&second, &alias, &[])?;
    Ok(())
}

pub(super) fn a_container_reaches_the_hosts_that_it_may_by_name(world: &World<'_>) -> Result<()> {
    let (names, allowed, other) = (Outside::make()?, Outside::make()?, Outside::make()?);
    let neighbour = world.detach_ready(&[], &server(80, "neighbour"))?;
    let (neighbour_four, _) = addresses(&neighbour)?;
    let known = [
        ("good.example", allowed.four),
        ("good.example", allowed.six),
        ("other.example", other.four),
        // Names that lead home, to a neighbour, and to the host.
        ("a.evil.example", "127.0.0.1".parse()?),
        ("b.evil.example", neighbour_four),
        ("c.evil.example", other.host_four),
    ];
    let server_of_names = NameServer::start(&names, &known)?;
    let dns = names.four.to_string();
    let flags = ["--dns", &dns, "--allow-network", "good.example", "--allow-network", "*.evil.example"];
    let container = world.detach_ready(&flags, "echo ready; sleep 1000")?;
    let listening =
        |outside: &Outside, address: IpAddr| outside.inside(move || Ok(TcpListener::bind((address, 0))?));

    let first = listening(&allowed, allowed.four)?;
    // An address is nobody's before its name was asked for.
    nc_is_lost(&container, allowed.four, first.local_addr()?.port())?;
    drop(first);
    finds(&container, "good.example", &[allowed.four, allowed.six])?;
    for address in [allowed.four, allowed.six] {
        let listener = listening(&allowed, address)?;
        let port = listener.local_addr()?.port();
        let answering = answer(listener);
        let heard = nc(&container, address, port)?.ends_with(0)?;
        ensure!(heard.out().starts_with("you are"), "{heard}");
        answering.join().expect("the thread ends")?;
    }

    // What is not allowed is not even asked for, nor is a container told of.
    finds(&container, "other.example", &[])?;
    ensure!(!server_of_names.was_asked("other.example"), "a name that is not allowed went out");
    finds(&container, &neighbour.name, &[])?;
    let elsewhere = listening(&other, other.four)?;
    nc_is_lost(&container, other.four, elsewhere.local_addr()?.port())?;

    finds(&container, "b.evil.example", &[neighbour_four])?;
    nc_is_lost(&container, neighbour_four, 80)?;
    finds(&container, "c.evil.example", &[other.host_four])?;
    let of_host = TcpListener::bind((other.host_four, 0))?;
    nc_is_lost(&container, other.host_four, of_host.local_addr()?.port())?;

    // The name server itself is out of reach.
    let reached = container.exec(&[], &["nslookup", "good.example", &dns]).finish()?;
    ensure!(reached.code() != 0, "the name server was reached directly\n{reached}");
    Ok(())
}

pub(super) fn a_policy_counts_from_the_first_packet_after_it(world: &World<'_>) -> Result<()> {
    let outside = Outside::make()?;
    for policy in ["blocked", "other.example"] {
        let address = outside.four;
        let listener = outside.inside(move || Ok(TcpListener::bind((address, 0))?))?;
        let port = listener.local_addr()?.port();
        let script = format!(
            "while echo beat; do sleep 0.1; done | nc {address} {port} >/dev/null & echo ready; wait"
        );
        let container = world.detach_ready(&[], &script)?;
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(ARRIVES))?;
        let mut buffer = [0; 4096];
        for _ in 0..3 {
            ensure!(stream.read(&mut buffer)? > 0, "the connection ended by itself");
        }
        container.run(&["update", "--network-policy", policy])?.ends_with(0)?;
        // What had arrived by then is read; after that nothing comes.
        stream.set_nonblocking(true)?;
        while stream.read(&mut buffer).is_ok_and(|count| count > 0) {}
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(Duration::from_millis(200)))?;
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end {
            match stream.read(&mut buffer) {
                Ok(0) => anyhow::bail!("the connection was closed, which a packet says"),
                Ok(count) => anyhow::bail!("{count} bytes arrived after the policy {policy}"),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        container.run(&["rm", "-f"])?.ends_with(0)?;
    }
    Ok(())
}
