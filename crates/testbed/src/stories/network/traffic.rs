//! Ports that come and go, datagrams, rates, floods, and rules that somebody throws away.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::names::finds;
use super::outside::{Outside, WorkerOutside};
use super::policies::connect_soon;
use super::{ARRIVES, addresses, answer, ask, end_of, nc, published, server};
use crate::World;
use crate::program::Invocation;
use crate::site::Site;

/// The host's own Perl in a container, by its own loader: busybox has nothing that takes datagrams.
const PERL: &str = "/host/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 --library-path /host/lib/x86_64-linux-gnu /host/bin/perl \
                    -I/host/lib/x86_64-linux-gnu/perl-base";
const HOST: [&str; 2] = ["-v", "/usr:/host:ro"];

/// Whether this host has it; else that is said.
fn has_perl(story: &str) -> bool {
    let needed = [
        "/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
        "/usr/lib/x86_64-linux-gnu/perl-base/Socket.pm",
        "/usr/bin/perl",
    ];
    let missing = needed.into_iter().find(|path| !Path::new(path).exists());
    if let Some(path) = missing {
        println!("skipped: {story}: it needs {path}");
    }
    missing.is_none()
}

/// Whether a port answers soon.
fn is_served(address: IpAddr, port: u16) -> bool {
    ask(SocketAddr::new(address, port)).is_ok_and(|heard| heard == "served")
}

