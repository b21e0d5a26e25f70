//! HTTP to one registry: where requests may go, and how long everything may take.

use std::sync::Arc;
use std::time::Duration;

use beta9_types::{RegistryHost, RegistrySettings};
use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Client, Method, Response, StatusCode, Url, redirect};
use tokio::time::{Instant, timeout, timeout_at};

use crate::reach::{Filtered, Reach, too_near};
use crate::{Error, ErrorKind, Result, tls};

/// What a user agent is called in registries' logs.
const USER_AGENT: &str = concat!("beta9-worker/", env!("CARGO_PKG_VERSION"));
/// Where the API of the default registry is: its name is a web site.
const DEFAULT_API: &str = "registry-1.docker.io";
/// Redirects in a row. Registries need one.
const MAX_REDIRECTS: usize = 5;
/// Bytes that must arrive within [`Waits::idle`]: a registry that drips is as useless as one that is silent.
const PACE: usize = 16 << 10;

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Waits {
    /// Until a connection is there.
    pub connect: Duration,
    /// Without an answer, or without 16 KiB of one.
    pub idle: Duration,
    /// Before the first retry; each further one waits twice as long.
    pub retry: Duration,
}

impl Default for Waits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { connect: seconds(10), idle: seconds(30), retry: Duration::from_millis(500) }
    }
}

/// Requests to one registry.
pub(crate) struct Transport {
    base: Url,
    reach: Reach,
    is_plain: bool,
    /// For the registry itself.
    near: Client,
    /// For where it sends us.
    far: Client,
    pub(crate) waits: Waits,
}

/// An answer, and whether the registry itself gave it.
pub(crate) struct Answer {
    pub(crate) response: Response,
    pub(crate) is_registrys: bool,
}

impl Transport {
    /// Prepares requests. `plain` is what the caller says about TLS; the settings' word counts where it says nothing.
    pub(crate) async fn open(
        host: &RegistryHost,
        settings: &RegistrySettings,
        plain: Option<bool>,
        waits: Waits,
    ) -> Result<Self> {
        let is_plain = plain.or(settings.plain_http).unwrap_or(host.is_loopback());
        let scheme = if is_plain { "http" } else { "https" };
        let address = if host.as_str() == "docker.io" { DEFAULT_API } else { host.as_str() };
        let base = Url::parse(&format!("{scheme}://{address}/")).map_err(|e| {
            Error::caused(ErrorKind::Invalid, format!("registry {host} has no usable address"), e)
        })?;
        let reach = reach_of(&base, waits).await;
        let tls = tls::client(settings.ca_file.as_deref())?;
        let builder = || {
            let builder = Client::builder()
                .user_agent(USER_AGENT)
                .redirect(redirect::Policy::none())
                .connect_timeout(waits.connect)
                .pool_idle_timeout(Duration::from_secs(15))
                .referer(false)
                .http1_only()
                .tls_backend_preconfigured(tls.clone());
            // What is on this machine is not behind a proxy.
            if reach == Reach::Loopback { builder.no_proxy() } else { builder }
        };
        let failed = |e| Error::caused(ErrorKind::Invalid, "cannot set up HTTP", e);
        let near = builder().build().map_err(failed)?;
        let far = builder().dns_resolver(Arc::new(Filtered { from: reach })).build().map_err(failed)?;
        Ok(Self { base, reach, is_plain, near, far, waits })
    }

    /// An address of the registry's API, below `/v2/`.
    pub(crate) fn url(&self, path: &str) -> Result<Url> {
        let joined = self.base.join(&format!("v2/{path}"));
        joined.map_err(|e| Error::caused(ErrorKind::Invalid, format!("no address for {path:?}"), e))
    }

    /// An address that the registry names, such as where an upload goes on.
    pub(crate) fn named(&self, from: &Url, location: &str) -> Result<Url> {
        let url = from.join(location).map_err(|e| {
            Error::caused(
                ErrorKind::Protocol,
                format!("the registry names the address {}", shown(location)),
                e,
            )
        })?;
        self.check(&url)?;
        Ok(url)
    }

    /// Whether an address is the registry's own, where its credentials may go.
    pub(crate) fn is_registrys(&self, url: &Url) -> bool {
        url.origin() == self.base.origin()
    }

