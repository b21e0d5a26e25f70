//! HTTP over Firecracker's Unix socket: one connection, one request at a time, each with a deadline.

use std::io::ErrorKind as IoErrorKind;
use std::path::Path;
use std::time::Duration;

use beta9_runtime::{Error, ErrorKind, Result};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use super::Version;
use super::api::{Fault, VersionAnswer};

/// Longest answer that is read. Real ones are a few hundred bytes.
const MAX_ANSWER: usize = 64 << 10;
/// The socket exists a moment before it listens.
const RETRY: [Duration; 4] =
    [Duration::from_millis(1), Duration::from_millis(2), Duration::from_millis(5), Duration::from_millis(5)];

#[derive(Debug)]
pub(super) struct Client {
    requests: SendRequest<Full<Bytes>>,
    deadline: Duration,
}

impl Client {
    /// Connects to a socket that exists.
    pub(super) async fn connect(socket: &Path, deadline: Duration) -> Result<Self> {
        let failed = |e| Error::caused(ErrorKind::Failed, "connect to firecracker's API", e);
        let mut pauses = RETRY.iter();
        let stream = loop {
            match (UnixStream::connect(socket).await, pauses.next()) {
                (Ok(stream), _) => break stream,
                (Err(e), Some(pause)) if e.kind() == IoErrorKind::ConnectionRefused => sleep(*pause).await,
                (Err(e), _) => return Err(failed(e)),
            }
        };
        let (requests, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|e| Error::caused(ErrorKind::Failed, "speak to firecracker's API", e))?;
        // It ends with `requests`; what went wrong on it is also the answer to the request under way.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Self { requests, deadline })
    }

    /// `GET /version`
    pub(super) async fn version(&mut self) -> Result<Version> {
        let body = self.call(Method::GET, "/version", Bytes::new()).await?;
        let answer: VersionAnswer = serde_json::from_slice(&body)
            .map_err(|e| Error::caused(ErrorKind::Failed, "read firecracker's answer to GET /version", e))?;
        Version::parse(&answer.firecracker_version)
    }

    /// `GET /`: the VMM itself has to answer it, not only its API's thread.
    pub(super) async fn describe_instance(&mut self) -> Result<()> {
        self.call(Method::GET, "/", Bytes::new()).await.map(drop)
    }

    /// `PUT path` with a JSON body.
    pub(super) async fn put(&mut self, path: &str, body: &impl Serialize) -> Result<()> {
        let body = serde_json::to_vec(body)
            .map_err(|e| Error::caused(ErrorKind::Failed, format!("encode the body of PUT {path}"), e))?;
        self.call(Method::PUT, path, body.into()).await.map(drop)
    }

    /// `PATCH path` with a JSON body.
    pub(super) async fn patch(&mut self, path: &str, body: &impl Serialize) -> Result<()> {
        let body = serde_json::to_vec(body)
            .map_err(|e| Error::caused(ErrorKind::Failed, format!("encode the body of PATCH {path}"), e))?;
        self.call(Method::PATCH, path, body.into()).await.map(drop)
    }

    async fn call(&mut self, method: Method, path: &str, body: Bytes) -> Result<Bytes> {
        let call = format!("firecracker {method} {path}");
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("Host", "localhost")
            .header("Accept", "application/json")
            .header("Content-Type", "application/json")
            .body(Full::new(body))
            .map_err(|e| Error::caused(ErrorKind::Failed, call.clone(), e))?;
        let answer = timeout(self.deadline, async {
            let answer = self.requests.send_request(request).await;
            let answer = answer.map_err(|e| Error::caused(ErrorKind::Failed, call.clone(), e))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
            let body = body.map_err(|e| Error::caused(ErrorKind::Failed, call.clone(), e))?.to_bytes();
            Ok((status, body))
        });
        let (status, body) = answer.await.map_err(|_| {
            let seconds = self.deadline.as_secs();
            Error::new(ErrorKind::Timeout, format!("{call} was not answered within {seconds} s"))
        })??;
        match status {
            StatusCode::OK | StatusCode::NO_CONTENT => Ok(body),
            _ => Err(Error::new(ErrorKind::Failed, format!("{call} was refused: {}", fault(status, &body)))),
        }
    }
}

/// Firecracker's own words where it has any.
fn fault(status: StatusCode, body: &[u8]) -> String {
    match serde_json::from_slice::<Fault>(body) {
        Ok(fault) => fault.fault_message.replace('\n', " "),
        Err(_) => format!("{status} {}", String::from_utf8_lossy(&body[..body.len().min(200)])),
    }
}
