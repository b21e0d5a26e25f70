use std::sync::{Arc, Mutex};

use beta9_types::ContainerId;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::UnixListener;

use super::*;
use crate::engine::{Drive as VmDrive, DriveAccess, NetworkDevice, VmDirectory};

fn config(root: &std::path::Path) -> VmConfig {
    let id = ContainerId::parse("c1").unwrap();
    VmConfig {
        id: id.vm_id(),
        directory: VmDirectory::create(root, &id).unwrap(),
        kernel: "/k/vmlinux".into(),
        initrd: "/k/initrd.img".into(),
        cpus: 2,
        mem_mib: 640,
        drives: vec![
            VmDrive { path: "/images/a".into(), access: DriveAccess::ReadOnly },
            VmDrive { path: "/c1/scratch".into(), access: DriveAccess::Scratch },
        ],
        network: Some(NetworkDevice {
            tap: "b9fc_01234567".into(),
            mac: "02:b9:c0:a8:00:02".parse().unwrap(),
        }),
        console: Console::Quiet,
    }
}

/// An API that writes down what it is told and refuses `refused`.
fn serve(directory: &VmDirectory, refused: &'static str) -> Arc<Mutex<String>> {
    let listener = UnixListener::bind(directory.reach(API_SOCKET)).unwrap();
    let heard = Arc::new(Mutex::new(String::new()));
    let shared = Arc::clone(&heard);
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let answer = |request: Request<Incoming>| {
            let shared = Arc::clone(&shared);
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let path = parts.uri.path().to_owned();
                let line = format!("{} {path} {}\n", parts.method, String::from_utf8_lossy(&body));
                shared.lock().unwrap().push_str(&line);
                let (status, body) = match path.as_str() {
                    "/version" => (200, r#"{"firecracker_version":"1.13.1"}"#),
                    path if path == refused => (400, r#"{"fault_message":"no such\nthing"}"#),
                    _ => (204, ""),
                };
                Response::builder().status(status).body(Full::new(Bytes::from(body)))
            }
        };
        let connection = hyper::server::conn::http1::Builder::new();
        let _ = connection.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
    });
    heard
}

#[tokio::test(flavor = "current_thread")]
async fn a_vm_is_described_in_this_order() {
    let root = tempfile::tempdir().unwrap();
    let config = config(root.path());
    let appearing = Appearance::of(&config.directory, API_SOCKET).unwrap();
    let heard = serve(&config.directory, "");
    Firecracker::new(&RuntimeSettings::default()).drive(&config, appearing).await.unwrap();
    insta::assert_snapshot!(heard.lock().unwrap().clone());
}

#[tokio::test(flavor = "current_thread")]
async fn a_refusal_is_repeated_in_firecrackers_words() {
    let root = tempfile::tempdir().unwrap();
    let config = config(root.path());
    let appearing = Appearance::of(&config.directory, API_SOCKET).unwrap();
    serve(&config.directory, "/vsock");
    let engine = Firecracker::new(&RuntimeSettings::default());
    let error = engine.drive(&config, appearing).await.unwrap_err();
    assert_eq!(error.to_string(), "firecracker PUT /vsock was refused: no such thing");
}