    /// Refuses an address that the registry has no business to send us to.
    fn check(&self, url: &Url) -> Result<()> {
        if self.is_registrys(url) {
            return Ok(());
        }
        let allowed = url.scheme() == "https" || (url.scheme() == "http" && self.is_plain);
        if !allowed {
            let message = format!(
                "the registry points to {}, and only https is followed; this is not",
                shown(url.as_str())
            );
            return Err(Error::new(ErrorKind::Protocol, message));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Error::new(
                ErrorKind::Protocol,
                "the registry points to an address with a password in it",
            ));
        }
        // A name is checked when it is resolved.
        let text = url.host_str().unwrap_or_default();
        let literal = text.trim_start_matches('[').trim_end_matches(']');
        match literal.parse() {
            Ok(address) if !self.reach.may_send_to(Reach::of(address)) => Err(too_near(text)),
            _ => Ok(()),
        }
    }

    /// Sends one request and follows no redirect. Credentials go to the registry itself and to nobody else.
    pub(crate) async fn once(
        &self,
        method: Method,
        url: Url,
        headers: HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer> {
        let is_registrys = self.is_registrys(&url);
        let mut request = self.client(&url).request(method, url.clone()).headers(headers);
        if let Some(value) = authorization.filter(|_| is_registrys) {
            request = request.header(AUTHORIZATION, value);
        }
        let sent = timeout(self.waits.connect + self.waits.idle, request.send()).await;
        let response = sent.map_err(|_| self.silent(&url))?.map_err(|e| send_error(&url, e))?;
        Ok(Answer { response, is_registrys })
    }

    /// The client for that address, which must have passed the checks.
    pub(crate) fn client(&self, url: &Url) -> &Client {
        if self.is_registrys(url) { &self.near } else { &self.far }
    }

    /// Reads from the registry, or from where it sends us.
    pub(crate) async fn get(
        &self,
        method: Method,
        mut url: Url,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer> {
        for _ in 0..=MAX_REDIRECTS {
            let answer = self.once(method.clone(), url.clone(), headers.clone(), authorization).await?;
            let status = answer.response.status();
            let follow = matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308);
            let Some(location) = answer.response.headers().get(LOCATION).filter(|_| follow) else {
                return Ok(answer);
            };
            let location = String::from_utf8_lossy(location.as_bytes()).into_owned();
            url = self.named(&url, &location)?;
        }
        let message = format!("the registry redirects more than {MAX_REDIRECTS} times");
        Err(Error::new(ErrorKind::Protocol, message))
    }

    /// The address for a token, which gets credentials: the registry's word for it, under the rules of a redirect.
    pub(crate) fn realm(&self, realm: &str) -> Result<Url> {
        let url = Url::parse(realm).map_err(|e| {
            let message = format!("the registry wants tokens from {}", shown(realm));
            Error::caused(ErrorKind::Protocol, message, e)
        })?;
        self.check(&url)?;
        Ok(url)
    }

    /// Reads a small answer whole.
    pub(crate) async fn read(&self, mut response: Response, cap: usize, what: &str) -> Result<Vec<u8>> {
        let too_large = || {
            let message = format!("the registry's {what} is larger than {} KiB", cap >> 10);
            Error::new(ErrorKind::Limit, message)
        };
        if response.content_length().is_some_and(|length| length > cap as u64) {
            return Err(too_large());
        }
        let url = response.url().clone();
        let deadline = Instant::now() + self.waits.idle;
        let mut bytes = Vec::new();
        loop {
            let chunk = timeout_at(deadline, response.chunk()).await.map_err(|_| self.silent(&url))?;
            match chunk.map_err(|e| broken(&url, e))? {
                Some(chunk) if bytes.len() + chunk.len() > cap => return Err(too_large()),
                Some(chunk) => bytes.extend_from_slice(&chunk),
                None => return Ok(bytes),
            }
        }
    }

    pub(crate) fn silent(&self, url: &Url) -> Error {
        let message = format!(
            "{} did not answer for {} s, or too slowly; try again later",
            origin(url),
            self.waits.idle.as_secs_f32()
        );
        Error::new(ErrorKind::Timeout, message)
    }
}

/// A large answer, piece by piece, at no less than a snail's pace.
pub(crate) struct Stream<'t> {
    transport: &'t Transport,
    response: Response,
    deadline: Instant,
    since: usize,
}

