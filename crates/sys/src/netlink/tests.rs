use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::link::VethEnd;
use super::route::Route;
use super::*;
use crate::namespaces::{current_network, enter_new_network, on_own_thread};

fn privileged() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Two namespaces with an interface each, `near` and `far`, and a socket for each.
fn pair() -> crate::Result<(Socket, Socket, std::os::fd::OwnedFd)> {
    let (mut far, namespace) = on_own_thread(None, || {
        enter_new_network()?;
        let mut socket = Socket::open()?;
        let index = socket.link("lo")?.unwrap().index;
        socket.set_up(index)?;
        Ok((socket, current_network()?))
    })?;
    let mut near = Socket::open()?;
    near.add_bridge("bridge", [2, 0, 0, 0, 0, 1], 1500)?;
    let bridge = near.link("bridge")?.unwrap();
    assert_eq!((bridge.kind.as_deref(), bridge.mac), (Some("bridge"), [2, 0, 0, 0, 0, 1]));
    let (end, peer) =
        (VethEnd { name: "near", mac: [2, 0, 0, 0, 0, 2] }, VethEnd { name: "far", mac: [2, 0, 0, 0, 0, 3] });
    near.add_veth(&end, &peer, 1400, bridge.index, namespace.as_fd())?;
    let index = far.link("far")?.unwrap().index;
    far.set_up(index)?;
    near.add_address(bridge.index, address("10.9.0.1"), 24)?;
    near.add_address(bridge.index, address("fd00:9::1"), 64)?;
    Ok((near, far, namespace))
}

#[test]
fn packets_of_both_families_cross_a_bridge_and_a_veth_pair() {
    if !privileged() {
        return;
    }
    on_own_thread(None, || {
        enter_new_network()?;
        let (mut near, mut far, namespace) = pair()?;
        let index = far.link("far")?.unwrap().index;
        assert_eq!(far.link("far")?.unwrap().mtu, 1400);
        for (own, gateway, prefix) in [("10.9.0.2", "10.9.0.1", 24), ("fd00:9::2", "fd00:9::1", 64)] {
            far.add_address(index, address(own), prefix)?;
            let any = if own.contains(':') { "::" } else { "0.0.0.0" };
            far.add_route(&Route {
                link: index,
                destination: address(any),
                prefix: 0,
                gateway: Some(address(gateway)),
            })?;
        }
        let gateways: Vec<_> = far.routes()?.into_iter().filter_map(|route| route.gateway).collect();
        assert_eq!(gateways, [address("10.9.0.1"), address("fd00:9::1")]);
        let own = far.addresses()?.into_iter().filter(|a| a.link == index && a.scope == 0).count();
        assert_eq!(own, 2);

        for host in ["10.9.0.1:0", "[fd00:9::1]:0"] {
            let listener = TcpListener::bind(host).unwrap();
            let to = listener.local_addr().unwrap();
            on_own_thread(None, || {
                crate::namespaces::enter_network(namespace.as_fd())?;
                let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap();
                stream.write_all(b"hello").unwrap();
                Ok(())
            })?;
            let mut text = String::new();
            listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
            assert_eq!(text, "hello");
        }

        let index = near.link("near")?.unwrap().index;
        near.add_alternative_name(index, "another-name")?;
        assert_eq!(near.link("another-name")?.unwrap().name, "near");
        near.remove_link("near")?;
        assert_eq!((near.link("near")?, far.link("far")?), (None, None));
        near.remove_link("near")
    })
    .unwrap();
}

#[test]
fn a_rate_is_kept_to() {
    if !privileged() {
        return;
    }
    on_own_thread(None, || {
        enter_new_network()?;
        let (mut near, mut far, namespace) = pair()?;
        let index = far.link("far")?.unwrap().index;
        far.add_address(index, address("10.9.0.2"), 24)?;
        const RATE: u64 = 2_000_000;
        far.lift_rate(index)?;
        far.limit_rate(index, RATE)?;
        far.lift_rate(index)?;
        far.limit_rate(index, RATE / 2)?;
        // A limit replaces the one before.
        far.limit_rate(index, RATE)?;
        let listener = TcpListener::bind("10.9.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let sender = std::thread::spawn(move || {
            on_own_thread(None, || {
                crate::namespaces::enter_network(namespace.as_fd())?;
                let mut stream = TcpStream::connect(to).unwrap();
                let _ = stream.write_all(&vec![0; 3_000_000]);
                Ok(())
            })
        });
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = vec![0; 64 << 10];
        // What fits into the burst at the beginning is not counted.
        let mut skipped = 0;
        while skipped < 500_000 {
            skipped += stream.read(&mut buffer).unwrap();
        }
        let (began, mut count) = (Instant::now(), 0);
        while count < 2_000_000 {
            count += stream.read(&mut buffer).unwrap();
        }
        let rate = count as f64 / began.elapsed().as_secs_f64();
        // Headers are part of the rate and not of what is counted here.
        assert!((0.85 * RATE as f64..1.1 * RATE as f64).contains(&rate), "{rate} bytes per second");
        drop(stream);
        sender.join().unwrap()?;
        near.remove_link("near")
    })
    .unwrap();
}

#[test]
fn what_arrives_at_one_interface_leaves_by_the_other() {
    if !privileged() {
        return;
    }
    on_own_thread(None, || {
        enter_new_network()?;
        let (mut near, mut far, _namespace) = pair()?;
        let index = far.link("far")?.unwrap().index;
        far.redirect(index, index)?;
        assert!(far.redirect(index, index).is_err(), "a second redirection was accepted");
        far.stop_redirect(index)?;
        far.stop_redirect(index)?;
        far.redirect(index, index)?;
        near.remove_link("near")?;
        far.stop_redirect(index)
    })
    .unwrap();
}

#[test]
fn the_kernel_says_what_is_wrong() {
    if !privileged() {
        return;
    }
    on_own_thread(None, || {
        enter_new_network()?;
        let mut socket = Socket::open()?;
        let error = socket.set_up(4711).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
        assert_eq!(socket.link("no-such-link")?, None);
        Ok(())
    })
    .unwrap();
}
