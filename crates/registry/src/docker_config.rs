//! Docker's credentials: `config.json` and the credential helpers that it names.
//!
//! For one registry: its entry in `credHelpers`, else the program in `credsStore`, else its entry in `auths`. A helper is
//! a program `docker-credential-<name>`, asked by its standard streams; it never sees anything in its arguments.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use beta9_types::RegistryHost;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{Credentials, Error, ErrorKind, Result, Secret};

const MAX_FILE: u64 = 4 << 20;
const MAX_ANSWER: u64 = 64 << 10;
/// A helper may ask its user something.
const HELPER: Duration = Duration::from_secs(60);
/// What docker calls its own registry in this file.
const DEFAULT_KEY: &str = "https://index.docker.io/v1/";
/// The user name that says that the secret is a token.
const TOKEN_USER: &str = "<token>";

/// A user's `config.json`, with everything in it that is not ours.
pub struct DockerConfig {
    path: PathBuf,
    document: Map<String, Value>,
}

/// Where credentials were put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// In the file, readable by whoever reads the file.
    File(PathBuf),
    /// With the helper of that name.
    Helper(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

impl DockerConfig {
    /// Reads `$DOCKER_CONFIG/config.json`, or `~/.docker/config.json`; a missing file is an empty one.
    /// `environment` looks a variable up, as `std::env::var_os` does.
    pub fn load(environment: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let variable = |name: &str| environment(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = || variable("HOME").map(|home| home.join(".docker"));
        let path = variable("DOCKER_CONFIG").or_else(home).unwrap_or_default().join("config.json");
        let file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { path, document: Map::new() });
            }
            Err(error) => return Err(Error::io("open", &path, error)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut bytes).map_err(|e| Error::io("read", &path, e))?;
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self { path, document: Map::new() });
        }
        match serde_json::from_slice(&bytes) {
            Ok(Value::Object(document)) => Ok(Self { path, document }),
            // The parser's message could repeat a piece of a password.
            _ => {
                let message =
                    format!("{} is no JSON object; repair it, or remove it and log in again", path.display());
                Err(Error::new(ErrorKind::Invalid, message))
            }
        }
    }

    /// The credentials for a registry, if there are any.
    pub async fn credentials(&self, host: &RegistryHost) -> Result<Option<Credentials>> {
        if let Some(helper) = self.helper(host)? {
            let server = key(host);
            let answer = match ask(&helper, "get", server.as_bytes()).await? {
                Ok(answer) => answer,
                Err(words) if words.contains("not found") => return self.in_file(host),
                Err(words) => return Err(helper_failed(&helper, "get", &words)),
            };
            let Answer { username, secret } = serde_json::from_slice(&answer)
                .map_err(|_| helper_failed(&helper, "get", "it did not answer in JSON"))?;
            let secret = Secret::new(secret);
            return Ok(Some(if username == TOKEN_USER {
                Credentials::IdentityToken(secret)
            } else {
                Credentials::Password { username, password: secret }
            }));
        }
        self.in_file(host)
    }

    fn in_file(&self, host: &RegistryHost) -> Result<Option<Credentials>> {
        let Some((name, entry)) = self.entry(host) else { return Ok(None) };
        let text = |field: &str| entry.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
        if let Some(token) = text("identitytoken") {
            return Ok(Some(Credentials::IdentityToken(Secret::new(token))));
        }
        if let (Some(username), Some(password)) = (text("username"), text("password")) {
            return Ok(Some(Credentials::Password {
                username: username.to_owned(),
                password: Secret::new(password),
            }));
        }
        let Some(auth) = text("auth") else { return Ok(None) };
        let pair = STANDARD.decode(auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        match pair.as_deref().and_then(|pair| pair.split_once(':')) {
            Some((username, password)) => Ok(Some(Credentials::Password {
                username: username.to_owned(),
                // Old versions of docker padded with zeros.
                password: Secret::new(password.trim_end_matches('\0')),
            })),
            None => {
                let message = format!(
                    "{} has an entry for {name} that cannot be read; log in again",
                    self.path.display()
                );
                Err(Error::new(ErrorKind::Invalid, message))
            }
        }
    }

    /// The entry of a registry, under any of the names that docker has given it.
    fn entry(&self, host: &RegistryHost) -> Option<(&String, &Value)> {
        let auths = self.document.get("auths")?.as_object()?;
        let exact = key(host);
        auths.get_key_value(&exact).or_else(|| {
            auths.iter().find(|(name, _)| {
                let name = name.strip_prefix("https://").or(name.strip_prefix("http://")).unwrap_or(name);
                let name = name.split('/').next().unwrap_or_default();
                RegistryHost::parse(name).is_ok_and(|name| name == *host)
            })
        })
    }

    fn helper(&self, host: &RegistryHost) -> Result<Option<String>> {
        let helpers = self.document.get("credHelpers").and_then(Value::as_object);
        let own = helpers.and_then(|helpers| helpers.get(host.as_str()).or_else(|| helpers.get(&key(host))));
        let name = own.or(self.document.get("credsStore")).and_then(Value::as_str).unwrap_or_default();
        if name.is_empty() {
            return Ok(None);
        }
        let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.len() <= 64 && name.chars().all(is_word) {
            return Ok(Some(name.to_owned()));
        }
        let message = format!("{} names a credential helper that is no name", self.path.display());
        Err(Error::new(ErrorKind::Invalid, message))
    }

    /// Keeps credentials for a registry, with its helper or in the file.
    pub async fn store(&mut self, host: &RegistryHost, credentials: &Credentials) -> Result<Kept> {
        let (username, secret) = match credentials {
            Credentials::Password { username, password } => (username.as_str(), password),
            Credentials::IdentityToken(token) => (TOKEN_USER, token),
        };
        if let Some(helper) = self.helper(host)? {
            let request = json!({ "ServerURL": key(host), "Username": username, "Secret": secret.reveal() });
            let answer = ask(&helper, "store", request.to_string().as_bytes()).await?;
            answer.map_err(|words| helper_failed(&helper, "store", &words))?;
            return Ok(Kept::Helper(helper));
        }
        let entry = match credentials {
            Credentials::Password { username, password } => {
                json!({ "auth": STANDARD.encode(format!("{username}:{}", password.reveal())) })
            }
            Credentials::IdentityToken(token) => json!({ "identitytoken": token.reveal() }),
        };
        self.forget(host);
        let auths = self.document.entry("auths").or_insert_with(|| json!({}));
        match auths.as_object_mut() {
            Some(auths) => auths.insert(key(host), entry),
            None => {
                let message = format!("\"auths\" in {} is no object; repair it first", self.path.display());
                return Err(Error::new(ErrorKind::Invalid, message));
            }
        };
        self.write()?;
        Ok(Kept::File(self.path.clone()))
    }

    /// Forgets the credentials for a registry. `false` when there were none.
    pub async fn erase(&mut self, host: &RegistryHost) -> Result<bool> {
        let mut found = false;
        if let Some(helper) = self.helper(host)? {
            match ask(&helper, "erase", key(host).as_bytes()).await? {
                Ok(_) => found = true,
                Err(words) if words.contains("not found") => {}
                Err(words) => return Err(helper_failed(&helper, "erase", &words)),
            }
        }
        if self.forget(host) {
            self.write()?;
            found = true;
        }
        Ok(found)
    }

    fn forget(&mut self, host: &RegistryHost) -> bool {
        let Some(name) = self.entry(host).map(|(name, _)| name.clone()) else { return false };
        let auths = self.document.get_mut("auths").and_then(Value::as_object_mut);
        auths.is_some_and(|auths| auths.remove(&name).is_some())
    }

    /// Replaces the file in one step, readable by its owner alone.
    fn write(&self) -> Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        // Where the file is a link, what it points to is replaced.
        let path = std::fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let directory = path.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(|e| Error::io("create", directory, e))?;
        let text = serde_json::to_string_pretty(&self.document)
            .map_err(|e| Error::caused(ErrorKind::Io, format!("cannot write {}", path.display()), e))?;
        // A temporary file has mode 0600.
        let written = tempfile::NamedTempFile::new_in(directory).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.write_all(b"\n")?;
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|e| e.error)
        });
        written.map(drop).map_err(|e| Error::io("write", &path, e))
    }
}

