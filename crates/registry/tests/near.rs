//! What a registry on the Internet must not send us to. "The Internet" is a network namespace in which this machine has a
//! public address: the tests run themselves in there once more.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

mod common;

use std::process::Command;

use beta9_image::Store;
use beta9_registry::{ErrorKind, Pull};
use common::fake::{Fake, full, redirect};
use common::{Fixture, Seen, assert_nothing_left, honest_but, impatient, pull};

/// Of the block for examples (RFC 5737), which is nobody's.
const PUBLIC: &str = "203.0.113.5";
const INSIDE: &str = "BETA9_TEST_INSIDE";

/// Runs the test of that name in a namespace of its own. `false` in there, where the test itself is to run.
fn outside(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return false;
    }
    let script = format!("ip link set lo up && ip addr add {PUBLIC}/32 dev lo && exec \"$0\" --exact {name}");
    let this = std::env::current_exe().unwrap();
    let made = Command::new("unshare").args(["--net", "true"]).status();
    if !made.is_ok_and(|status| status.success()) {
        println!("skipped: this user cannot make network namespaces");
        return true;
    }
    let status =
        Command::new("unshare").args(["--net", "sh", "-c", &script]).arg(this).env(INSIDE, "1").status();
    assert!(status.unwrap().success());
    true
}

#[tokio::test]
async fn a_registry_on_the_internet_does_not_send_us_home() {
    if outside("a_registry_on_the_internet_does_not_send_us_home") {
        return;
    }
    let neighbour = Fake::start(|_| full(200, "secret")).await;
    let port = neighbour.address.port();
    let hosts = [
        "127.0.0.1",
        "localhost",
        "[::ffff:127.0.0.1]",
        "127.1",
        "2130706433",
        "10.0.0.1",
        "169.254.169.254",
    ];
    for host in hosts {
        let to = format!("http://{host}:{port}/");
        let fake = Fake::start_at(PUBLIC, honest_but(Fixture::new(1), move |_| redirect(&to))).await;
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let asked = Pull { plain_http: Some(true), ..pull(&fake.name()) };
        let error = impatient().pull(&store, asked, Seen::default().watch()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{host}: {}", error.chain());
        assert!(error.chain().contains("not followed"), "{host}: {}", error.chain());
        assert_nothing_left(directory.path());
    }
    // Nor does its token service.
    let challenge = format!("Bearer realm=\"http://localhost:{port}/token\"");
    let fake = Fake::start_at(PUBLIC, move |_| {
        let mut response = full(401, "");
        response.headers_mut().insert("www-authenticate", challenge.parse().unwrap());
        response
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let asked = Pull { plain_http: Some(true), ..pull(&fake.name()) };
    let error = impatient().pull(&store, asked, Seen::default().watch()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{}", error.chain());
    assert!(neighbour.asked().is_empty(), "{:?}", neighbour.asked());
}

#[tokio::test]
async fn http_without_tls_is_for_loopback_or_by_word() {
    if outside("http_without_tls_is_for_loopback_or_by_word") {
        return;
    }
    let image = Fixture::new(1);
    let fake = Fake::start_at(PUBLIC, honest_but(image.clone(), |_| full(500, ""))).await;
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let error = impatient().pull(&store, pull(&fake.name()), Seen::default().watch()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{}", error.chain());
    assert!(fake.asked().is_empty(), "{:?}", fake.asked());
}
