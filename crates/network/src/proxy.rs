//! What arrives at a reserved port's own socket is passed on to the container.
//!
//! That is what the host's processes send to any of its addresses, loopback of both families among them: so no packet with a
//! loopback address ever has to leave the host, and `route_localnet` stays off.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use beta9_types::{PortProtocol, PublishedPort};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use crate::error::{Error, ErrorKind, Result};
use crate::ports::Reserved;

/// Connections and UDP clients of one port at once. More wait, or are lost.
const MAX_CLIENTS: usize = 1024;
/// How long a container may take to accept a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// How long a UDP client is remembered for answers.
const UDP_IDLE: Duration = Duration::from_secs(90);
/// After a failure to accept, which is a lack of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest UDP packet.
const DATAGRAM: usize = 65_536;
/// Packets that wait for one UDP client's socket.
const WAITING: usize = 64;

/// Tasks that pass on what arrives at ports. Dropping it ends them and gives the ports back.
#[derive(Debug, Default)]
pub struct Proxies {
    served: Vec<Served>,
}

/// One port and the task that serves it.
#[derive(Debug)]
struct Served {
    port: PublishedPort,
    task: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxies {
    /// Serves ports with a container that has these addresses. Must be called in a tokio runtime.
    pub fn serve(reserved: Reserved, addresses: &[IpAddr]) -> Result<Self> {
        let mut proxies = Self::default();
        proxies.add(reserved, addresses)?;
        Ok(proxies)
    }

    /// Serves more of them: all, or none of them where one cannot be served.
    pub fn add(&mut self, reserved: Reserved, addresses: &[IpAddr]) -> Result<()> {
        let mut added = Vec::new();
        for (port, socket) in reserved.sockets {
            // A container without IPv6 is reached over IPv4 all the same.
            let same = addresses.iter().find(|address| address.is_ipv4() == port.host_ip.is_ipv4());
            let Some(address) = same.or(addresses.first()) else { continue };
            let to = SocketAddr::new(*address, port.container_port);
            let failed = |e: io::Error| Error::caused(ErrorKind::Failed, format!("serve port {port}"), e);
            let task = match port.protocol {
                PortProtocol::Tcp => {
                    let listener = tcp(socket).map_err(failed)?;
                    tokio::spawn(serve_tcp(listener, to, port))
                }
                PortProtocol::Udp => {
                    let socket = udp(socket).map_err(failed)?;
                    tokio::spawn(serve_udp(Arc::new(socket), to))
                }
            };
            added.push(Served { port, task });
        }
        self.served.append(&mut added);
        Ok(())
    }

    /// Serves only these from now on, and gives the others back.
    pub async fn keep(&mut self, ports: &[PublishedPort]) {
        let served = std::mem::take(&mut self.served);
        for mut one in served {
            if ports.contains(&one.port) {
                self.served.push(one);
            } else {
                one.task.abort();
                // Its socket is closed once it has ended.
                let _ = (&mut one.task).await;
            }
        }
    }

    /// How many ports are served.
    pub fn count(&self) -> usize {
        self.served.len()
    }
}

fn tcp(socket: OwnedFd) -> io::Result<TcpListener> {
    TcpListener::from_std(std::net::TcpListener::from(socket))
}

fn udp(socket: OwnedFd) -> io::Result<UdpSocket> {
    UdpSocket::from_std(std::net::UdpSocket::from(socket))
}

async fn serve_tcp(listener: TcpListener, to: SocketAddr, port: PublishedPort) {
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    let mut clients = JoinSet::new();
    loop {
        while clients.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((client, _)) => {
                clients.spawn(async move {
                    let _place = place;
                    pass_on(client, to).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, %port, "a connection to a published port could not be accepted");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Copies both ways until both ends have said all. A container that does not accept closes the client's connection.
async fn pass_on(mut client: TcpStream, to: SocketAddr) {
    let Ok(Ok(mut container)) = timeout(CONNECT_DEADLINE, TcpStream::connect(to)).await else { return };
    let _ = client.set_nodelay(true);
    let _ = container.set_nodelay(true);
    let _ = copy_bidirectional(&mut client, &mut container).await;
}

/// Every client has a socket of its own towards the container, so that answers find their way back.
async fn serve_udp(socket: Arc<UdpSocket>, to: SocketAddr) {
    let mut clients: HashMap<SocketAddr, mpsc::Sender<Vec<u8>>> = HashMap::new();
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; DATAGRAM];
    loop {
        while tasks.try_join_next().is_some() {}
        let (count, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An earlier answer did not arrive: nothing to do about that here.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(_) => {
                sleep(PAUSE).await;
                continue;
            }
        };
        let packet = buffer[..count].to_vec();
        let packet = match clients.get(&client).map(|sender| sender.try_send(packet)) {
            // Like any network it loses what is too much.
            Some(Ok(()) | Err(mpsc::error::TrySendError::Full(_))) => continue,
            Some(Err(mpsc::error::TrySendError::Closed(packet))) => packet,
            None => buffer[..count].to_vec(),
        };
        clients.retain(|_, sender| !sender.is_closed());
        if clients.len() >= MAX_CLIENTS {
            continue;
        }
        let (sender, packets) = mpsc::channel(WAITING);
        // There is room for the first.
        let _ = sender.try_send(packet);
        clients.insert(client, sender);
        tasks.spawn(exchange(Arc::clone(&socket), client, to, packets));
    }
}

async fn exchange(
    socket: Arc<UdpSocket>,
    client: SocketAddr,
    to: SocketAddr,
    mut packets: mpsc::Receiver<Vec<u8>>,
) {
    let any: IpAddr = if to.is_ipv4() {
        std::net::Ipv4Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    };
    let Ok(own) = UdpSocket::bind((any, 0)).await else { return };
    if own.connect(to).await.is_err() {
        return;
    }
    let mut buffer = vec![0; DATAGRAM];
    loop {
        tokio::select! {
            packet = packets.recv() => match packet {
                // What the container refuses is lost, as it is without a proxy.
                Some(packet) => drop(own.send(&packet).await),
                None => return,
            },
            answer = own.recv(&mut buffer) => match answer {
                Ok(count) => drop(socket.send_to(&buffer[..count], client).await),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(_) => return,
            },
            () = sleep(UDP_IDLE) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn tcp_is_passed_on_with_the_end_of_either_side() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = server.local_addr().unwrap().port();
        let reserved = Reserved::take(&[format!("127.0.0.1::{port}").parse().unwrap()]).unwrap();
        let published = reserved.ports()[0];
        let proxies = Proxies::serve(reserved, &["127.0.0.1".parse().unwrap()]).unwrap();
        assert_eq!(proxies.count(), 1);
        let mut client = TcpStream::connect((published.host_ip, published.host_port)).await.unwrap();
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let (mut served, _) = server.accept().await.unwrap();
        let mut text = String::new();
        served.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "question");
        served.write_all(b"answer").await.unwrap();
        drop(served);
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "answer");
        drop(proxies);
        tokio::task::yield_now().await;
        assert!(TcpStream::connect((published.host_ip, published.host_port)).await.is_err());
    }

    #[tokio::test]
    async fn udp_answers_go_to_whoever_asked() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = server.local_addr().unwrap().port();
        let reserved = Reserved::take(&[format!("127.0.0.1::{port}/udp").parse().unwrap()]).unwrap();
        let published = reserved.ports()[0];
        let _proxies = Proxies::serve(reserved, &["127.0.0.1".parse().unwrap()]).unwrap();
        let mut clients = Vec::new();
        for name in ["one", "two"] {
            let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            client.connect((published.host_ip, published.host_port)).await.unwrap();
            client.send(name.as_bytes()).await.unwrap();
            clients.push((name, client));
        }
        let mut buffer = [0; 64];
        for _ in 0..2 {
            let (count, from) = server.recv_from(&mut buffer).await.unwrap();
            server.send_to(&buffer[..count], from).await.unwrap();
        }
        for (name, client) in clients {
            let count = timeout(Duration::from_secs(5), client.recv(&mut buffer)).await.unwrap().unwrap();
            assert_eq!(&buffer[..count], name.as_bytes());
        }
    }
}
