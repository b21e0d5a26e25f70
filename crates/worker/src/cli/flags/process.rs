use std::path::PathBuf;

use clap::Args;

use super::variables_of;
use crate::api;
use crate::cli::Failure;

/// What runs, as whom, and what it may do.
#[derive(Args)]
pub(super) struct ProcessFlags {
    /// Run this program instead of the image's entrypoint; empty for none. The image's command goes with it.
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Set environment variables from a file of NAME=VALUE lines; -e wins.
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Add a group of the image, by name or number.
    #[arg(long, value_name = "GROUP")]
    group_add: Vec<String>,
    /// Set a resource limit, as in nofile=1024:2048; -1 is unlimited.
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    ulimit: Vec<String>,
    /// Give a capability beside docker's default ones, or ALL.
    #[arg(long, value_name = "NAME")]
    cap_add: Vec<String>,
    /// Take a capability away, or ALL.
    #[arg(long, value_name = "NAME")]
    cap_drop: Vec<String>,
    /// seccomp=FILE or seccomp=unconfined, no-new-privileges, systempaths=unconfined.
    #[arg(long, value_name = "OPTION")]
    security_opt: Vec<String>,
    /// Run a small init that passes signals on and reaps what the command orphans.
    #[arg(long)]
    init: bool,
}

impl ProcessFlags {
    pub(super) fn apply(self, request: &mut api::CreateRequest) -> Result<(), Failure> {
        request.entrypoint = self.entrypoint.map(|program| api::Entrypoint {
            words: if program.is_empty() { Vec::new() } else { vec![program] },
        });
        let mut env = variables_of(&self.env_file)?;
        env.append(&mut request.env);
        request.env = env;
        request.groups = self.group_add;
        request.ulimits = self.ulimit;
        request.cap_add = self.cap_add;
        request.cap_drop = self.cap_drop;
        request.init = self.init;
        self.security_opt.iter().try_for_each(|option| security(option, request))
    }
}

fn security(option: &str, request: &mut api::CreateRequest) -> Result<(), Failure> {
    let (name, value) = option.split_once(['=', ':']).unwrap_or((option, ""));
    match (name, value) {
        ("no-new-privileges", "" | "true") => request.no_new_privileges = true,
        ("no-new-privileges", "false") => request.no_new_privileges = false,
        ("seccomp", "unconfined") => request.seccomp = "unconfined".to_owned(),
        // docker's word for its default profile.
        ("seccomp", "builtin") => request.seccomp = String::new(),
        ("seccomp", path) if !path.is_empty() => {
            let profile = std::fs::read_to_string(path)
                .map_err(|e| Failure::new(format!("read the seccomp profile {path}: {e}")))?;
            if profile.trim().is_empty() {
                return Err(Failure::new(format!("the seccomp profile {path} is empty: write one in JSON")));
            }
            request.seccomp = profile;
        }
        ("systempaths", "unconfined") => request.unmasked = true,
        ("apparmor", "unconfined") | ("label", "disable") => {}
        ("apparmor" | "label", _) => {
            let text = format!(
                "--security-opt {name} is not supported: no AppArmor or SELinux here; use --cap-drop, or seccomp=FILE"
            );
            return Err(Failure::new(text));
        }
        _ => {
            let text = format!(
                "invalid --security-opt {option:?}: use seccomp=FILE, seccomp=unconfined, no-new-privileges or \
                 systempaths=unconfined"
            );
            return Err(Failure::new(text));
        }
    }
    Ok(())
}
