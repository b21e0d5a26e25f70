//! A container's name server with real sockets, in a network namespace of the test's own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use beta9_sys::namespaces::{enter_new_network, on_own_thread};
use beta9_sys::netlink::Socket;
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

use super::{Answering, Bound, Source, upstream};
use crate::connection::Host;
use crate::nft::Nft;

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const SILENT: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));
const ANSWER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

fn question(name: &str) -> Message {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message
}

fn answer(bytes: &[u8], count: usize) -> Message {
    let asked = Message::from_vec(bytes).unwrap();
    let mut message = Message::response(asked.id, OpCode::Query);
    let name = asked.queries[0].name.clone();
    message.add_queries(asked.queries.clone());
    message.add_answers((0..count).map(|_| Record::from_rdata(name.clone(), 60, RData::A(A(ANSWER)))));
    message
}

/// A name server that first says what is no answer. `many.` has more addresses than UDP takes.
async fn serve(asked: Arc<AtomicUsize>) {
    let socket = UdpSocket::bind((SERVER, 53)).await.unwrap();
    let listener = TcpListener::bind((SERVER, 53)).await.unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let bytes = upstream::read(&mut stream, 4096).await.unwrap();
            upstream::write(&mut stream, &answer(&bytes, 100).to_vec().unwrap()).await.unwrap();
        }
    });
    let mut buffer = [0; 4096];
    loop {
        let (count, from) = socket.recv_from(&mut buffer).await.unwrap();
        asked.fetch_add(1, Ordering::Relaxed);
        let bytes = &buffer[..count];
        let is_long = Message::from_vec(bytes).unwrap().queries[0].name == Name::from_ascii("many.").unwrap();
        let mut wrong = answer(bytes, 1);
        wrong.metadata.id = wrong.metadata.id.wrapping_add(1);
        socket.send_to(&wrong.to_vec().unwrap(), from).await.unwrap();
        socket.send_to(b"garbage", from).await.unwrap();
        let right = answer(bytes, if is_long { 100 } else { 1 });
        socket.send_to(&right.to_vec().unwrap(), from).await.unwrap();
    }
}

fn write(file: &Path, policy: &str) {
    let text = serde_json::json!({
        "id": "c1",
        "settings": beta9_types::NetworkSettings::default(),
        "offset": 2,
        "interface": "b9h0",
        "attachment": {
            "namespace": "/run/netns/c1", "interface": "eth0", "tap": null, "mac": "02:b9:c0:a8:00:02", "mtu": 1500,
            "addresses": [["192.168.0.2", 20]], "routes": [],
        },
        "policy": policy.parse::<beta9_types::NetworkPolicy>().unwrap(),
        "ports": [],
    });
    crate::files::write_json(file, &text).unwrap();
}

async fn ask(to: SocketAddr, name: &str) -> Message {
    let socket = UdpSocket::bind((CLIENT, 0)).await.unwrap();
    socket.send_to(&question(name).to_vec().unwrap(), to).await.unwrap();
    let mut buffer = [0; 4096];
    let count = timeout(Duration::from_secs(10), socket.recv(&mut buffer)).await.unwrap().unwrap();
    let message = Message::from_vec(&buffer[..count]).unwrap();
    assert_eq!(message.id, 77);
    message
}

async fn story(file: &Path) {
    let asked = Arc::new(AtomicUsize::new(0));
    tokio::spawn(serve(Arc::clone(&asked)));
    // One that never answers.
    let _silent = UdpSocket::bind((SILENT, 53)).await.unwrap();
    write(file, "open");
    let bound = Bound::to(Ipv4Addr::LOCALHOST).unwrap();
    let to = SocketAddr::new(CLIENT, bound.port().unwrap());
    let host = Host::here(Nft::new(None)).unwrap();
    let source = Source { file: file.to_owned(), servers: vec![SILENT, SERVER], host };
    let _answering = Answering::serve(bound, source, &[CLIENT]).unwrap();

    let heard = ask(to, "a.example.").await;
    assert_eq!(heard.answers.len(), 1);
    assert!(matches!(&heard.answers[0].data, RData::A(address) if address.0 == ANSWER));
    let cut = ask(to, "many.").await;
    assert!(cut.truncation && cut.answers.is_empty());
    let mut stream = TcpStream::connect(to).await.unwrap();
    upstream::write(&mut stream, &question("many.").to_vec().unwrap()).await.unwrap();
    let whole = timeout(Duration::from_secs(10), upstream::read(&mut stream, 65_535)).await.unwrap().unwrap();
    assert_eq!(Message::from_vec(&whole).unwrap().answers.len(), 100);

    // Somebody else gets no answer, and asks nobody.
    let before = asked.load(Ordering::Relaxed);
    let other = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 9), 0)).await.unwrap();
    other.send_to(&question("a.example.").to_vec().unwrap(), to).await.unwrap();
    let mut buffer = [0; 512];
    assert!(timeout(Duration::from_millis(300), other.recv(&mut buffer)).await.is_err());
    // What is written anew counts from the next question.
    write(file, "10.0.0.0/8");
    assert_eq!(ask(to, "a.example.").await.response_code, ResponseCode::NXDomain);
    write(file, "127.0.0.2");
    assert_eq!(asked.load(Ordering::Relaxed), before);
    assert_eq!(ask(to, "a.example.").await.answers.len(), 1);
    assert_eq!(asked.load(Ordering::Relaxed), before + 1);
    std::fs::remove_file(file).unwrap();
    assert_eq!(ask(to, "a.example.").await.response_code, ResponseCode::ServFail);
}

#[test]
fn questions_are_answered_by_both_ways() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("network.json");
    let done = on_own_thread(None, || {
        enter_new_network()?;
        let mut links = Socket::open()?;
        let index = links.link("lo")?.unwrap().index;
        links.set_up(index)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(story(&file));
        Ok(())
    });
    done.unwrap();
}
