//! Pulling from and pushing to Debian's docker-registry.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use beta9_image::Store;
use beta9_registry::{ErrorKind, Push, Registries, Status};
use beta9_types::{RegistryHost, RegistrySettings};
use common::real::{Door, Registry};
use common::{Fixture, Seen, impatient, password, pull, reference};

fn push(name: &str) -> Push {
    Push { destination: reference(name), plain_http: None, credentials: None }
}

#[tokio::test]
async fn an_image_comes_back_as_it_went() {
    let Some(registry) = Registry::start(&Door::Open) else { return };
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let image = Fixture::new(1).import(&Store::open(ours.path()).unwrap(), "local");
    let name = format!("{}/a/b:v1", registry.host);
    let store = Store::open(ours.path()).unwrap();
    let seen = Seen::default();
    let digest = Registries::default().push(&store, &image, push(&name), seen.watch()).await.unwrap();
    assert_eq!(digest, image.digest);
    assert!(seen.last().values().all(|status| *status == Status::Done), "{:?}", seen.last());
    // The second time there is nothing to do.
    let seen = Seen::default();
    Registries::default().push(&store, &image, push(&name), seen.watch()).await.unwrap();
    assert!(seen.last().values().all(|status| *status == Status::Exists), "{:?}", seen.last());

    let store = Store::open(theirs.path()).unwrap();
    let seen = Seen::default();
    let pulled = Registries::default().pull(&store, pull(&name), seen.watch()).await.unwrap();
    assert_eq!((&pulled.digest, &pulled.layers), (&image.digest, &image.layers));
    assert_eq!(pulled.reference, reference(&name));
    assert!(seen.last().values().all(|status| *status == Status::Done), "{:?}", seen.last());
    // It is what it says: unpacking verifies every layer once more.
    let tree = store.tree(&pulled).unwrap();
    assert_eq!(std::fs::metadata(tree.join("file-2")).unwrap().len(), 700_000);
    let by_digest = format!("{}/a/b@{digest}", registry.host);
    let again = Registries::default().pull(&store, pull(&by_digest), Seen::default().watch()).await.unwrap();
    assert_eq!(again.reference.to_string(), by_digest);
    let error = Registries::default().pull(&store, pull(&format!("{name}2")), Seen::default().watch()).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_password_opens_the_door() {
    let Some(registry) = Registry::start(&Door::Password) else { return };
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let image = Fixture::new(2).import(&store, "local");
    let name = format!("{}/x:1", registry.host);
    let registries = Registries::default();
    let watch = || Seen::default().watch();

    for credentials in [None, Some(password("user", "wrong"))] {
        let attempt = Push { credentials, ..push(&name) };
        let error = registries.push(&store, &image, attempt, watch()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthorized);
        let text = error.chain();
        assert!(text.contains("login") && !text.contains("wrong"), "{text}");
    }
    let right = || Some(password("user", "password"));
    registries.push(&store, &image, Push { credentials: right(), ..push(&name) }, watch()).await.unwrap();
    let error = registries.pull(&store, pull(&name), watch()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    let with = beta9_registry::Pull { credentials: right(), ..pull(&name) };
    assert_eq!(registries.pull(&store, with, watch()).await.unwrap().digest, image.digest);

    let host = RegistryHost::parse(&registry.host).unwrap();
    registries.check(&host, None, password("user", "password")).await.unwrap();
    let error = registries.check(&host, None, password("user", "no")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
}

/// A certificate for 127.0.0.1, signed by itself.
fn certificate(at: &Path) -> Option<(PathBuf, PathBuf)> {
    let (certificate, key) = (at.join("cert.pem"), at.join("key.pem"));
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"])
        // Without this it is an authority, which must not serve itself.
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output();
    match made {
        Ok(output) if output.status.success() => Some((certificate, key)),
        _ => {
            println!("skipped: openssl cannot make a certificate");
            None
        }
    }
}

#[tokio::test]
async fn tls_is_believed_by_the_configured_authority_alone() {
    let directory = tempfile::tempdir().unwrap();
    let Some((certificate, key)) = certificate(directory.path()) else { return };
    let Some(registry) = Registry::start(&Door::Tls(&certificate, &key)) else { return };
    let store = Store::open(directory.path()).unwrap();
    let image = Fixture::new(3).import(&store, "local");
    let name = format!("{}/x:1", registry.host);
    let settings = |ca_file| {
        let settings = RegistrySettings { ca_file, plain_http: Some(false), ..RegistrySettings::default() };
        Registries::new(BTreeMap::from([(RegistryHost::parse(&registry.host).unwrap(), settings)]))
    };
    let watch = || Seen::default().watch();
    let error = settings(None).push(&store, &image, push(&name), watch()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    let text = error.chain();
    assert!(text.contains("certificate") || text.contains("UnknownIssuer"), "{text}");
    let trusting = settings(Some(certificate));
    trusting.push(&store, &image, push(&name), watch()).await.unwrap();
    trusting.pull(&store, pull(&name), watch()).await.unwrap();
}

#[tokio::test]
async fn a_mirror_is_asked_first_and_the_registry_after_it() {
    let (Some(registry), Some(mirror)) = (Registry::start(&Door::Open), Registry::start(&Door::Open)) else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let here = Fixture::new(4).import(&store, "here");
    let there = Fixture::new(5).import(&store, "there");
    let watch = || Seen::default().watch();
    let on = |host: &str, tag: &str| format!("{host}/x:{tag}");
    let plain = impatient();
    plain.push(&store, &here, push(&on(&registry.host, "both")), watch()).await.unwrap();
    plain.push(&store, &here, push(&on(&registry.host, "here")), watch()).await.unwrap();
    plain.push(&store, &there, push(&on(&mirror.host, "both")), watch()).await.unwrap();

    let mirrors = ["127.0.0.1:1", &mirror.host].map(|host| RegistryHost::parse(host).unwrap()).to_vec();
    let settings = RegistrySettings { mirrors, ..RegistrySettings::default() };
    let host = RegistryHost::parse(&registry.host).unwrap();
    let registries = Registries::new(BTreeMap::from([(host, settings)]));
    let pulled = registries.pull(&store, pull(&on(&registry.host, "both")), watch()).await.unwrap();
    assert_eq!(pulled.digest, there.digest, "the mirror was not asked");
    assert_eq!(pulled.reference, reference(&on(&registry.host, "both")));
    let pulled = registries.pull(&store, pull(&on(&registry.host, "here")), watch()).await.unwrap();
    assert_eq!(pulled.digest, here.digest);
}