/// What docker calls a registry in its file, and what it asks helpers for.
fn key(host: &RegistryHost) -> String {
    if host.as_str() == "docker.io" { DEFAULT_KEY.to_owned() } else { host.to_string() }
}

fn helper_failed(helper: &str, action: &str, words: &str) -> Error {
    let words: String = words.chars().filter(|c| !c.is_control()).take(160).collect();
    let message = format!("docker-credential-{helper} {action} failed: {words}");
    Error::new(ErrorKind::Helper, message)
}

/// Runs a helper. `Err` is what it says when it fails; that is on stdout by docker's convention.
async fn ask(helper: &str, action: &str, input: &[u8]) -> Result<std::result::Result<Vec<u8>, String>> {
    let program = format!("docker-credential-{helper}");
    let failed = |e: io::Error| {
        let message =
            format!("cannot run the credential helper {program}; install it, or change docker's config.json");
        Error::caused(ErrorKind::Helper, message, e)
    };
    let mut child = tokio::process::Command::new(&program)
        .arg(action)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let talk = async {
        if let Some(mut stdin) = stdin {
            // One that does not read what it is told still answers.
            let _ = stdin.write_all(input).await;
        }
        let mut answer = Vec::new();
        if let Some(stdout) = stdout {
            stdout.take(MAX_ANSWER).read_to_end(&mut answer).await?;
        }
        Ok::<_, io::Error>((child.wait().await?, answer))
    };
    match tokio::time::timeout(HELPER, talk).await {
        Ok(Ok((status, answer))) if status.success() => Ok(Ok(answer)),
        Ok(Ok((_, answer))) => Ok(Err(String::from_utf8_lossy(&answer).into_owned())),
        Ok(Err(error)) => Err(failed(error)),
        Err(_) => Err(helper_failed(helper, action, &format!("no answer within {} s", HELPER.as_secs()))),
    }
}
