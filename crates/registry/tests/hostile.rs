//! Registries that lie, stop, stall, send too much or send us elsewhere: one clear error each, and nothing left.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use beta9_image::Store;
use beta9_registry::{Error, ErrorKind, Pull};
use common::fake::{Asked, Body, Fake, Then, full, honest, pieces, redirect, start_of};
use common::{Fixture, Seen, assert_nothing_left, digest, impatient, password, pull};
use hyper::Response;
use tempfile::TempDir;

/// Pulls from a registry that answers so, and returns the error, having seen that nothing is left.
async fn refused(answer: impl Fn(&Asked) -> Response<Body> + Send + Sync + 'static) -> Error {
    let fake = Fake::start(answer).await;
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let error = impatient().pull(&store, pull(&fake.name()), Seen::default().watch()).await.unwrap_err();
    let text = error.chain();
    assert!(text.len() < 500 && !text.contains('\n'), "{text}");
    drop(store);
    assert_nothing_left(directory.path());
    error
}

/// Whether a blob of some size is asked for: a layer, not the configuration.
fn is_layer(image: &Fixture, asked: &Asked) -> bool {
    image.layers.iter().any(|layer| asked.path.ends_with(layer.as_str()))
}

#[tokio::test]
async fn content_that_is_not_what_its_digest_says() {
    let image = Fixture::new(1);
    let error = refused(move |asked| {
        if !is_layer(&image, asked) {
            return honest(&image, asked);
        }
        let mut bytes = image.blobs[asked.path.rsplit('/').next().unwrap()].clone();
        bytes[100] ^= 1;
        full(200, bytes)
    })
    .await;
    assert_eq!(error.kind(), ErrorKind::Protocol);
    assert!(error.chain().contains("damaged"), "{}", error.chain());
}

#[tokio::test]
async fn a_manifest_that_is_not_what_was_asked_for() {
    let (asked_for, sent) = (Fixture::new(1), Fixture::new(2));
    let wanted = asked_for.digest();
    let other = sent.clone();
    let fake = Fake::start(move |asked| honest(&other, asked)).await;
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let name = format!("{}/test/image@{wanted}", fake.address);
    let error = impatient().pull(&store, pull(&name), Seen::default().watch()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol);
    assert!(error.chain().contains(&sent.digest()), "{}", error.chain());
    assert_nothing_left(directory.path());

    let error = refused(move |asked| {
        let mut response = honest(&sent, asked);
        response.headers_mut().insert("docker-content-digest", wanted.parse().unwrap());
        response
    })
    .await;
    assert_eq!(error.kind(), ErrorKind::Protocol);
}

#[tokio::test]
async fn layers_that_end_too_early() {
    let image = Fixture::new(1);
    // Every time at the same place.
    let error = refused(move |asked| match image.blobs.get(asked.path.rsplit('/').next().unwrap()) {
        Some(bytes) if is_layer(&image, asked) => {
            pieces(Some(bytes.len() - start_of(asked).unwrap_or(0)), bytes[..100].to_vec(), Then::BreakOff)
        }
        _ => honest(&image, asked),
    })
    .await;
    assert!(matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::Protocol), "{}", error.chain());

    // A whole answer that is too short, or too long.
    for change in [|bytes: &mut Vec<u8>| bytes.truncate(100), |bytes: &mut Vec<u8>| bytes.push(0)] {
        let image = Fixture::new(1);
        let error = refused(move |asked| {
            if !is_layer(&image, asked) {
                return honest(&image, asked);
            }
            let mut bytes = image.blobs[asked.path.rsplit('/').next().unwrap()].clone();
            change(&mut bytes);
            full(200, bytes)
        })
        .await;
        assert_eq!(error.kind(), ErrorKind::Protocol, "{}", error.chain());
    }
}

