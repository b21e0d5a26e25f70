//! Showing a registry who we are (the distribution project's token specification, RFC 7235).
//!
//! Only the registry's own challenges are answered: an address that it redirects to gets neither credentials nor tokens
//! and cannot ask for them. What tokens are for is what we say, never what the challenge says.

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::credentials::{Credentials, header};
use crate::transport::{Transport, origin, refused, send_error};
use crate::{Error, ErrorKind, Result};

/// Largest answer of a token service.
const MAX_TOKEN: usize = 64 << 10;
/// Longest challenge that is read.
const MAX_CHALLENGE: usize = 8 << 10;

/// Requests to one registry about one repository, by one user.
pub(crate) struct Session {
    pub(crate) transport: Transport,
    credentials: Option<Credentials>,
    /// What tokens are asked for; nothing in particular where absent.
    scope: Option<String>,
    authorization: Mutex<Option<HeaderValue>>,
}

/// How a registry wants to be shown who somebody is.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

impl Session {
    pub(crate) fn new(transport: Transport, credentials: Option<Credentials>, scope: Option<String>) -> Self {
        Self { transport, credentials, scope, authorization: Mutex::default() }
    }

    /// Reads from the registry; an answer that is no success is an error. `what` finishes "the registry has no …".
    pub(crate) async fn get(
        &self,
        method: Method,
        url: Url,
        headers: &HeaderMap,
        what: &str,
    ) -> Result<Response> {
        let used = self.authorization().await;
        let answer = self.transport.get(method.clone(), url.clone(), headers, used.as_ref()).await?;
        let status = answer.response.status();
        if status == StatusCode::UNAUTHORIZED && answer.is_registrys {
            let authorization = self.authorize(answer.response, used, what).await?;
            let answer = self.transport.get(method, url, headers, Some(&authorization)).await?;
            return self.succeed(answer.response, what).await;
        }
        self.succeed(answer.response, what).await
    }

    /// Sends a request without a body that changes something on the registry, which redirects none of those.
    pub(crate) async fn send(
        &self,
        method: Method,
        url: Url,
        headers: &HeaderMap,
        what: &str,
    ) -> Result<Response> {
        let used = self.authorization().await;
        let answer = self.transport.once(method.clone(), url.clone(), headers.clone(), used.as_ref()).await?;
        if answer.response.status() == StatusCode::UNAUTHORIZED && answer.is_registrys {
            let authorization = self.authorize(answer.response, used, what).await?;
            let answer = self.transport.once(method, url, headers.clone(), Some(&authorization)).await?;
            return self.succeed(answer.response, what).await;
        }
        self.succeed(answer.response, what).await
    }

    /// Asks for a token again at the next request, as this one has been refused.
    pub(crate) async fn forget(&self) {
        *self.authorization.lock().await = None;
    }

    /// The header that the registry took last.
    pub(crate) async fn authorization(&self) -> Option<HeaderValue> {
        self.authorization.lock().await.clone()
    }

    pub(crate) async fn succeed(&self, response: Response, what: &str) -> Result<Response> {
        if response.status().is_success() {
            return Ok(response);
        }
        Err(refused(&self.transport, response, what).await)
    }

    /// Answers a challenge. Several requests that are refused at the same time cause one answer.
    async fn authorize(
        &self,
        refusal: Response,
        used: Option<HeaderValue>,
        what: &str,
    ) -> Result<HeaderValue> {
        let mut held = self.authorization.lock().await;
        if let Some(newer) = held.as_ref().filter(|_| *held != used) {
            return Ok(newer.clone());
        }
        let found = match challenge(refusal.headers()) {
            Some(Challenge::Bearer { realm, service }) => Some(self.token(&realm, service.as_deref()).await?),
            Some(Challenge::Basic) => {
                let basic = self.credentials.as_ref().map(Credentials::basic).transpose()?.flatten();
                // What was refused once is refused again.
                basic.filter(|basic| used.as_ref() != Some(basic))
            }
            None => None,
        };
        match found {
            Some(authorization) => Ok(held.insert(authorization).clone()),
            None => Err(refused(&self.transport, refusal, what).await),
        }
    }

