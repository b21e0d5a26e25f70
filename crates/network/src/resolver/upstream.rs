//! Asking the name servers of the host, or those that were named for the container.
//!
//! Each question has a socket of its own, and so a port that the kernel chose at random, which takes packets of the server
//! alone; and a random number. Nothing is remembered: there is no cache that somebody could put something into.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use rustix::rand::{GetRandomFlags, getrandom};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::message::{Question, Transport};

/// How long one server may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often all of them are asked.
const ROUNDS: usize = 2;
/// How long all of it may take. Clients ask again after five seconds.
const DEADLINE: Duration = Duration::from_secs(9);
/// As many as a C library asks.
const MAX_SERVERS: usize = 3;
/// Packets that are no answer and are passed over before the server is given up.
const MAX_STRANGE: usize = 16;
/// Longest message by either way: by UDP more than was asked for.
const MAX_DATAGRAM: usize = 4096;
const MAX_MESSAGE: usize = 65_535;
/// Longest configuration of the host that is read.
const MAX_CONFIGURATION: u64 = 64 << 10;
const PORT: u16 = 53;

/// The host's name servers, as they are at the moment. Those on its loopback are as good as others: it is the host that asks.
pub(crate) fn of_host(file: &Path) -> Vec<SocketAddr> {
    use std::io::Read;
    let mut text = Vec::new();
    let read = std::fs::File::open(file).and_then(|file| file.take(MAX_CONFIGURATION).read_to_end(&mut text));
    if read.is_err() {
        return Vec::new();
    }
    let text = String::from_utf8_lossy(&text);
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let is_server = words.next() == Some("nameserver");
        words.next().filter(|_| is_server)?.parse::<IpAddr>().ok()
    });
    servers.map(at_port).take(MAX_SERVERS).collect()
}

pub(crate) fn at_port(server: IpAddr) -> SocketAddr {
    SocketAddr::new(server, PORT)
}

/// The first answer that is one, by the client's way; else what a server said that could not.
pub(crate) async fn ask(
    question: &Question,
    servers: &[SocketAddr],
    transport: Transport,
) -> Option<Vec<u8>> {
    let mut failure = None;
    let asking = async {
        for _ in 0..ROUNDS {
            for server in servers.iter().take(MAX_SERVERS) {
                let asked = match transport {
                    Transport::Udp => timeout(PATIENCE, by_udp(question, *server)).await,
                    Transport::Tcp => timeout(PATIENCE, by_tcp(question, *server)).await,
                };
                match asked {
                    Ok(Some((answer, false))) => return Some(answer),
                    Ok(Some((answer, true))) => failure = Some(answer),
                    Ok(None) | Err(_) => {}
                }
            }
            if failure.is_some() {
                break;
            }
        }
        None
    };
    let answered = timeout(DEADLINE, asking).await.ok().flatten();
    answered.or(failure)
}

/// The answer, and whether the server could not.
async fn by_udp(question: &Question, server: SocketAddr) -> Option<(Vec<u8>, bool)> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let id = random()?;
    let socket = UdpSocket::bind((any, 0)).await.ok()?;
    socket.connect(server).await.ok()?;
    socket.send(&question.forward(id)?).await.ok()?;
    let mut buffer = vec![0; MAX_DATAGRAM];
    for _ in 0..MAX_STRANGE {
        let count = socket.recv(&mut buffer).await.ok()?;
        if let Some(checked) = question.check(id, &buffer[..count]) {
            buffer.truncate(count);
            return Some((buffer, checked.is_failure));
        }
    }
    tracing::debug!(%server, "a name server's port sends packets that answer nothing");
    None
}

async fn by_tcp(question: &Question, server: SocketAddr) -> Option<(Vec<u8>, bool)> {
    let id = random()?;
    let mut stream = TcpStream::connect(server).await.ok()?;
    write(&mut stream, &question.forward(id)?).await?;
    let answer = read(&mut stream, MAX_MESSAGE).await?;
    let checked = question.check(id, &answer)?;
    // Over TCP nothing has to be cut off.
    Some((answer, checked.is_failure || checked.is_truncated))
}

/// A message of at most so many bytes, behind its length (RFC 1035, 4.2.2).
pub(crate) async fn read(stream: &mut TcpStream, most: usize) -> Option<Vec<u8>> {
    let length = usize::from(stream.read_u16().await.ok()?);
    if length == 0 || length > most {
        return None;
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await.ok()?;
    Some(bytes)
}

pub(crate) async fn write(stream: &mut TcpStream, message: &[u8]) -> Option<()> {
    let mut bytes = u16::try_from(message.len()).ok()?.to_be_bytes().to_vec();
    bytes.extend_from_slice(message);
    stream.write_all(&bytes).await.ok()
}

fn random() -> Option<u16> {
    let mut bytes = [0; 2];
    let count = getrandom(&mut bytes, GetRandomFlags::empty()).ok()?;
    (count == bytes.len()).then(|| u16::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_name_servers_are_found() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "# nameserver 192.0.2.9\nsearch a\nnameserver 127.0.0.53\nnameserver\tfd00::1\nnameserver x\n\
                    nameservers 192.0.2.1\nnameserver fe80::1%eth0\n";
        std::fs::write(file.path(), text).unwrap();
        let expected: Vec<SocketAddr> =
            ["127.0.0.53:53", "[fd00::1]:53"].map(|s| s.parse().unwrap()).to_vec();
        assert_eq!(of_host(file.path()), expected);
        assert_eq!(of_host(Path::new("/nonexistent")), []);
    }
}