#[tokio::test]
async fn registries_that_fall_silent() {
    for (first, then) in [(0, Then::Silence), (100, Then::Silence), (100, Then::Drip)] {
        let image = Fixture::new(1);
        let started = Instant::now();
        let then = Arc::new(std::sync::Mutex::new(Some(then)));
        let error = refused(move |asked| match image.blobs.get(asked.path.rsplit('/').next().unwrap()) {
            Some(bytes) if is_layer(&image, asked) => {
                // Each kind of silence, and then plain silence.
                let then = then.lock().unwrap().take().unwrap_or(Then::Silence);
                pieces(Some(bytes.len()), bytes[..first].to_vec(), then)
            }
            _ => honest(&image, asked),
        })
        .await;
        assert_eq!(error.kind(), ErrorKind::Timeout, "{}", error.chain());
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    }
    // Not even a manifest.
    let error = refused(|_| pieces(Some(1000), b"{".to_vec(), Then::Drip)).await;
    assert_eq!(error.kind(), ErrorKind::Timeout);
}

#[tokio::test]
async fn endless_answers_are_cut() {
    let error = refused(|_| pieces(None, b"{".to_vec(), Then::Zeros)).await;
    assert_eq!(error.kind(), ErrorKind::Limit);
    let error = refused(|_| pieces(Some(10_000_000_000), b"{".to_vec(), Then::Zeros)).await;
    assert_eq!(error.kind(), ErrorKind::Limit);
    let image = Fixture::new(1);
    let error = refused(move |asked| {
        if is_layer(&image, asked) { pieces(None, vec![0; 10], Then::Zeros) } else { honest(&image, asked) }
    })
    .await;
    assert_eq!(error.kind(), ErrorKind::Protocol);
    assert!(error.chain().contains("more than"), "{}", error.chain());
}

#[tokio::test]
async fn redirects_lead_to_no_file_and_to_no_neighbour_of_nobody() {
    for to in [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "http://169.254.169.254/latest",
        "http://0.0.0.0:80/",
        "//",
        "gopher:x",
    ] {
        let error = refused(move |_| redirect(to)).await;
        assert_eq!(error.kind(), ErrorKind::Protocol, "{to}: {}", error.chain());
    }
    let error = refused(|asked| redirect(&asked.path.clone())).await;
    assert!(error.chain().contains("redirects"), "{}", error.chain());
}

