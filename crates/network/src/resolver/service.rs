//! Taking questions and answering them, by UDP and TCP.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::judge::{Judge, TooMany, Verdict};
use super::message::{MAX_QUESTION, Question, Transport, Unreadable};
use super::upstream;
use crate::connection::Host;
use crate::error::{Error, ErrorKind, Result};

/// Questions that are being answered at a time; more by UDP are lost, as on any network.
const MAX_QUESTIONS: usize = 64;
/// Connections at a time; more wait.
const MAX_CONNECTIONS: usize = 16;
/// How long a connection may say nothing, and may take to take an answer.
const IDLE: Duration = Duration::from_secs(10);
/// Questions of one connection.
const MAX_PER_CONNECTION: usize = 256;
/// Questions per second that are looked at, after so many at once. More wait in the kernel, which drops what is too much.
const RATE: f64 = 500.0;
const BURST: f64 = 500.0;
/// After a failure to receive, which is a lack of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);
/// How often a port is looked for that is free for both.
const TRIES: usize = 32;

/// Sockets on the gateway's address.
#[derive(Debug)]
pub struct Bound {
    udp: std::net::UdpSocket,
    tcp: std::net::TcpListener,
}

/// Where answers come from.
pub struct Source {
    /// Where the container's connection is written down.
    pub file: PathBuf,
    /// The name servers that were named for the container; the host's where there is none.
    pub servers: Vec<IpAddr>,
    /// Who makes rules.
    pub host: Host,
}

/// Tasks that answer. Dropping it ends them.
#[derive(Debug, Default)]
pub struct Answering {
    _tasks: JoinSet<()>,
}

impl Bound {
    pub(crate) fn to(gateway: Ipv4Addr) -> Result<Self> {
        let failed = |e: io::Error| {
            Error::caused(ErrorKind::Failed, format!("open a port of {gateway} for the container's names"), e)
        };
        let mut attempt = 1;
        loop {
            let tcp = std::net::TcpListener::bind((gateway, 0)).map_err(failed)?;
            let port = tcp.local_addr().map_err(failed)?.port();
            match std::net::UdpSocket::bind((gateway, port)) {
                Ok(udp) => {
                    tcp.set_nonblocking(true).and_then(|()| udp.set_nonblocking(true)).map_err(failed)?;
                    return Ok(Self { udp, tcp });
                }
                Err(e) if e.kind() == io::ErrorKind::AddrInUse && attempt < TRIES => attempt += 1,
                Err(e) => return Err(failed(e)),
            }
        }
    }

    pub(crate) fn port(&self) -> Result<u16> {
        let address = self.tcp.local_addr();
        address
            .map(|address| address.port())
            .map_err(|e| Error::caused(ErrorKind::Failed, "look at the port for the container's names", e))
    }
}

/// What all questions share.
struct Shared {
    judge: Mutex<Judge>,
    places: Arc<Semaphore>,
    pace: Mutex<Pace>,
    clients: Vec<IpAddr>,
}

