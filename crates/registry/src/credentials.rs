use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::HeaderValue;

use crate::{Error, ErrorKind, Result};

/// A text that must not be shown: it has neither `Debug` nor `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a secret in.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself, for whoever sends it to where it belongs.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

/// How somebody shows a registry who they are.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A user and a password, or an access token in a password's place.
    Password {
        /// The user.
        username: String,
        /// The password.
        password: Secret,
    },
    /// A token that the registry's token service exchanges for others.
    IdentityToken(Secret),
}

impl Credentials {
    /// The header of basic authentication; `None` for a token that is not for the registry itself.
    pub(crate) fn basic(&self) -> Result<Option<HeaderValue>> {
        match self {
            Self::Password { username, password } => {
                let pair = STANDARD.encode(format!("{username}:{}", password.reveal()));
                header(&format!("Basic {pair}")).map(Some)
            }
            Self::IdentityToken(_) => Ok(None),
        }
    }
}

/// A header that no log shows.
pub(crate) fn header(text: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| Error::new(ErrorKind::Protocol, "a token has characters that no header can carry"))?;
    value.set_sensitive(true);
    Ok(value)
}