    async fn token(&self, realm: &str, service: Option<&str>) -> Result<HeaderValue> {
        let mut url = self.transport.realm(realm)?;
        let mut headers = HeaderMap::new();
        let mut body = None;
        if let Some(Credentials::IdentityToken(token)) = &self.credentials {
            // RFC 6749, section 6.
            let mut form = form(&[("grant_type", "refresh_token"), ("client_id", "beta9-worker")]);
            form.extend_pairs(service.map(|service| ("service", service)));
            form.extend_pairs(self.scope.as_deref().map(|scope| ("scope", scope)));
            form.append_pair("refresh_token", token.reveal());
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
            body = Some(form.finish());
        } else {
            let mut query = url.query_pairs_mut();
            query.extend_pairs(service.map(|service| ("service", service)));
            query.extend_pairs(self.scope.as_deref().map(|scope| ("scope", scope)));
            drop(query);
            if let Some(basic) = self.credentials.as_ref().map(Credentials::basic).transpose()?.flatten() {
                headers.insert(AUTHORIZATION, basic);
            }
        }
        let method = if body.is_some() { Method::POST } else { Method::GET };
        let mut request = self.transport.client(&url).request(method, url.clone()).headers(headers);
        if let Some(body) = body {
            request = request.body(body);
        }
        let waits = self.transport.waits;
        let sent = timeout(waits.connect + waits.idle, request.send()).await;
        let response = sent.map_err(|_| self.transport.silent(&url))?.map_err(|e| send_error(&url, e))?;
        if !response.status().is_success() {
            // A redirect is none either: it would take the credentials along.
            return Err(refused(&self.transport, response, "a token").await);
        }
        let bytes = self.transport.read(response, MAX_TOKEN, "token").await?;
        let unusable = || {
            let message = format!("{} answered with no token", origin(&url));
            Error::new(ErrorKind::Protocol, message)
        };
        let answer: TokenAnswer = serde_json::from_slice(&bytes).map_err(|_| unusable())?;
        let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
        header(&format!("Bearer {}", token.ok_or_else(unusable)?))
    }
}

/// A body or query in the form of HTML's forms.
fn form(pairs: &[(&str, &str)]) -> Form {
    let mut form = Form { url: Url::parse("form:").ok() };
    form.extend_pairs(pairs.iter().copied());
    form
}

/// `Url` knows the encoding; a body takes it from there.
struct Form {
    url: Option<Url>,
}

impl Form {
    fn append_pair(&mut self, name: &str, value: &str) {
        self.extend_pairs([(name, value)]);
    }

    fn extend_pairs<'a>(&mut self, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) {
        if let Some(url) = &mut self.url {
            url.query_pairs_mut().extend_pairs(pairs);
        }
    }

    fn finish(self) -> String {
        self.url.and_then(|url| url.query().map(str::to_owned)).unwrap_or_default()
    }
}

/// The strongest challenge of an answer that we can meet.
fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let texts = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let found: Vec<_> = texts.filter(|text| text.len() <= MAX_CHALLENGE).filter_map(parse).collect();
    let (bearer, other): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|challenge| matches!(challenge, Challenge::Bearer { .. }));
    bearer.into_iter().chain(other).next()
}

fn parse(text: &str) -> Option<Challenge> {
    let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let mut realm = None;
    let mut service = None;
    for (name, value) in parameters(rest) {
        match name.to_ascii_lowercase().as_str() {
            "realm" => realm = Some(value),
            "service" => service = Some(value),
            _ => {}
        }
    }
    Some(Challenge::Bearer { realm: realm?, service })
}

/// `name=value, name="quoted \" value"`.
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut characters = text.chars().peekable();
    loop {
        while characters.next_if(|c| c.is_whitespace() || *c == ',').is_some() {}
        let mut name = String::new();
        while let Some(c) = characters.next_if(|c| *c != '=' && *c != ',') {
            name.push(c);
        }
        if characters.next_if_eq(&'=').is_none() {
            if characters.peek().is_none() {
                return found;
            }
            continue;
        }
        let mut value = String::new();
        if characters.next_if_eq(&'"').is_some() {
            while let Some(c) = characters.next().filter(|c| *c != '"') {
                value.extend(if c == '\\' { characters.next() } else { Some(c) });
            }
        } else {
            while let Some(c) = characters.next_if(|c| *c != ',' && !c.is_whitespace()) {
                value.push(c);
            }
        }
        found.push((name.trim().to_owned(), value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>) -> Challenge {
        Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) }
    }

    #[test]
    fn challenges_are_read_as_they_come() {
        let cases = [
            (
                r#"Bearer realm="https://a/token",service="b",scope="x""#,
                Some(bearer("https://a/token", Some("b"))),
            ),
            (r#"bearer service=b , realm=https://a"#, Some(bearer("https://a", Some("b")))),
            (r#"Bearer realm="a \"quoted\", one""#, Some(bearer("a \"quoted\", one", None))),
            (r#"Bearer realm="never closed"#, Some(bearer("never closed", None))),
            ("Basic realm=\"x\"", Some(Challenge::Basic)),
            ("basic", Some(Challenge::Basic)),
            ("Bearer service=only", None),
            ("Bearer ,,,=,", None),
            ("Negotiate", None),
            ("", None),
        ];
        for (text, wanted) in cases {
            assert_eq!(parse(text), wanted, "{text}");
        }
    }

    #[test]
    fn a_token_is_preferred_to_a_password() {
        let mut headers = HeaderMap::new();
        headers.append(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=x"));
        headers.append(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"https://a\""));
        assert_eq!(challenge(&headers), Some(bearer("https://a", None)));
        assert_eq!(challenge(&HeaderMap::new()), None);
    }

    #[test]
    fn forms_are_encoded() {
        assert_eq!(form(&[("a", "b c&d=é"), ("e", "+")]).finish(), "a=b+c%26d%3D%C3%A9&e=%2B");
    }
}
