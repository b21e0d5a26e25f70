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
        loop {
            let text = ask(&address)?;
            let number = text.lines().find_map(|line| line.strip_prefix(&name));
            // The first line is from before the guest runs. Then it mounts its root and executes a shell from there.
            match number.map(|number| number.trim().parse::<u64>()).transpose()? {
                Some(100_000..) => break,
                _ => ensure!(Instant::now() < end, "nothing was read within {TOLD:?} in\n{text}"),
            }
            std::thread::sleep(Duration::from_secs(2));
        }
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
