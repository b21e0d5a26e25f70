//! Credentials as docker keeps them, with real helper programs.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use beta9_registry::{Credentials, DockerConfig, Error, ErrorKind, Kept, Secret};
use beta9_types::RegistryHost;

fn load(directory: &Path) -> Result<DockerConfig, Error> {
    let directory = OsString::from(directory);
    DockerConfig::load(move |name| (name == "DOCKER_CONFIG").then(|| directory.clone()))
}

fn host(text: &str) -> RegistryHost {
    RegistryHost::parse(text).unwrap()
}

fn password(username: &str, password: &str) -> Credentials {
    Credentials::Password { username: username.to_owned(), password: Secret::new(password) }
}

/// Secrets have no `Debug`, so there is no `assert_eq!` on them.
async fn assert_found(config: &DockerConfig, registry: &str, wanted: Option<Credentials>) {
    let found = config.credentials(&host(registry)).await.unwrap();
    assert!(found == wanted, "other credentials for {registry}");
}

#[tokio::test]
async fn entries_are_found_under_every_name_that_docker_gives_them() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(
        directory.path().join("config.json"),
        r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "YTpi"},
            "https://one.example/v2/": {"auth": "Yzpk"},
            "two.example:5000": {"username": "e", "password": "f"},
            "three.example": {"identitytoken": "token", "auth": "eDp5"},
            "four.example": {}
        }, "HttpHeaders": {"kept": "yes"}}"#,
    )
    .unwrap();
    let config = load(directory.path()).unwrap();
    assert_found(&config, "docker.io", Some(password("a", "b"))).await;
    assert_found(&config, "index.docker.io", Some(password("a", "b"))).await;
    assert_found(&config, "one.example", Some(password("c", "d"))).await;
    assert_found(&config, "two.example:5000", Some(password("e", "f"))).await;
    assert_found(&config, "three.example", Some(Credentials::IdentityToken(Secret::new("token")))).await;
    for none in ["four.example", "two.example", "example", "five.example"] {
        assert_found(&config, none, None).await;
    }
}

#[tokio::test]
async fn what_is_stored_is_found_and_what_was_there_stays() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().join("new");
    let mut config = load(&at).unwrap();
    let file = at.join("config.json");
    assert_eq!(
        config.store(&host("a.example"), &password("u", "p:q")).await.unwrap(),
        Kept::File(file.clone())
    );
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut text: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    text["detachKeys"] = "ctrl-x".into();
    fs::write(&file, text.to_string()).unwrap();
    let mut config = load(&at).unwrap();
    assert_found(&config, "a.example", Some(password("u", "p:q"))).await;
    config.store(&host("docker.io"), &password("u", "2")).await.unwrap();
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("ctrl-x") && text.contains("https://index.docker.io/v1/"), "{text}");
    assert!(config.erase(&host("a.example")).await.unwrap());
    assert!(!config.erase(&host("a.example")).await.unwrap());
    assert_found(&load(&at).unwrap(), "a.example", None).await;
    assert_found(&load(&at).unwrap(), "docker.io", Some(password("u", "2"))).await;
}

#[tokio::test]
async fn helpers_are_asked_by_their_streams() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    // A helper that keeps one secret in a file, and says so when there is none, as docker's do.
    let script = format!(
        "#!/bin/sh\ncase $1 in\nstore) cat >{0}/kept;;\nget) cat >/dev/null; if [ -e {0}/kept ]; then cat {0}/kept; else echo credentials not found in native keychain; exit 1; fi;;\nerase) cat >/dev/null; rm {0}/kept;;\nesac\n",
        at.display()
    );
    let helper = at.join("docker-credential-test");
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let link = Path::new("/usr/local/bin").join(format!("docker-credential-b9{}", std::process::id()));
    if std::os::unix::fs::symlink(&helper, &link).is_err() {
        println!("skipped: this user cannot put a helper into /usr/local/bin");
        return;
    }
    let name =
        link.file_name().unwrap().to_str().unwrap().trim_start_matches("docker-credential-").to_owned();
    fs::write(at.join("config.json"), format!(r#"{{"credsStore": "{name}"}}"#)).unwrap();
    let outcome = async {
        let mut config = load(at)?;
        let before = config.credentials(&host("a.example")).await?.is_some();
        let kept = config.store(&host("a.example"), &password("u", "p")).await?;
        let found = config.credentials(&host("a.example")).await?;
        let erased = config.erase(&host("a.example")).await?;
        let after = config.credentials(&host("a.example")).await?.is_some();
        Ok::<_, Error>((before, kept, found == Some(password("u", "p")), erased, after))
    }
    .await;
    fs::remove_file(&link).unwrap();
    assert_eq!(outcome.unwrap(), (false, Kept::Helper(name), true, true, false));
    assert!(!fs::read_to_string(at.join("config.json")).unwrap().contains("auths"));
}

#[tokio::test]
async fn what_cannot_be_used_is_named_without_being_shown() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.json");
    fs::write(&file, r#"{"auths": {"a.example": {"auth": "geheim"#).unwrap();
    let error = load(directory.path()).err().unwrap();
    assert!(error.kind() == ErrorKind::Invalid && !error.chain().contains("geheim"), "{}", error.chain());
    fs::write(&file, r#"{"auths": {"a.example": {"auth": "geheim"}}}"#).unwrap();
    let error = load(directory.path()).unwrap().credentials(&host("a.example")).await.err().unwrap();
    assert!(error.kind() == ErrorKind::Invalid && !error.chain().contains("geheim"), "{}", error.chain());
    for bad in ["../evil", "a b", "/bin/sh"] {
        fs::write(&file, format!(r#"{{"credHelpers": {{"a.example": "{bad}"}}}}"#)).unwrap();
        let error = load(directory.path()).unwrap().credentials(&host("a.example")).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
    fs::write(&file, r#"{"credsStore": "is-not-installed"}"#).unwrap();
    let error = load(directory.path()).unwrap().credentials(&host("a.example")).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Helper);
}