pub(super) fn ports_come_and_go_while_it_runs(world: &World<'_>) -> Result<()> {
    let outside = Outside::make()?;
    let container = world.detach_ready(&["-p", "9000"], &server(8080, "served"))?;
    let update = |words: &[&str]| container.run(&[&["update"], words].concat());
    update(&["--publish-add", "8080"])?.ends_with(0)?;
    let (loopback, port) = (IpAddr::from([127, 0, 0, 1]), published(&container, 8080)?);
    let host = outside.host_four;
    let from_outside = || outside.inside(move || Ok(is_served(host, port)));
    ensure!(is_served(loopback, port) && from_outside()?, "port {port} was added and is not served");
    // A port that somebody has is told, and nothing changes.
    let holder = TcpListener::bind("0.0.0.0:0")?;
    let taken = format!("{}:8081", holder.local_addr()?.port());
    update(&["--publish-add", &taken, "--publish-rm", "8080"])?.ends_with(1)?.complains_of(&["in use"])?;
    ensure!(is_served(loopback, port) && from_outside()?, "a change that failed changed something");
    update(&["--publish-rm", "443"])?.ends_with(1)?.complains_of(&["443/tcp", "not published"])?;

    update(&["--publish-rm", "8080"])?.ends_with(0)?;
    ensure!(!is_served(loopback, port) && !from_outside()?, "port {port} was taken away and is served");
    let again = TcpListener::bind(("0.0.0.0", port));
    ensure!(again.is_ok(), "port {port} was not given back: {again:?}");
    drop(again);
    ensure!(published(&container, 9000).is_ok(), "another port is gone, too");
    // What was changed counts for the next start, too.
    update(&["--publish-add", &format!("{port}:8080")])?.ends_with(0)?;
    container.run(&["restart", "-t", "0"])?.ends_with(0)?;
    let end = Instant::now() + ARRIVES;
    while !is_served(loopback, port) || !from_outside()? {
        ensure!(Instant::now() < end, "port {port} is not served after a restart");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

pub(super) fn datagrams_arrive_by_a_published_port(world: &World<'_>) -> Result<()> {
    if !has_perl("datagrams_arrive_by_a_published_port") {
        return Ok(());
    }
    let outside = Outside::make()?;
    let script = format!(
        "exec {PERL} -MSocket -e 'socket(S,AF_INET,SOCK_DGRAM,0); bind(S,sockaddr_in(9000,INADDR_ANY)) or die; \
         syswrite(STDOUT,\"ready\\n\"); while ($f=recv(S,$d,2000,0)) {{ send(S,\"heard $d\",0,$f) }}'"
    );
    let flags = [&HOST[..], &["-p", "9000/udp"]].concat();
    let container = world.detach_ready(&flags, &script)?;
    let port = published(&container, 9000)?;
    let exchange = move |host: IpAddr, word: &str| -> Result<()> {
        let socket = UdpSocket::bind(if host.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
        socket.connect((host, port))?;
        socket.set_read_timeout(Some(ARRIVES))?;
        socket.send(word.as_bytes())?;
        let mut buffer = [0; 100];
        let count = socket.recv(&mut buffer)?;
        ensure!(buffer[..count] == *format!("heard {word}").as_bytes(), "{host} answers something else");
        Ok(())
    };
    let host = outside.host_four;
    outside.inside(move || exchange(host, "from outside"))?;
    exchange("127.0.0.1".parse()?, "from loopback")?;
    exchange(host, "from the host")?;
    Ok(())
}

pub(super) fn a_rate_of_receiving_is_kept_to(world: &World<'_>) -> Result<()> {
    const RATE: u64 = 400_000;
    const BYTES: usize = 1_600_000;
    let rate = RATE.to_string();
    // It says how much it has read when it has read all.
    let script = "echo 'wc -c' > /tmp/sink; nc -ll -p 80 -e sh /tmp/sink & echo ready; wait";
    let container = world.detach_ready(&["--ingress-rate", &rate], script)?;
    let (four, _) = addresses(&container)?;
    let mut stream = connect_soon(SocketAddr::new(four, 80))?;
    let began = Instant::now();
    stream.write_all(&vec![0; BYTES])?;
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.set_read_timeout(Some(ARRIVES))?;
    let mut counted = String::new();
    stream.read_to_string(&mut counted)?;
    let measured = BYTES as f64 / began.elapsed().as_secs_f64();
    ensure!(counted.trim() == BYTES.to_string(), "{counted:?} bytes arrived instead of {BYTES}");
    // A busy machine makes it slower and never faster.
    let ratio = measured / RATE as f64;
    println!("{}: {:.1} % of the rate of receiving", world.runtime(), ratio * 100.0);
    ensure!((0.8..1.10).contains(&ratio), "{measured:.0} bytes per second instead of {RATE}");
    Ok(())
}

pub(super) fn a_container_that_floods_hurts_nobody(world: &World<'_>) -> Result<()> {
    if !has_perl("a_container_that_floods_hurts_nobody") {
        return Ok(());
    }
    let victim = world.detach_ready(&[], &server(80, "victim"))?;
    let flooding = world.detach_ready(&HOST, "echo ready; sleep 1000")?;
    let (victim_four, victim_six) = addresses(&victim)?;
    let gateway = end_of(&flooding)?["gateways"][0].as_str().unwrap_or_default().to_owned();
    // Questions about names that are none, to its name server; anything to the victim; both as fast as it can.
    let script = format!(
        "exec {PERL} -MSocket -e 'socket(S,AF_INET,SOCK_DGRAM,0); $n=sockaddr_in(53,inet_aton(\"{gateway}\")); \
         $v=sockaddr_in(80,inet_aton(\"{victim_four}\")); $|=1; print \"flooding\\n\"; \
         $q=pack(\"n6\",7,256,1,0,0,0).\"\\x03abc\\x00\\x00\\x01\\x00\\x01\"; $e=time+8; \
         $SIG{{ALRM}}=sub {{ exit }}; alarm 12; \
         while (time<$e) {{ for (1..200) {{ last if time>=$e; send(S,$q,0,$n); send(S,\"x\"x1000,0,$v) }} }}'"
    );
    let flood = flooding.exec(&[], &["sh", "-c", &script]).spawn()?;
    flood.stdout_shows("flooding")?;
    for to in [victim_four, victim_six] {
        let heard = ask(SocketAddr::new(to, 80))?;
        ensure!(heard == "victim", "{to} answers {heard:?}");
    }
    // The victim's own names are found meanwhile, and its host.
    finds(&victim, &flooding.name, &{
        let (four, six) = addresses(&flooding)?;
        [four, six]
    })?;
    let listener = TcpListener::bind((gateway.parse::<IpAddr>()?, 0))?;
    let port = listener.local_addr()?.port();
    let answering = answer(listener);
    nc(&victim, gateway.parse()?, port)?.prints(&format!("you are {victim_four}"))?;
    answering.join().expect("the thread ends")?;
    flood.finish()?.ends_with(0)?;
    // And the one that floods finds names again when it has stopped.
    let end = Instant::now() + ARRIVES;
    while let Err(error) = finds(&flooding, &victim.name, &[victim_four, victim_six]) {
        ensure!(Instant::now() < end, "{error:#}");
    }
    Ok(())
}

/// A worker whose host is a namespace of the story's, where somebody throws all rules away.
pub(super) fn rules_that_somebody_throws_away_are_made_again(world: &World<'_>) -> Result<()> {
    let host = Outside::make()?;
    let there = WorkerOutside::of(&host, world, "f", ["10.214.0.0/24", "fd00:b9:fffe::/64"])?;
    let worker = |words: &[&str]| there.command(words);
    let inside = |words: &[&str]| there.inside(words);
    let serving = worker(&["serve"]).spawn()?;
    serving.stderr_shows("worker is serving")?;
    let run = |flags: &[&str], script: &str| -> Result<()> {
        let fixed = ["run", "-d", "--runtime", world.runtime().as_str()];
        worker(&[&fixed, flags, &["busybox", "sh", "-c", script]].concat()).finish()?.ends_with(0).map(drop)
    };
    run(&["--name", "open", "-p", "8080:8080"], &server(8080, "served"))?;
    run(&["--name", "blocked", "--block-network"], "sleep 1000")?;
    let from_here = host.four;
    let reached = || {
        let heard = TcpStream::connect_timeout(&SocketAddr::new(from_here, 8080), Duration::from_secs(2));
        heard.is_ok() && ask(SocketAddr::new(from_here, 8080)).is_ok_and(|heard| heard == "served")
    };
    let end = Instant::now() + super::BOOTS;
    while !reached() {
        ensure!(Instant::now() < end, "the port is not reached");
        std::thread::sleep(Duration::from_millis(100));
    }
    let rules = || -> Result<Vec<String>> {
        let listed = inside(&["nft", "list", "ruleset"])?;
        let mut lines: Vec<_> = listed.lines().map(|line| line.trim().to_owned()).collect();
        lines.sort();
        Ok(lines)
    };
    let before = rules()?;
    inside(&["nft", "flush", "ruleset"])?;
    let (end, began) = (Instant::now() + ARRIVES, Instant::now());
    while rules()? != before {
        ensure!(Instant::now() < end, "the rules were\n{before:#?}\nand are\n{:#?}", rules()?);
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("{}: the rules were back after {} ms", world.runtime(), began.elapsed().as_millis());
    ensure!(reached(), "the port is not reached any more");
    for name in ["open", "blocked"] {
        worker(&["rm", "-f", name]).finish()?.ends_with(0)?;
    }
    serving.signal(rustix::process::Signal::TERM)?;
    serving.finish()?.ends_with(0)?;
    let left = inside(&["nft", "list", "tables"])? + &inside(&["ip", "-oneline", "link"])?;
    ensure!(!left.contains(&there.bridge), "something of the bridge is left: {left}");
    let _ = std::fs::remove_dir_all(format!("/run/beta9/network/{}", there.bridge));
    Ok(())
}

/// The worker tells what containers have received and sent.
pub(super) fn traffic_is_counted_in_metrics(world: &World<'_>) -> Result<()> {
    let root = world.directory()?.join("root");
    let (root, config) =
        (root.to_string_lossy().into_owned(), world.site().config().to_string_lossy().into_owned());
    let worker = |words: &[&str]| {
        Invocation::new(world.site().program(), [&["--root", &root, "--config", &config], words].concat())
            .env("PATH", world.site().path())
    };
    let image = Site::requirements()?;
    worker(&["image", "import", "-t", "busybox", &image.to_string_lossy()]).finish()?.ends_with(0)?;
    let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let serving = worker(&["serve", "--metrics", &free.to_string()]).spawn()?;
    serving.stderr_shows("worker is serving")?;
    let script = server(80, "served");
    let run = [
        "run",
        "-d",
        "--name",
        "counted",
        "--runtime",
        world.runtime().as_str(),
        "busybox",
        "sh",
        "-c",
        &script,
    ];
    let id = worker(&run).finish()?.ends_with(0)?.out();
    let counted = || -> Result<[u64; 2]> {
        let mut stream = TcpStream::connect(free)?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let count = |name: &str| {
            let start = format!("beta9_container_network_{name}_bytes_total{{");
            let line = text.lines().find(|line| line.starts_with(&start) && line.contains(&id));
            line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        };
        match (count("received"), count("sent")) {
            (Some(received), Some(sent)) => Ok([received, sent]),
            _ => anyhow::bail!("no traffic of {id} in\n{text}"),
        }
    };
    let before = counted()?;
    let known: serde_json::Value =
        serde_json::from_slice(&worker(&["inspect", "counted"]).finish()?.ends_with(0)?.stdout)?;
    let known = known.get(0).unwrap_or(&known);
    let address = known["network_end"]["addresses"][0].as_str().unwrap_or_default();
    let address: IpAddr = address.split('/').next().unwrap_or_default().parse()?;
    let end = Instant::now() + super::BOOTS;
    while ask(SocketAddr::new(address, 80)).is_err() {
        ensure!(Instant::now() < end, "{address} is not reached");
    }
    let after = counted()?;
    ensure!(after[0] > before[0] + 100 && after[1] > before[1] + 100, "{before:?} became {after:?}");
    worker(&["rm", "-f", "counted"]).finish()?.ends_with(0)?;
    ensure!(counted().is_err(), "a container that is gone is still counted");
    serving.signal(rustix::process::Signal::TERM)?;
    serving.finish()?.ends_with(0).map(drop)
}
