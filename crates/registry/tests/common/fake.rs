//! A registry on loopback that answers as a test tells it to.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::RANGE;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::Fixture;

pub type Body = BoxBody<Bytes, std::io::Error>;

/// One request as it arrived.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub query: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
}

/// A server that goes with the test's runtime.
pub struct Fake {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Fake {
    pub async fn start(answer: impl Fn(&Asked) -> Response<Body> + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1", answer).await
    }

    pub async fn start_at(
        host: &str,
        answer: impl Fn(&Asked) -> Response<Body> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((host, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (answer, seen) = (Arc::new(answer), Arc::clone(&asked));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, seen) = (Arc::clone(&answer), Arc::clone(&seen));
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    let text = |name| {
                        request
                            .headers()
                            .get(name)
                            .map(|value: &hyper::header::HeaderValue| value.to_str().unwrap().to_owned())
                    };
                    let asked = Asked {
                        method: request.method().to_string(),
                        path: request.uri().path().to_owned(),
                        query: request.uri().query().unwrap_or_default().to_owned(),
                        range: text(RANGE),
                        authorization: text(hyper::header::AUTHORIZATION),
                    };
                    seen.lock().unwrap().push(asked.clone());
                    let response = answer(&asked);
                    async move { Ok::<_, Infallible>(response) }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { address, asked }
    }

    /// A name on this registry.
    pub fn name(&self) -> String {
        format!("{}/test/image:v1", self.address)
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// How often a blob was asked for.
    pub fn count(&self, digest: &str) -> usize {
        self.asked().iter().filter(|asked| asked.path.ends_with(digest)).count()
    }
}

pub fn full(status: u16, bytes: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(bytes.into()).map_err(|never| match never {}).boxed();
    Response::builder().status(status).body(body).unwrap()
}

pub fn redirect(to: &str) -> Response<Body> {
    let mut response = full(307, "");
    response.headers_mut().insert("location", to.parse().unwrap());
    response
}

/// What an honest registry answers.
pub fn honest(image: &Fixture, asked: &Asked) -> Response<Body> {
    let Some(rest) = asked.path.strip_prefix("/v2/test/image/") else { return full(404, "") };
    if rest.starts_with("manifests/") {
        return full(200, image.manifest.clone());
    }
    let digest = rest.trim_start_matches("blobs/");
    let Some(bytes) = image.blobs.get(digest) else { return full(404, "") };
    match start_of(asked) {
        Some(start) => {
            let mut response = full(206, bytes[start..].to_vec());
            let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
            response.headers_mut().insert("content-range", range.parse().unwrap());
            response
        }
        None => full(200, bytes.clone()),
    }
}

pub fn start_of(asked: &Asked) -> Option<usize> {
    asked.range.as_ref()?.strip_prefix("bytes=")?.split('-').next()?.parse().ok()
}

/// What comes in pieces: some bytes, then silence, the end, or more of it.
pub enum Then {
    BreakOff,
    Silence,
    Zeros,
    Drip,
}

/// Announces `length` where there is one, sends `first`, and goes on as it is told.
pub fn pieces(length: Option<usize>, first: Vec<u8>, then: Then) -> Response<Body> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let frame = |bytes: Vec<u8>| Ok(Frame::data(Bytes::from(bytes)));
        if sender.send(frame(first)).await.is_err() {
            return;
        }
        loop {
            match then {
                Then::BreakOff => {
                    let _ = sender.send(Err(std::io::Error::other("broken off"))).await;
                    return;
                }
                Then::Silence => return sender.closed().await,
                Then::Zeros if sender.send(frame(vec![0; 64 << 10])).await.is_err() => return,
                Then::Zeros => {}
                Then::Drip => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    if sender.send(frame(vec![0])).await.is_err() {
                        return;
                    }
                }
            }
        }
    });
    let mut response = Response::builder().status(StatusCode::OK);
    if let Some(length) = length {
        response = response.header("content-length", length);
    }
    response.body(BodyExt::boxed(StreamBody::new(ReceiverStream::new(receiver)))).unwrap()
}