#[tokio::test]
async fn credentials_stay_with_their_registry() {
    // The other host asks for them, too, and must not get an answer.
    let thief = Fake::start(|_| {
        let mut response = full(401, "");
        response.headers_mut().insert("www-authenticate", "Basic realm=thief".parse().unwrap());
        response
    })
    .await;
    let to = format!("http://{}/blob", thief.address);
    let image = Fixture::new(1);
    let fake = Fake::start(move |asked| {
        if asked.authorization.is_none() {
            let mut response = full(401, "");
            response.headers_mut().insert("www-authenticate", "Basic realm=ours".parse().unwrap());
            return response;
        }
        if is_layer(&image, asked) { redirect(&to) } else { honest(&image, asked) }
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let with = Pull { credentials: Some(password("user", "geheim")), ..pull(&fake.name()) };
    let error = impatient().pull(&store, with, Seen::default().watch()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(!error.chain().contains("geheim") && !error.chain().contains("Z2VoZWlt"));
    assert!(!thief.asked().is_empty(), "the redirect was not followed at all");
    assert!(thief.asked().iter().all(|asked| asked.authorization.is_none()), "{:?}", thief.asked());
    assert!(fake.asked().iter().any(|asked| asked.authorization.is_some()));
}

#[tokio::test]
async fn tokens_are_asked_for_once_and_for_what_we_want() {
    let service = Fake::start(|_| full(200, r#"{"token":"t0ken"}"#)).await;
    let challenge = format!(
        "Bearer realm=\"http://{}/token\",service=\"here\",scope=\"registry:catalog:*\"",
        service.address
    );
    let image = Fixture::new(1);
    let fake = Fake::start(move |asked| {
        if asked.authorization.as_deref() == Some("Bearer t0ken") {
            return honest(&image, asked);
        }
        let mut response = full(401, "");
        response.headers_mut().insert("www-authenticate", challenge.parse().unwrap());
        response
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let with = Pull { credentials: Some(password("user", "geheim")), ..pull(&fake.name()) };
    impatient().pull(&store, with, Seen::default().watch()).await.unwrap();
    let asked = service.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert!(asked[0].query.contains("scope=repository%3Atest%2Fimage%3Apull"), "{}", asked[0].query);
    assert!(
        asked[0].query.contains("service=here") && !asked[0].query.contains("catalog"),
        "{}",
        asked[0].query
    );
    assert!(asked[0].authorization.as_ref().unwrap().starts_with("Basic "));

    for realm in ["file:///etc/shadow", "http://169.254.169.254/token", "nonsense"] {
        let challenge = format!("Bearer realm=\"{realm}\"");
        let error = refused(move |_| {
            let mut response = full(401, "");
            response.headers_mut().insert("www-authenticate", challenge.parse().unwrap());
            response
        })
        .await;
        assert_eq!(error.kind(), ErrorKind::Protocol, "{}", error.chain());
    }
}

#[tokio::test]
async fn a_broken_layer_is_gone_on_with_where_it_broke() {
    for ignores_ranges in [false, true] {
        let image = Fixture::new(1);
        let large = image.layers[2].clone();
        let broken = AtomicBool::new(false);
        let (ours, name) = (image.clone(), large.clone());
        let fake = Fake::start(move |asked| {
            if asked.path.ends_with(&name) && !broken.swap(true, Ordering::Relaxed) {
                let bytes = &ours.blobs[&name];
                return pieces(Some(bytes.len()), bytes[..200_000].to_vec(), Then::BreakOff);
            }
            let asked = Asked { range: asked.range.clone().filter(|_| !ignores_ranges), ..asked.clone() };
            honest(&ours, &asked)
        })
        .await;
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let pulled = impatient().pull(&store, pull(&fake.name()), Seen::default().watch()).await.unwrap();
        assert_eq!(pulled.digest.to_string(), image.digest());
        let ranges: Vec<_> = fake
            .asked()
            .into_iter()
            .filter(|asked| asked.path.ends_with(&large))
            .map(|asked| asked.range)
            .collect();
        assert_eq!(ranges.len(), 2, "{ranges:?}");
        let start: usize = ranges[1].as_ref().unwrap()[6..].split('-').next().unwrap().parse().unwrap();
        assert!(start > 0 && start <= 200_000, "{start}");
    }
}

/// A registry that falls silent in the middle of the large layer until it is told to go on.
async fn halting(image: &Fixture) -> (Fake, Arc<AtomicBool>) {
    let halts = Arc::new(AtomicBool::new(true));
    let (ours, flag) = (image.clone(), Arc::clone(&halts));
    let fake = Fake::start(move |asked| {
        if asked.path.ends_with(&ours.layers[2]) && flag.load(Ordering::Relaxed) {
            let bytes = &ours.blobs[&ours.layers[2]];
            return pieces(Some(bytes.len()), bytes[..300_000].to_vec(), Then::Silence);
        }
        honest(&ours, asked)
    })
    .await;
    (fake, halts)
}

#[tokio::test]
async fn a_pull_that_was_stopped_is_gone_on_with() {
    let image = Fixture::new(1);
    let (fake, halts) = halting(&image).await;
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let (moved, mut moves) = tokio::sync::mpsc::unbounded_channel();
    let watch = Arc::new(move |transfer: beta9_registry::Transfer| {
        let _ = moved.send((transfer.digest.to_string(), transfer.done));
    });
    let registries = beta9_registry::Registries::default();
    {
        let pulling = registries.pull(&store, pull(&fake.name()), watch);
        tokio::pin!(pulling);
        loop {
            tokio::select! {
                done = &mut pulling => panic!("it ended: {:?}", done.map(|image| image.digest)),
                moved = moves.recv() => {
                    let (digest, done) = moved.unwrap();
                    if digest == image.layers[2] && done >= 200_000 {
                        break;
                    }
                }
            }
        }
    }
    assert!(store.list().unwrap().is_empty());
    halts.store(false, Ordering::Relaxed);
    registries.pull(&store, pull(&fake.name()), Seen::default().watch()).await.unwrap();
    let asked: Vec<_> =
        fake.asked().into_iter().filter(|asked| asked.path.ends_with(&image.layers[2])).collect();
    assert!(asked[1].range.as_ref().is_some_and(|range| range != "bytes=0-"), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_of_one_image_do_the_work_once() {
    let image = Fixture::new(1);
    let ours = image.clone();
    let fake = Arc::new(Fake::start(move |asked| honest(&ours, asked)).await);
    let directory: Arc<TempDir> = Arc::new(tempfile::tempdir().unwrap());
    let mut pulling = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (fake, directory) = (Arc::clone(&fake), Arc::clone(&directory));
        pulling.spawn(async move {
            // As another process would.
            let store = Store::open(directory.path()).unwrap();
            beta9_registry::Registries::default()
                .pull(&store, pull(&fake.name()), Seen::default().watch())
                .await
                .unwrap()
        });
    }
    while let Some(pulled) = pulling.join_next().await {
        assert_eq!(pulled.unwrap().digest.to_string(), image.digest());
    }
    for blob in image.blobs.keys() {
        assert_eq!(fake.count(blob), 1, "{blob}");
    }
}

#[tokio::test]
async fn a_busy_registry_is_asked_again() {
    let image = Fixture::new(1);
    let asked_before = std::sync::Mutex::new(std::collections::HashSet::new());
    let ours = image.clone();
    let fake = Fake::start(move |asked| {
        // Of each thing once: layers are fetched side by side, and in no order.
        if asked_before.lock().unwrap().insert(asked.path.clone()) {
            full(503, "")
        } else {
            honest(&ours, asked)
        }
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    impatient().pull(&store, pull(&fake.name()), Seen::default().watch()).await.unwrap();
    let error =
        refused(|_| full(429, r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#)).await;
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.chain().contains("slow down"), "{}", error.chain());
}

#[tokio::test]
async fn an_index_is_read_for_the_platform() {
    let (arm, ours) = (Fixture::new(1), Fixture::new(2));
    let entry = |image: &Fixture, architecture: &str| {
        serde_json::json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": image.digest(), "size": image.manifest.len(),
            "platform": { "os": "linux", "architecture": architecture },
        })
    };
    let list = [entry(&arm, "s390x"), entry(&ours, &common::architecture())];
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": list }).to_string();
    let (first, second) = (arm.clone(), ours.clone());
    let fake = Fake::start(move |asked| {
        if asked.path.ends_with("/v1") {
            return full(200, index.clone());
        }
        let is_first = asked.path.ends_with(&first.digest())
            || first.blobs.keys().any(|blob| asked.path.ends_with(blob.as_str()));
        honest(if is_first { &first } else { &second }, asked)
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let pulled = impatient().pull(&store, pull(&fake.name()), Seen::default().watch()).await.unwrap();
    assert_eq!(pulled.digest.to_string(), ours.digest());
    let other = |platform: &str| Pull { platform: platform.parse().unwrap(), ..pull(&fake.name()) };
    let error = impatient().pull(&store, other("linux/riscv64"), Seen::default().watch()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.chain().contains("linux/s390x"), "{}", error.chain());
    // The index and the configuration disagree about what it is.
    let error = impatient().pull(&store, other("linux/s390x"), Seen::default().watch()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(store.list().unwrap().len(), 1);
    assert_eq!(digest(&ours.manifest), store.list().unwrap()[0].digest.to_string());
}
