//! Debian's docker-registry on loopback.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// `user` with the password `password`, as `htpasswd -B` writes it.
const HTPASSWD: &str = "user:$2y$04$kTNBXP1mhzdYXi7q8ws2ReH2rv0l5YaiEK2dbG795663ymeENBVMu\n";

/// A running registry with storage of its own. Dropped, it is gone.
pub struct Registry {
    child: Child,
    pub host: String,
    _directory: TempDir,
}

/// How it wants to be spoken to.
pub enum Door<'a> {
    Open,
    Password,
    /// With TLS, by this certificate and key.
    Tls(&'a Path, &'a Path),
}

impl Registry {
    /// `None`, with a reason on stdout, where the program is not installed.
    pub fn start(door: &Door<'_>) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        let mut config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage:\n  filesystem: {{rootdirectory: {}/data}}\nhttp:\n  addr: 127.0.0.1:0\n",
            at.display()
        );
        match door {
            Door::Open => {}
            Door::Password => {
                fs::write(at.join("htpasswd"), HTPASSWD).unwrap();
                config += &format!("auth:\n  htpasswd: {{realm: test, path: {}/htpasswd}}\n", at.display());
            }
            Door::Tls(certificate, key) => {
                config +=
                    &format!("  tls: {{certificate: {}, key: {}}}\n", certificate.display(), key.display());
            }
        }
        fs::write(at.join("config.yml"), config).unwrap();
        let started = Command::new("docker-registry")
            .arg("serve")
            .arg(at.join("config.yml"))
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match started {
            Ok(child) => child,
            Err(error) => {
                println!("skipped: docker-registry cannot be started: {error}");
                return None;
            }
        };
        let mut said = String::new();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let port = loop {
            let mut line = String::new();
            assert!(stderr.read_line(&mut line).unwrap() > 0, "docker-registry ended: {said}");
            if let Some((_, rest)) = line.split_once("listening on 127.0.0.1:") {
                break rest.chars().take_while(char::is_ascii_digit).collect::<String>();
            }
            said += &line;
        };
        // Its log must not fill the pipe.
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        Some(Self { child, host: format!("127.0.0.1:{port}"), _directory: directory })
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