impl<'t> Stream<'t> {
    pub(crate) fn new(transport: &'t Transport, response: Response) -> Self {
        Self { transport, response, deadline: Instant::now() + transport.waits.idle, since: 0 }
    }

    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>> {
        let url = self.response.url().clone();
        let chunk = timeout_at(self.deadline, self.response.chunk()).await;
        let chunk = chunk.map_err(|_| self.transport.silent(&url))?.map_err(|e| broken(&url, e))?;
        self.since += chunk.as_ref().map_or(0, Bytes::len);
        if self.since >= PACE {
            self.rest();
        }
        Ok(chunk)
    }

    /// The time until now is not the registry's fault.
    pub(crate) fn rest(&mut self) {
        self.since = 0;
        self.deadline = Instant::now() + self.transport.waits.idle;
    }
}

async fn reach_of(base: &Url, waits: Waits) -> Reach {
    let host = base.host_str().unwrap_or_default();
    let literal = host.trim_start_matches('[').trim_end_matches(']');
    let port = base.port_or_known_default().unwrap_or(443);
    match timeout(waits.connect, tokio::net::lookup_host((literal, port))).await {
        Ok(Ok(found)) => found.map(|address| Reach::of(address.ip())).max().unwrap_or(Reach::Public),
        // A proxy may know the name; what it does not know fails when it is connected to.
        _ => Reach::Public,
    }
}

/// Scheme, host and port: addresses of blobs carry signatures that are nobody's business.
pub(crate) fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// Host and port, as names of images have them.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// What a registry says, in a message: short, on one line, without a query.
pub(crate) fn shown(text: &str) -> String {
    let text = text.split('?').next().unwrap_or_default();
    let clean: String = text.chars().filter(|c| !c.is_control()).take(120).collect();
    format!("{clean:?}")
}

/// The request could not be made, or was not answered.
pub(crate) fn send_error(url: &Url, error: reqwest::Error) -> Error {
    let error = error.without_url();
    if let Some(refusal) = refusal(&error) {
        return refusal;
    }
    if error.is_connect() || error.is_timeout() {
        let message = format!("cannot connect to {}", origin(url));
        return Error::caused(ErrorKind::Unreachable, message, error);
    }
    Error::caused(ErrorKind::Interrupted, format!("{} did not answer", origin(url)), error)
}

fn broken(url: &Url, error: reqwest::Error) -> Error {
    let message = format!("{} broke off in the middle of an answer", origin(url));
    Error::caused(ErrorKind::Interrupted, message, error.without_url())
}

/// One of our own refusals that travelled through the HTTP client.
fn refusal(error: &reqwest::Error) -> Option<Error> {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(own) = cause.downcast_ref::<Error>() {
            return Some(Error::new(own.kind(), own.to_string()));
        }
        source = cause.source();
    }
    None
}

/// Turns an answer that is not a success into an error, with the registry's own words.
pub(crate) async fn refused(transport: &Transport, response: Response, what: &str) -> Error {
    const MAX_WORDS: usize = 64 << 10;
    let (status, url) = (response.status(), response.url().clone());
    let words = transport.read(response, MAX_WORDS, "error").await.ok().and_then(|bytes| words(&bytes));
    let words = words.map_or_else(String::new, |words| format!(" ({words})"));
    let host = authority(&url);
    let (kind, message) = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => (
            ErrorKind::Unauthorized,
            format!("{host} does not allow {what}{words}; `beta9-worker login` stores credentials"),
        ),
        StatusCode::NOT_FOUND => (ErrorKind::NotFound, format!("{host} has no {what}{words}")),
        StatusCode::TOO_MANY_REQUESTS => {
            (ErrorKind::Busy, format!("{host} wants fewer requests{words}; log in or try again later"))
        }
        StatusCode::REQUEST_TIMEOUT => (ErrorKind::Busy, format!("{host} gave up on {what}{words}")),
        status if status.is_server_error() => {
            (ErrorKind::Busy, format!("{host} answered {status} for {what}{words}; try again later"))
        }
        status => (ErrorKind::Protocol, format!("{host} answered {status} for {what}{words}")),
    };
    Error::new(kind, message)
}

/// The first error of a registry's answer (OCI distribution specification, "Error Codes").
fn words(bytes: &[u8]) -> Option<String> {
    let answer: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    let first = answer.get("errors")?.get(0)?;
    let field = |name: &str| first.get(name).and_then(serde_json::Value::as_str).unwrap_or_default();
    let text = format!("{} {}", field("code"), field("message"));
    let clean: String = text.chars().filter(|c| !c.is_control()).take(160).collect();
    Some(clean.trim().to_owned()).filter(|text| !text.is_empty())
}
