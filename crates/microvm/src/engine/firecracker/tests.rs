use std::sync::{Arc, Mutex};

use beta9_types::ContainerId;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::UnixListener;

use super::*;
use crate::engine::{Balloon, DiskLimit, Drive as VmDrive, DriveAccess, NetworkDevice, VmDirectory};

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
        disk_limit: DiskLimit::default(),
        balloon: Balloon::Present,
        console: Console::Quiet,
    }
}

/// An API that writes down what it is told and refuses `refused`.
fn serve(directory: &VmDirectory, refused: &'static str) -> Arc<Mutex<String>> {
    serve_as("1.13.1", directory, refused)
}

/// The same, of a release.
fn serve_as(version: &'static str, directory: &VmDirectory, refused: &'static str) -> Arc<Mutex<String>> {
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
                    "/version" => (200, format!(r#"{{"firecracker_version":"{version}"}}"#)),
                    path if path == refused => (400, r#"{"fault_message":"no such\nthing"}"#.to_owned()),
                    _ => (204, String::new()),
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

#[test]
fn a_limit_that_is_lifted_is_a_bucket_without_size() {
    let limit = DiskLimit { bytes: Some(4096), operations: None };
    let text = serde_json::to_string(&DriveUpdate::of("d1", limit)).unwrap();
    assert_eq!(
        text,
        r#"{"drive_id":"d1","rate_limiter":{"bandwidth":{"size":4096,"refill_time":1000},"ops":{"size":0,"refill_time":0}}}"#
    );
}

/// What is said to a release that answers `GET /version` with this, or why nothing is.
async fn said_to(version: &'static str) -> std::result::Result<String, String> {
    let root = tempfile::tempdir().unwrap();
    let config = config(root.path());
    let appearing = Appearance::of(&config.directory, API_SOCKET).unwrap();
    let heard = serve_as(version, &config.directory, "");
    let engine = Firecracker::new(&RuntimeSettings::default());
    let driven = engine.drive(&config, appearing).await;
    driven.map(|_| heard.lock().unwrap().clone()).map_err(|error| error.to_string())
}

#[tokio::test(flavor = "current_thread")]
async fn a_release_is_told_what_it_knows_and_one_too_old_nothing() {
    let balloon = |said: String| said.lines().find(|line| line.contains("/balloon")).unwrap().to_owned();
    let old = balloon(said_to("1.13.1").await.unwrap());
    assert_eq!(old, r#"PUT /balloon {"amount_mib":0,"deflate_on_oom":true}"#);
    let new = balloon(said_to("1.16.1").await.unwrap());
    assert_eq!(new, r#"PUT /balloon {"amount_mib":0,"deflate_on_oom":true,"free_page_reporting":true}"#);
    let refused = said_to("1.9.1").await.unwrap_err();
    assert_eq!(refused, "firecracker 1.9.1 is not supported; install 1.13.1 to 1.16.1");
    assert!(said_to("next").await.unwrap_err().contains("calls itself"));
}

/// What `fields.txt` says of a definition in a release: its fields, and those that it cannot do without.
fn fields(version: &str, definition: &str) -> (Vec<String>, Vec<String>) {
    let lines = include_str!("fields.txt").lines();
    let line = lines.filter_map(|line| line.strip_prefix(version)?.trim_start().strip_prefix(definition));
    let line = line.into_iter().find(|rest| rest.starts_with(' ')).unwrap();
    let names = |text: &str| text.trim_end_matches('*').to_owned();
    let required = line.split_whitespace().filter(|name| name.ends_with('*')).map(names).collect();
    (line.split_whitespace().map(names).collect(), required)
}

#[test]
fn nothing_is_said_that_a_release_does_not_know() {
    use serde_json::{Value, to_value};
    let root = tempfile::tempdir().unwrap();
    let config = config(root.path());
    let names = Names::on_host(&config);
    let limit = DiskLimit { bytes: Some(1), operations: Some(1) };
    let drive = to_value(Drive::of("d0", &names.drives[0], &config.drives[0], limit)).unwrap();
    let limiter = drive["rate_limiter"].clone();
    let said: Vec<(&str, Value)> = vec![
        ("MachineConfiguration", to_value(MachineConfig::of(&config)).unwrap()),
        ("BootSource", to_value(BootSource::of(&names, "quiet")).unwrap()),
        ("TokenBucket", limiter["bandwidth"].clone()),
        ("RateLimiter", limiter),
        ("PartialDrive", to_value(DriveUpdate::of("d0", limit)).unwrap()),
        ("Drive", drive),
        ("Vsock", to_value(Vsock { guest_cid: GUEST_CID, uds_path: &names.vsock }).unwrap()),
        ("EntropyDevice", to_value(Entropy {}).unwrap()),
        ("BalloonUpdate", to_value(BalloonUpdate { amount_mib: 1 }).unwrap()),
        ("InstanceActionInfo", to_value(Action::INSTANCE_START).unwrap()),
    ];
    for version in ["1.13.1", "1.16.1"] {
        let balloon = to_value(BalloonDevice::of(Version::parse(version).unwrap())).unwrap();
        for (definition, value) in said.iter().chain(&[("Balloon", balloon)]) {
            let (known, required) = fields(version, definition);
            let object = value.as_object().unwrap();
            for name in object.keys() {
                assert!(known.contains(name), "{definition} of {version} has no {name}");
            }
            for name in &required {
                assert!(object.contains_key(name), "{definition} of {version} needs {name}");
            }
        }
    }
}

/// `BETA9_FIRECRACKER_OPENAPI` is a directory with `<version>.yaml`, Firecracker's own documents.
#[test]
fn the_table_of_fields_is_firecrackers_own() {
    let Some(directory) = std::env::var_os("BETA9_FIRECRACKER_OPENAPI").map(PathBuf::from) else {
        return eprintln!("skipped: BETA9_FIRECRACKER_OPENAPI does not say where the documents are");
    };
    for line in include_str!("fields.txt").lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split_whitespace();
        let (version, definition) = (words.next().unwrap(), words.next().unwrap());
        let document = std::fs::read_to_string(directory.join(format!("{version}.yaml"))).unwrap();
        let (mut known, mut required) = in_document(&document, definition);
        let (mut expected, mut needed) = fields(version, definition);
        [&mut known, &mut required, &mut expected, &mut needed].into_iter().for_each(|names| names.sort());
        assert_eq!((known, required), (expected, needed), "{definition} of {version}");
    }
}

/// Reads `properties` and `required` of a definition by its indentation, which is that of the whole document.
fn in_document(document: &str, definition: &str) -> (Vec<String>, Vec<String>) {
    let (_, definitions) = document.split_once("\ndefinitions:\n").unwrap();
    let (_, body) = definitions.split_once(&format!("\n  {definition}:\n")).unwrap();
    let is_inside = |line: &&str| line.starts_with("    ") || line.trim().is_empty();
    let (mut section, mut known, mut required) = ("", Vec::new(), Vec::new());
    for line in body.lines().take_while(is_inside) {
        let indent = line.len() - line.trim_start().len();
        match (indent, section) {
            (4, _) => section = line.trim().trim_end_matches(':'),
            (6, "properties") if line.ends_with(':') && !line.contains('#') => {
                known.push(line.trim().trim_end_matches(':').to_owned())
            }
            (6, "required") => required.extend(line.trim().strip_prefix("- ").map(str::to_owned)),
            _ => {}
        }
    }
    (known, required)
}
