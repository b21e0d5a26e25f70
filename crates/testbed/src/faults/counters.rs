//! What Firecracker counts, as whoever watches the machine sees it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use beta9_types::RuntimeKind;

use super::at;
use crate::{Site, World};

/// It tells once a minute.
const TOLD: Duration = Duration::from_secs(200);

pub(super) fn are_served(runtime: RuntimeKind) -> Result<()> {
    at(Site::prepare()?, |site| {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let worker = site.command(["serve", "--metrics", &address]).spawn()?;
        worker.stderr_shows("worker is serving")?;
        let world = World::new(site, runtime, "counters");
        let container = world.detach_ready(&[], "echo ready; while true; do sleep 1; done")?;
        let name = format!("beta9_firecracker_disk_read_bytes_total{{container=\"{}\"}} ", container.id);
        let end = Instant::now() + TOLD;
        let read = loop {
            let text = ask(&address)?;
            match text.lines().find_map(|line| line.strip_prefix(&name)) {
                Some(number) => break number.trim().parse::<u64>()?,
                None => ensure!(Instant::now() < end, "no counters within {TOLD:?} in\n{text}"),
            }
            std::thread::sleep(Duration::from_secs(2));
        };
        // It has mounted its root file system and executed a shell from there.
        ensure!(read > 100_000, "it has read {read} bytes only");
        worker.signal(rustix::process::Signal::TERM)?;
        worker.finish()?.ends_with(0)?;
        Ok(())
    })
}

fn ask(address: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).context("cannot reach the metrics")?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    write!(stream, "GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}
