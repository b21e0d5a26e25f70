use std::collections::BTreeMap;

use beta9_types::{RegistryHost, RegistrySettings};
use reqwest::Method;
use reqwest::header::HeaderMap;

use crate::auth::Session;
use crate::transport::Transport;
use crate::{Credentials, Error, ErrorKind, Result, Waits};

/// How registries are reached. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Registries {
    settings: BTreeMap<RegistryHost, RegistrySettings>,
    waits: Waits,
}

impl Registries {
    /// Registries with these settings; those without any are reached by https, on loopback by HTTP.
    pub fn new(settings: BTreeMap<RegistryHost, RegistrySettings>) -> Self {
        Self { settings, waits: Waits::default() }
    }

    /// The same with other waits.
    pub fn with_waits(self, waits: Waits) -> Self {
        Self { waits, ..self }
    }

    /// What is configured for a registry.
    pub(crate) fn settings(&self, host: &RegistryHost) -> RegistrySettings {
        self.settings.get(host).cloned().unwrap_or_default()
    }

    /// Asks a registry whether it takes these credentials. `plain_http` overrides the settings.
    pub async fn check(
        &self,
        host: &RegistryHost,
        plain_http: Option<bool>,
        credentials: Credentials,
    ) -> Result<()> {
        let session = self.session(host, plain_http, Some(credentials), None).await?;
        let url = session.transport.url("")?;
        match session.get(Method::GET, url, &HeaderMap::new(), "a log-in").await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::Unauthorized => Err(Error::new(
                ErrorKind::Unauthorized,
                format!("{host} does not take this user and password"),
            )),
            Err(error) => Err(error.during(format!("cannot log in to {host}"))),
        }
    }

    pub(crate) async fn session(
        &self,
        host: &RegistryHost,
        plain_http: Option<bool>,
        credentials: Option<Credentials>,
        scope: Option<String>,
    ) -> Result<Session> {
        let transport = Transport::open(host, &self.settings(host), plain_http, self.waits).await?;
        Ok(Session::new(transport, credentials, scope))
    }
}