impl Answering {
    /// Answers whoever has one of these addresses, and nobody else. Must be called in a tokio runtime.
    pub fn serve(bound: Bound, source: Source, clients: &[IpAddr]) -> Result<Self> {
        let failed = |e: io::Error| Error::caused(ErrorKind::Failed, "serve the container's names", e);
        let udp = UdpSocket::from_std(bound.udp).map_err(failed)?;
        let tcp = TcpListener::from_std(bound.tcp).map_err(failed)?;
        let shared = Arc::new(Shared {
            judge: Mutex::new(Judge::new(source.file, &source.servers, Arc::new(source.host))),
            places: Arc::new(Semaphore::new(MAX_QUESTIONS)),
            pace: Mutex::new(Pace::new()),
            clients: clients.to_vec(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_udp(Arc::new(udp), Arc::clone(&shared)));
        tasks.spawn(serve_tcp(tcp, shared));
        Ok(Self { _tasks: tasks })
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, shared: Arc<Shared>) {
    let mut answering = JoinSet::new();
    let mut buffer = vec![0; MAX_QUESTION + 1];
    loop {
        while answering.try_join_next().is_some() {}
        shared.wait().await;
        let (count, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(_) => {
                sleep(PAUSE).await;
                continue;
            }
        };
        if count > MAX_QUESTION || !shared.clients.contains(&client.ip()) {
            continue;
        }
        let Ok(place) = Arc::clone(&shared.places).try_acquire_owned() else { continue };
        let (socket, shared, bytes) = (Arc::clone(&socket), Arc::clone(&shared), buffer[..count].to_vec());
        answering.spawn(async move {
            if let Some(answer) = shared.answer(&bytes, Transport::Udp).await {
                let _ = socket.send_to(&answer, client).await;
            }
            drop(place);
        });
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut clients = JoinSet::new();
    loop {
        while clients.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        shared.wait().await;
        match listener.accept().await {
            Ok((stream, client)) if shared.clients.contains(&SocketAddr::ip(&client)) => {
                let shared = Arc::clone(&shared);
                clients.spawn(async move {
                    serve_connection(stream, &shared).await;
                    drop(place);
                });
            }
            Ok(_) => {}
            Err(_) => sleep(PAUSE).await,
        }
    }
}

async fn serve_connection(mut stream: TcpStream, shared: &Shared) {
    for _ in 0..MAX_PER_CONNECTION {
        let Ok(Some(bytes)) = timeout(IDLE, upstream::read(&mut stream, MAX_QUESTION)).await else { return };
        shared.wait().await;
        let Ok(_place) = shared.places.acquire().await else { return };
        let Some(answer) = shared.answer(&bytes, Transport::Tcp).await else { return };
        match timeout(IDLE, upstream::write(&mut stream, &answer)).await {
            Ok(Some(())) => {}
            _ => return,
        }
    }
}

impl Shared {
    /// What to say to a question; nothing where it is none.
    async fn answer(&self, bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let question = match Question::read(bytes) {
            Ok(question) => question,
            Err(Unreadable(complaint)) => return complaint,
        };
        let verdict = self.judge().judge(&question);
        match verdict {
            Verdict::Own(addresses) => question.answer(&addresses),
            Verdict::Deny => question.deny(),
            Verdict::Unknown => question.fail(),
            Verdict::Ask(servers) => match upstream::ask(&question, &servers, transport).await {
                Some(answer) => question.pass_on(answer, transport),
                None => question.fail(),
            },
            Verdict::Open(servers, name) => {
                let Some(answer) = upstream::ask(&question, &servers, transport).await else {
                    return question.fail();
                };
                match question.addresses(&answer) {
                    Some(addresses) if self.open(&name, &addresses).await => {
                        question.pass_on(answer, transport)
                    }
                    _ => question.fail(),
                }
            }
        }
    }

    /// Lets the addresses of a name through. Returns whether they are.
    async fn open(&self, name: &str, addresses: &[(IpAddr, u32)]) -> bool {
        let closed = self.judge().closed(addresses);
        let opening = match closed {
            Ok(None) => return true,
            Ok(Some(opening)) => opening,
            Err(TooMany) => {
                tracing::warn!(name, "the names that a container may talk to have too many addresses");
                return false;
            }
        };
        let name = name.to_owned();
        let run = move || (opening.run(&name), opening);
        match tokio::task::spawn_blocking(run).await {
            Ok((Ok(true), opening)) => {
                self.judge().opened(&opening);
                true
            }
            Ok((Ok(false), _)) => false,
            Ok((Err(error), _)) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "addresses of a name that is allowed could not be let through");
                false
            }
            Err(_) => false,
        }
    }

    /// Waits for its turn.
    async fn wait(&self) {
        loop {
            let pause = self.pace.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
            match pause {
                None => return,
                Some(pause) => sleep(pause).await,
            }
        }
    }

    fn judge(&self) -> MutexGuard<'_, Judge> {
        self.judge.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many questions may be looked at.
struct Pace {
    left: f64,
    at: Instant,
}

impl Pace {
    fn new() -> Self {
        Self { left: BURST, at: Instant::now() }
    }

    /// Takes one of the questions that may be looked at, or says how long there is none.
    fn take(&mut self, now: Instant) -> Option<Duration> {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * RATE;
        (self.left, self.at) = ((self.left + gained).min(BURST), now);
        if self.left >= 1.0 {
            self.left -= 1.0;
            return None;
        }
        Some(Duration::from_secs_f64((1.0 - self.left) / RATE).max(Duration::from_millis(2)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_slowed_down() {
        let mut pace = Pace::new();
        let start = pace.at;
        let burst = (0..10_000).take_while(|_| pace.take(start).is_none()).count();
        assert_eq!(burst, BURST as usize);
        let later = start + Duration::from_secs(1);
        let more = (0..10_000).take_while(|_| pace.take(later).is_none()).count();
        assert_eq!(more, RATE as usize);
    }

    #[test]
    fn both_ways_have_the_same_port() {
        let bound = Bound::to(Ipv4Addr::LOCALHOST).unwrap();
        assert_eq!(bound.udp.local_addr().unwrap().port(), bound.port().unwrap());
    }
}
